//! Where `control` pins its latest snapshot for everyone to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::core::status::Status;

/// A heartbeat older than this means that the control loop hangs.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// How long a reader waits for a snapshot of its own moment before it takes the last one. A part of the second
/// within which `overlayd status` must answer.
const FRESH_LIMIT: Duration = Duration::from_millis(300);

/// Whether pods can be served, and why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Whether pods can be served.
    pub ready: bool,
    /// Why not, one sentence each.
    pub reasons: Vec<String>,
}

/// The latest snapshot and the time of the loop's last turn. A reader can ask for a new snapshot, but never waits long
/// for the writer.
#[derive(Debug)]
pub struct Board {
    status: ArcSwap<Status>,
    readiness: ArcSwap<Readiness>,
    asked: Notify,
    pinned: Notify,
    hand_over: Notify,
    epoch: Instant,
    beat_ms: AtomicU64,
}

impl Board {
    /// A board whose heart beats now.
    #[must_use]
    pub fn new(status: Status) -> Self {
        Self {
            readiness: ArcSwap::from_pointee(Readiness {
                ready: status.ready,
                reasons: status.not_ready_reasons.clone(),
            }),
            status: ArcSwap::from_pointee(status),
            asked: Notify::new(),
            pinned: Notify::new(),
            hand_over: Notify::new(),
            epoch: Instant::now(),
            beat_ms: AtomicU64::new(0),
        }
    }

    /// Pins another snapshot.
    pub fn publish(&self, status: Status) {
        self.status.store(Arc::new(status));
        self.pinned.notify_waiters();
    }

    /// Pins what changes more often than snapshots are made.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.store(Arc::new(readiness));
    }

    /// Whether pods can be served, as of the loop's last turn.
    #[must_use]
    pub fn readiness(&self) -> Arc<Readiness> {
        self.readiness.load_full()
    }

    /// Returns once somebody wants a new snapshot.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Asks the loop to leave this node to another daemon.
    pub fn ask_to_hand_over(&self) {
        self.hand_over.notify_one();
    }

    /// Returns once another daemon wants this node.
    pub async fn asked_to_hand_over(&self) {
        self.hand_over.notified().await;
    }

    /// A snapshot made after this call, or the latest one if the loop does not make one in time.
    pub async fn fresh_status(&self) -> Arc<Status> {
        let pinned = self.pinned.notified();
        self.asked.notify_one();
        let _ = tokio::time::timeout(FRESH_LIMIT, pinned).await;
        self.status()
    }

    /// The latest snapshot.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    /// The loop is alive.
    pub fn beat(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_ms.store(now, Ordering::Relaxed);
    }

    /// Time since the loop's last turn.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(Duration::from_millis(self.beat_ms.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(node: &str) -> Status {
        Status { node: node.to_owned(), ..Status::default() }
    }

    #[tokio::test]
    async fn who_asks_gets_a_snapshot_made_after_the_question() {
        let board = Arc::new(Board::new(named("old")));
        let writer = Arc::clone(&board);
        tokio::spawn(async move {
            writer.asked().await;
            writer.publish(named("new"));
        });
        assert_eq!(board.fresh_status().await.node, "new");
    }

    #[tokio::test]
    async fn a_loop_that_hangs_leaves_the_last_snapshot() {
        let board = Board::new(named("old"));
        assert_eq!(board.fresh_status().await.node, "old");
    }
}
