//! Notices as Kubernetes Events on our own Node. What cannot be sent is lost: status and log hold it too.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::PostParams;
use kube::core::Request;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::connect::Connection;
use crate::core::notice::Notice;

/// Events of objects without a namespace live here (`ValidateEventCreate` of Kubernetes).
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// How long a write may take, and how long a connection is waited for.
const LIMIT: Duration = Duration::from_secs(10);

/// A notice and the Node that it is about.
#[derive(Clone, Debug)]
pub struct Post {
    /// Name of our Node.
    pub node: String,
    /// Its uid, by which `kubectl describe node` finds the Event.
    pub uid: String,
    /// What to tell.
    pub notice: Notice,
}

/// Sends until nobody posts any more.
pub(super) async fn send(
    mut posts: mpsc::Receiver<Post>,
    mut connection: watch::Receiver<Option<Connection>>,
) {
    while let Some(post) = posts.recv().await {
        let connected = timeout(LIMIT, connection.wait_for(Option::is_some)).await;
        let connected = connected.ok().and_then(Result::ok).and_then(|connection| connection.clone());
        let Some(Connection { client, .. }) = connected else {
            tracing::debug!(note = %post.notice.note, "no connection for an Event: lost");
            continue;
        };
        match timeout(LIMIT, create(&client, &post)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, reason = post.notice.reason.name(), "an Event is lost");
            }
            Err(_) => tracing::debug!(reason = post.notice.reason.name(), "an Event is lost: no answer"),
        }
    }
}

async fn create(client: &Client, post: &Post) -> Result<(), kube::Error> {
    let body = serde_json::to_vec(&event(post, fastrand::u64(..))).map_err(kube::Error::SerdeError)?;
    let request =
        Request::new(EVENTS).create(&PostParams::default(), body).map_err(kube::Error::BuildRequest)?;
    client.request_text(request).await.map(drop)
}

fn event(post: &Post, unique: u64) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let Post { node, uid, notice } = post;
    // A name has at most 253 bytes (RFC 1123); a Node's may have as many.
    let prefix = node.get(..node.floor_char_boundary(200)).unwrap_or_default().trim_end_matches(['.', '-']);
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": format!("{prefix}.{unique:016x}"), "namespace": "default"},
        "eventTime": now,
        "type": "Warning",
        "reason": notice.reason.name(),
        "action": "Observe",
        "note": notice.note,
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
        "reportingController": "overlayd.io/overlayd",
        "reportingInstance": node,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::notice::Reason;

    #[test]
    fn an_event_has_the_shape_that_the_api_demands() {
        let notice = Notice { reason: Reason::PeerRefused, note: "b: no pod CIDR".into() };
        let post = Post { node: "a".into(), uid: "u".into(), notice };
        let event = event(&post, 7);
        assert_eq!(event["metadata"]["name"], "a.0000000000000007");
        assert_eq!(event["regarding"]["uid"], "u");
        let time = event["eventTime"].as_str().unwrap();
        assert_eq!(time.len(), "2026-11-25T23:00:00.000000Z".len(), "{time}");
        let long = Post { node: "n".repeat(253), ..post };
        assert!(super::event(&long, 7)["metadata"]["name"].as_str().unwrap().len() <= 253);
    }
}
