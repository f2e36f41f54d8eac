//! Where `control` pins its latest snapshot for everyone to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::core::status::Status;

/// A heartbeat older than this means that the control loop hangs.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// The latest snapshot and the time of the loop's last turn. Readers never wait for the writer.
#[derive(Debug)]
pub struct Board {
    status: ArcSwap<Status>,
    epoch: Instant,
    beat_ms: AtomicU64,
}

impl Board {
    /// A board whose heart beats now.
    #[must_use]
    pub fn new(status: Status) -> Self {
        Self { status: ArcSwap::from_pointee(status), epoch: Instant::now(), beat_ms: AtomicU64::new(0) }
    }

    /// Pins another snapshot.
    pub fn publish(&self, status: Status) {
        self.status.store(Arc::new(status));
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
