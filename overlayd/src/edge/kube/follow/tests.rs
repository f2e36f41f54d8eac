//! The loop against scripted answers: one request, one answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use http::{Request as HttpRequest, Response};
use kube::client::Body;

use super::*;

/// A second is a millisecond.
const QUICK: Pace = Pace {
    page: Duration::from_millis(300),
    start: Duration::from_millis(300),
    silence: Duration::from_millis(600),
    lasted: Duration::from_millis(50),
    confirm: Duration::from_millis(20),
    breath: 0.001,
};

/// What the server says to one request.
#[derive(Clone)]
enum Answer {
    Json(u16, String),
    /// A body that ends early.
    Cut(String),
    Silence,
}

fn page(names: &[&str], more: &str) -> Answer {
    let items: Vec<String> = names
        .iter()
        .map(|name| format!(r#"{{"metadata": {{"name": "{name}", "resourceVersion": "5"}}}}"#))
        .collect();
    let token = if more.is_empty() { String::new() } else { format!(r#", "continue": "{more}""#) };
    Answer::Json(
        200,
        format!(
            r#"{{"kind": "NodeList", "metadata": {{"resourceVersion": "9"{token}}}, "items": [{}]}}"#,
            items.join(",")
        ),
    )
}

fn changes(lines: &[&str]) -> Answer {
    // One event a line.
    Answer::Json(200, lines.iter().map(|line| line.replace('\n', "") + "\n").collect())
}

const ADDED: &str = r#"{"type":"ADDED","object":{"kind":"Node","metadata":{"name":"c","resourceVersion":"11",
    "annotations":{"overlayd.io/public-ip":"192.0.2.3","other/x":"y"}},
    "status":{"conditions":[{"type":"NetworkUnavailable","status":"True"}]}}}"#;
const DELETED: &str = r#"{"type":"DELETED","object":{"metadata":{"name":"b","resourceVersion":"12"}}}"#;
const BOOKMARK: &str =
    r#"{"type":"BOOKMARK","object":{"kind":"Node","apiVersion":"v1","metadata":{"resourceVersion":"40"}}}"#;
const GONE: &str = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"too old"}}"#;

/// Follows a server that gives these answers and then is silent. Returns the events, and the requests so far.
fn follow_script(known: &[&str], answers: Vec<Answer>) -> (mpsc::Receiver<Told>, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let script = Arc::new(Mutex::new(VecDeque::from(answers)));
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: HttpRequest<Body>| {
        log.lock().unwrap().push(request.uri().to_string());
        let answer = script.lock().unwrap().pop_front().unwrap_or(Answer::Silence);
        async move {
            let (status, body) = match answer {
                Answer::Json(status, body) => (status, body),
                Answer::Cut(body) => (200, body),
                Answer::Silence => std::future::pending().await,
            };
            let response = Response::builder().status(status).body(Body::from(body.into_bytes()));
            Ok::<_, std::convert::Infallible>(response.unwrap())
        }
    });
    let connection =
        Connection { client: Client::new(service, "default"), server: "https://192.0.2.9".to_owned() };
    let (events, received) = mpsc::channel(64);
    let follower = Follower {
        access: Access::new(&crate::core::desired::tests::config()),
        own: "own".to_owned(),
        prefix: AnnotationPrefix::default(),
        known: known.iter().map(|name| (*name).to_owned()).collect(),
        events,
        connection: watch::channel(None).0,
    };
    let connect = move || -> Connecting { Box::pin(std::future::ready(Ok(connection.clone()))) };
    tokio::spawn(Following::new(follower, QUICK).run(connect));
    (received, asked)
}

/// The next events as short words.
async fn next(events: &mut mpsc::Receiver<Told>, count: usize) -> Vec<String> {
    let mut words = Vec::new();
    for _ in 0..count {
        words.push(match events.recv().await.expect("the follower goes on").event {
            NodeEvent::Listed(nodes) => {
                let names: Vec<String> = nodes.into_iter().map(|node| node.name).collect();
                format!("listed {}", names.join(" "))
            }
            NodeEvent::Applied(node) => format!("applied {}", node.name),
            NodeEvent::Deleted(name) => format!("deleted {name}"),
            NodeEvent::InStep => "in step".to_owned(),
            NodeEvent::Trouble(words) => format!("trouble: {words}"),
        });
    }
    words
}

#[tokio::test]
async fn pages_become_one_list_and_changes_follow() {
    let script = vec![page(&["own", "a"], "more"), page(&["b"], ""), changes(&[ADDED, DELETED, BOOKMARK])];
    let (mut events, asked) = follow_script(&[], script);
    assert_eq!(
        next(&mut events, 5).await,
        ["listed own a b", "in step", "applied c", "deleted b", "in step"]
    );
    let asked = asked.lock().unwrap().clone();
    assert!(asked[0].contains("limit=250") && asked[1].contains("continue=more"), "{asked:?}");
    assert!(asked[2].contains("watch=true") && asked[2].contains("resourceVersion=9"), "{asked:?}");
}

#[tokio::test]
async fn what_is_not_ours_is_left_out() {
    let (mut events, _) = follow_script(&[], vec![page(&["own"], ""), changes(&[ADDED])]);
    next(&mut events, 2).await;
    let NodeEvent::Applied(node) = events.recv().await.unwrap().event else { panic!("a node is applied") };
    assert_eq!(node.annotations.keys().collect::<Vec<_>>(), ["overlayd.io/public-ip"]);
    assert_eq!(node.network_unavailable, None);
}

/// An ended watch goes on from the last bookmark, without another list.
#[tokio::test]
async fn a_watch_goes_on_from_its_place() {
    let (mut events, asked) =
        follow_script(&[], vec![page(&["own"], ""), changes(&[BOOKMARK]), changes(&[])]);
    assert_eq!(next(&mut events, 4).await, ["listed own", "in step", "in step", "in step"]);
    let asked = asked.lock().unwrap().clone();
    assert!(asked[2].contains("resourceVersion=40"), "{asked:?}");
}

#[tokio::test]
async fn gone_lists_anew() {
    let script = vec![page(&["own", "a"], ""), changes(&[GONE]), page(&["own", "a", "b"], ""), changes(&[])];
    let (mut events, _) = follow_script(&[], script);
    let words = next(&mut events, 5).await;
    assert!(words[2].contains("forgotten our place in the history (410)"), "{words:?}");
    assert_eq!(words[3..], ["listed own a b", "in step"]);
}

#[tokio::test]
async fn errors_and_broken_lists_are_troubles_and_never_lists() {
    let status = |code: u16| {
        Answer::Json(
            code,
            format!(
                r#"{{"kind": "Status", "status": "Failure", "code": {code}, "reason": "R", "message": "m"}}"#
            ),
        )
    };
    let Answer::Json(_, whole) = page(&["own", "a"], "") else { panic!("a page is JSON") };
    let truncated =
        r#"{"kind": "NodeList", "metadata": {"resourceVersion": "9", "remainingItemCount": 7}, "items": []}"#;
    let script = vec![
        status(401),
        status(403),
        status(500),
        Answer::Json(200, r#"{"kind": "Status", "metadata": {"resourceVersion": "9"}}"#.to_owned()),
        Answer::Json(200, "{}".to_owned()),
        Answer::Cut(whole[..whole.len() / 2].to_owned()),
        Answer::Json(200, truncated.to_owned()),
        page(&["own"], "more"),
        status(410),
        page(&["own", "a"], ""),
    ];
    let (mut events, _) = follow_script(&[], script);
    let words = next(&mut events, 9).await;
    assert!(words[..8].iter().all(|words| words.starts_with("trouble: ")), "{words:?}");
    for (words, part) in words.iter().zip([
        "401",
        "403",
        "500",
        "is none",
        "not the answer",
        "not the answer",
        "before its end",
        "410",
    ]) {
        assert!(words.contains(part), "{words} should contain {part}");
    }
    assert_eq!(words[8], "listed own a");
}

#[tokio::test]
async fn an_empty_list_is_not_believed_and_a_short_one_only_when_it_stays() {
    let mut script = vec![page(&[], ""); 8];
    script.push(page(&["own", "a", "b", "c"], ""));
    let (mut events, _) = follow_script(&["own", "a", "b", "c"], script);
    let words = next(&mut events, 9).await;
    assert!(words[..8].iter().all(|words| words.contains("is empty, but 4 are known")), "{words:?}");
    assert_eq!(words[8], "listed own a b c");

    let (mut events, _) = follow_script(&["own", "a", "b", "c"], vec![page(&["own"], ""); 12]);
    let mut told = Vec::new();
    loop {
        let words = next(&mut events, 1).await.concat();
        if words == "listed own" {
            break;
        }
        assert!(words.contains("lacks 3 of the 4"), "{words}");
        told.push(words);
    }
    assert!(told.len() > 1, "{told:?}");
}

#[tokio::test]
async fn silence_is_noticed_in_every_phase() {
    let (mut events, _) = follow_script(&[], vec![Answer::Silence, page(&["own"], ""), Answer::Silence]);
    let words = next(&mut events, 3).await;
    assert!(words[0].contains("the list of Nodes does not come"), "{words:?}");
    assert_eq!(words[1], "listed own");
    assert!(words[2].contains("the watch of Nodes does not begin"), "{words:?}");
}

#[tokio::test]
async fn a_server_that_is_busy_is_given_the_time_it_asks_for() {
    let busy =
        r#"{"kind": "Status", "status": "Failure", "code": 429, "details": {"retryAfterSeconds": 45}}"#;
    let (mut events, _) = follow_script(&[], vec![Answer::Json(429, busy.to_owned()), page(&["own"], "")]);
    let start = Instant::now();
    let words = next(&mut events, 2).await;
    assert!(words[0].contains("too much to do (429)") && words[1] == "listed own", "{words:?}");
    assert!(start.elapsed() >= Duration::from_millis(45));
}

#[tokio::test]
async fn watches_that_end_at_once_are_slowed_and_told() {
    let mut script = vec![page(&["own"], "")];
    script.extend(vec![changes(&[]); 5]);
    let (mut events, _) = follow_script(&[], script);
    let words = next(&mut events, 8).await;
    let told = words.iter().filter(|words| words.contains("again and again")).count();
    assert!(told >= 1, "{words:?}");
}
