//! A directory, watched.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// How long the directory must be quiet before it is looked at.
const QUIET: Duration = Duration::from_millis(50);

/// How long a directory that is never quiet can delay the look.
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// Waits until no change was seen for a moment.
pub(super) async fn settle(changed: &Notify) {
    let start = Instant::now();
    while start.elapsed() < LONGEST_DELAY && timeout(QUIET, changed.notified()).await.is_ok() {}
}

/// Notifies of each change until dropped; `None` while the directory does not exist.
pub(super) fn subscribe(directory: &Path, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let changed = Arc::clone(changed);
    // Reading a file is itself an access event: to wake up for it would never end.
    let handler = move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| is_reading(&event.kind)) {
            changed.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(handler)
        .inspect_err(
            |error| tracing::warn!(%error, "cannot watch files, looking at them now and then instead"),
        )
        .ok()?;
    watcher
        .watch(directory, RecursiveMode::NonRecursive)
        .inspect_err(|error| tracing::debug!(%error, directory = %directory.display(), "cannot watch yet"))
        .ok()?;
    Some(watcher)
}

fn is_reading(kind: &notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}
