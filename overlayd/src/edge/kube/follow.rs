//! Follows the Nodes of the API server: one list, then one watch.
//!
//! `kube` speaks HTTP, TLS and the API; the loop is our own, because an operator wants to know more than its watcher
//! tells: that the server answers again although no Node changed, that it is silent, that a list is strange. Whatever
//! happens, what was told stays: only a complete list that is believed, or the deletion of one Node, takes Nodes away.

use std::collections::BTreeSet;
use std::mem::discriminant;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::super::Told;
use super::connect::{Access, Connection};
use super::words::{READING, explain, retry_after, stalled};
use crate::core::backoff::Backoff;
use crate::core::cluster::{AnnotationPrefix, Doubt, NodeEvent, doubt};
use crate::core::node::{ApiNode, NodeObject};

/// Where Nodes live.
pub(super) const NODES: &str = "/api/v1/nodes";

/// Nodes in one page of a list. A Node has 5 to 20 KB, of which we keep a part in a hundred: the page bounds our memory.
const PAGE: u32 = 250;

/// How long each step may take, and what counts as long.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// A page of a list. The server itself gives up after 60 s (`--request-timeout`).
    page: Duration,
    /// Until the server begins a watch.
    start: Duration,
    /// Without a word of a watch that lasts [`WATCH_SECONDS`]: the server ends it then, and says something once a minute
    /// anyway.
    silence: Duration,
    /// A watch that lasted this long was a success.
    lasted: Duration,
    /// How long a strange list must have been strange.
    confirm: Duration,
    /// What waits are multiplied by: 1, but for tests.
    breath: f64,
}

const PACE: Pace = Pace {
    page: Duration::from_secs(30),
    start: Duration::from_secs(15),
    silence: Duration::from_secs(WATCH_SECONDS as u64 + 5),
    lasted: Duration::from_secs(5),
    confirm: Duration::from_secs(5),
    breath: 1.0,
};

/// How long one watch lasts, in seconds: after that a dead connection is noticed.
const WATCH_SECONDS: u32 = 60;

/// Watches in a row that end at once before it is called trouble.
const ENDINGS: u32 = 3;

/// Longest wait that the server can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What the source of Nodes is, and where its events go.
pub(super) struct Follower {
    /// How to connect.
    pub(super) access: Access,
    /// Name of our own Node.
    pub(super) own: String,
    /// Annotations that are kept.
    pub(super) prefix: AnnotationPrefix,
    /// Names of the Nodes that are served from a cache.
    pub(super) known: BTreeSet<String>,
    /// Takes the events.
    pub(super) events: mpsc::Sender<Told>,
    /// Shows the connection to those who write.
    pub(super) connection: watch::Sender<Option<Connection>>,
}

/// Why an attempt ended.
#[derive(Debug)]
enum Stop {
    /// Nobody listens any more.
    Closed,
    /// The server ended the watch, as it should, or the connection was cut.
    Ended,
    /// In words, and how long the server asks us to wait.
    Trouble(String, Option<Duration>),
}

/// One page of a list.
#[derive(Deserialize)]
struct Page {
    kind: String,
    metadata: PageMetadata,
    items: Option<Vec<ApiNode>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    continue_token: String,
    #[serde(default)]
    remaining_item_count: Option<i64>,
}

/// Follows until nobody listens.
pub(super) async fn follow(follower: Follower) {
    let access = follower.access.clone();
    let connect = move || -> Connecting {
        let access = access.clone();
        Box::pin(async move { access.connect().await })
    };
    Following::new(follower, PACE).run(connect).await;
}

type Connecting = BoxFuture<'static, Result<Connection, String>>;

struct Following {
    follower: Follower,
    identity: String,
    pace: Pace,
    /// Our place in the history; none before a complete list.
    place: Option<String>,
    doubted: Option<(Doubt, Instant)>,
    /// When the running watch began.
    in_step_since: Option<Instant>,
}

impl Following {
    fn new(follower: Follower, pace: Pace) -> Self {
        let identity = follower.access.identity();
        Self { follower, identity, pace, place: None, doubted: None, in_step_since: None }
    }

    async fn run(mut self, connect: impl Fn() -> Connecting) {
        let mut backoff = Backoff::default();
        loop {
            self.in_step_since = None;
            let stop = self.attempt(&connect).await;
            let lasted = self.in_step_since.is_some_and(|since| since.elapsed() >= self.pace.lasted);
            if lasted {
                backoff.succeeded();
            }
            let (trouble, at_least) = match stop {
                Stop::Closed => return,
                Stop::Ended if lasted => continue,
                Stop::Ended if backoff.failures() < ENDINGS => (None, None),
                Stop::Ended => {
                    (Some("the watch of Nodes ends again and again as soon as it began".to_owned()), None)
                }
                Stop::Trouble(words, at_least) => (Some(words), at_least),
            };
            if let Some(words) = trouble {
                // Tokens and certificates may have been rotated: the next attempt reads them anew.
                self.follower.connection.send_replace(None);
                if self.send(NodeEvent::Trouble(words)).await.is_err() {
                    return;
                }
            }
            let wait = backoff.failed(fastrand::f64()).mul_f64(0.75 + fastrand::f64() / 2.0);
            let wait = wait.max(at_least.unwrap_or_default().min(LONGEST_WAIT)).mul_f64(self.pace.breath);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.follower.events.closed() => return,
            }
        }
    }

    /// Lists if there is no place to go on from, then watches.
    async fn attempt(&mut self, connect: &impl Fn() -> Connecting) -> Stop {
        let known = self.follower.connection.borrow().clone();
        let connection = match known {
            Some(connection) => connection,
            None => match connect().await {
                Ok(connection) => {
                    self.follower.connection.send_replace(Some(connection.clone()));
                    connection
                }
                Err(words) => return Stop::Trouble(words, None),
            },
        };
        let place = match self.place.clone() {
            Some(place) => place,
            None => match self.list(&connection).await {
                Ok(place) => place,
                Err(stop) => return stop,
            },
        };
        self.watch(&connection, &place).await
    }

    async fn send(&self, event: NodeEvent) -> Result<(), Stop> {
        self.follower.events.send(Told::now(event)).await.map_err(|_| Stop::Closed)
    }

    fn failure(&mut self, error: &kube::Error, server: &str) -> Stop {
        if matches!(error, kube::Error::Api(status) if status.code == 410) {
            self.place = None;
        }
        Stop::Trouble(explain(error, server, &self.identity, READING), retry_after(error))
    }

    /// Reads all pages, and tells the whole if it is believed. Returns the place from which to watch.
    async fn list(&mut self, connection: &Connection) -> Result<String, Stop> {
        let Connection { client, server } = connection;
        let strange = |what: &str| Stop::Trouble(format!("the list of Nodes from {server} {what}"), None);
        let mut nodes = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = match timeout(self.pace.page, fetch(client, &params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(self.failure(&error, server)),
                Err(_) => {
                    return Err(Stop::Trouble(stalled(server, "the list of Nodes does not come"), None));
                }
            };
            let metadata = page.metadata;
            if page.kind != "NodeList" || metadata.resource_version.is_empty() {
                return Err(strange("is none: it has another kind or no version"));
            }
            nodes.extend(page.items.unwrap_or_default().into_iter().map(|item| self.read(item.node)));
            if metadata.continue_token.is_empty() {
                if metadata.remaining_item_count.is_some_and(|count| count > 0) {
                    return Err(strange("ends before its end"));
                }
                self.believe(nodes).await?;
                self.place = Some(metadata.resource_version.clone());
                return Ok(metadata.resource_version);
            }
            params.continue_token = Some(metadata.continue_token);
        }
    }

    async fn believe(&mut self, nodes: Vec<NodeObject>) -> Result<(), Stop> {
        let listed: BTreeSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        if let Some(doubt) = doubt(&self.follower.own, &self.follower.known, &listed) {
            let since = match self.doubted {
                Some((before, since)) if discriminant(&before) == discriminant(&doubt) => since,
                _ => Instant::now(),
            };
            self.doubted = Some((doubt, since));
            if !doubt.can_be_confirmed() || since.elapsed() < self.pace.confirm {
                return Err(Stop::Trouble(doubt.to_string(), None));
            }
            tracing::warn!(%doubt, "it was asked for again and says the same: believed");
        }
        self.doubted = None;
        self.follower.known = listed.into_iter().map(str::to_owned).collect();
        self.send(NodeEvent::Listed(nodes)).await
    }

    async fn watch(&mut self, connection: &Connection, place: &str) -> Stop {
        let Connection { client, server } = connection;
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let request = match Request::new(NODES).watch(&params, place) {
            Ok(request) => request,
            Err(error) => return self.failure(&kube::Error::BuildRequest(error), server),
        };
        let stream = match timeout(self.pace.start, client.request_events::<ApiNode>(request)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.failure(&error, server),
            Err(_) => return Stop::Trouble(stalled(server, "the watch of Nodes does not begin"), None),
        };
        let mut stream = std::pin::pin!(stream);
        self.in_step_since = Some(Instant::now());
        if let Err(stop) = self.send(NodeEvent::InStep).await {
            return stop;
        }
        loop {
            let event = match timeout(self.pace.silence, stream.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Stop::Ended,
                Ok(Err(error)) => return self.failure(&error, server),
                Err(_) => {
                    return Stop::Trouble(stalled(server, "the watch of Nodes does not go on"), None);
                }
            };
            if let Err(stop) = self.take(event, server).await {
                return stop;
            }
        }
    }

    async fn take(&mut self, event: WatchEvent<ApiNode>, server: &str) -> Result<(), Stop> {
        let (event, place) = match event {
            WatchEvent::Added(item) | WatchEvent::Modified(item) => {
                let node = self.read(item.node);
                self.follower.known.insert(node.name.clone());
                (NodeEvent::Applied(Box::new(node)), item.resource_version)
            }
            WatchEvent::Deleted(item) => {
                self.follower.known.remove(&item.node.name);
                (NodeEvent::Deleted(item.node.name), item.resource_version)
            }
            WatchEvent::Bookmark(bookmark) => (NodeEvent::InStep, bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(self.failure(&kube::Error::Api(status), server)),
        };
        if !place.is_empty() {
            self.place = Some(place);
        }
        self.send(event).await
    }

    /// What is kept of a Node: of the annotations ours, and of another's Node nothing that only its own daemon needs.
    fn read(&self, mut node: NodeObject) -> NodeObject {
        node.annotations.retain(|key, _| self.follower.prefix.holds(key));
        if node.name != self.follower.own {
            node.network_unavailable = None;
        }
        node
    }
}

/// One page. Read from the text here: `kube` would log a broken one as a whole, megabytes of it.
async fn fetch(client: &Client, params: &ListParams) -> Result<Page, kube::Error> {
    let request = Request::new(NODES).list(params).map_err(kube::Error::BuildRequest)?;
    let text = client.request_text(request).await?;
    serde_json::from_str(&text).map_err(kube::Error::SerdeError)
}

#[cfg(test)]
mod tests;
