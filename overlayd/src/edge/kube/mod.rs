//! Kubernetes: Nodes in, what our own Node should say and Events out. One list and one watch; no polling.

mod announce;
mod connect;
mod events;
mod follow;
mod words;

use std::collections::BTreeSet;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Told;
use crate::core::cluster::{AnnotationPrefix, Announcement};
use crate::core::config::Config;

pub use connect::Access;
pub use events::Post;

/// Posts that may wait; more are lost.
const POSTS: usize = 32;

/// The ends that control holds.
#[derive(Debug)]
pub struct Writer {
    /// What our own Node should say.
    pub wishes: watch::Sender<Option<Announcement>>,
    /// What an operator must know.
    pub posts: mpsc::Sender<Post>,
}

/// What came of each write to our Node.
pub type Results = mpsc::Receiver<Result<(), String>>;

/// Starts the tasks. `known` are the Nodes that are served from a cache.
#[must_use]
pub fn start(
    config: &Config,
    known: BTreeSet<String>,
    events: mpsc::Sender<Told>,
) -> (Writer, Results, Vec<JoinHandle<()>>) {
    let access = Access::new(config);
    let (connection, connected) = watch::channel(None);
    let (wishes, wished) = watch::channel(None);
    let (posts, posted) = mpsc::channel(POSTS);
    let (results, heard) = mpsc::channel(POSTS);
    let follower = follow::Follower {
        access: access.clone(),
        own: config.node_name.clone(),
        prefix: AnnotationPrefix::parse(&config.annotation_prefix).unwrap_or_default(),
        known,
        events,
        connection,
    };
    let tasks = vec![
        tokio::spawn(follow::follow(follower)),
        tokio::spawn(announce::write(wished, connected.clone(), access.identity(), results)),
        tokio::spawn(events::send(posted, connected)),
    ];
    (Writer { wishes, posts }, heard, tasks)
}
