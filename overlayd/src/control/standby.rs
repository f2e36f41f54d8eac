//! After a hand-over: the daemon waits for its end, and serves again if its successor is gone for good.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use super::{Holder, Lock, Signals, acquire, holder};

/// How often it looks whether the successor is there.
const LOOK: Duration = Duration::from_secs(1);

/// After so many looks without anybody it serves again: a container that ended is started anew within a second or two.
const PATIENCE: u32 = 10;

/// Returns the lock if nobody else serves this node, `None` on SIGTERM or SIGINT.
///
/// # Errors
/// If signals cannot be listened to, or the lock not be taken.
pub async fn stand_by(run_dir: &Path) -> Result<Option<Lock>> {
    let mut signals = Signals::listen()?;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missed = 0;
    loop {
        tokio::select! {
            () = signals.any() => return Ok(None),
            _ = looks.tick() => {}
        }
        missed = if holder(run_dir) == Holder::Nobody { missed + 1 } else { 0 };
        if missed > PATIENCE {
            tracing::warn!("the daemon that took over is gone, serving again");
            return acquire(run_dir, Duration::ZERO).map(Some);
        }
    }
}
