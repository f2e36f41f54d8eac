//! A file of Node objects, watched.
//!
//! The directory is watched, not the file: editors and `ConfigMap` volumes replace a file by rename, and a watch on the
//! old inode would see nothing more. As notifications can be lost (a symlink that leads elsewhere, a network file
//! system, a directory made later), the file is also looked at every few seconds. It is read when it has been quiet for
//! a moment, so that a file in the middle of being written is rarely seen; one that does not parse is a trouble
//! with a reason, and the last good list stays.

use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::{Told, directory};
use crate::core::cluster::NodeEvent;
use crate::core::node::parse_nodes;

/// How often the file is looked at without a notification.
const LOOK: Duration = Duration::from_secs(5);

/// Largest file in bytes: 5,000 Nodes as kubectl prints them are about 100 MB.
const SIZE_LIMIT: u64 = 256 << 20;

/// Watches the file and sends what it holds, now and after each change. Ends when the receiver is gone.
pub async fn watch(path: PathBuf, events: mpsc::Sender<Told>) {
    let changed = Arc::new(Notify::new());
    let mut watcher = None;
    let mut seen = None;
    loop {
        if watcher.is_none() {
            watcher = directory::subscribe(parent(&path), &changed);
        }
        let Some(reading) = read_if_changed(&path, &mut seen).await else { return };
        if let Some(event) = reading
            && events.send(Told::now(event)).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = changed.notified() => directory::settle(&changed).await,
            () = sleep(LOOK) => {}
            () = events.closed() => return,
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What identifies one content of the file, or the error of not having it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Content { inode: u64, modified: (i64, i64), changed: (i64, i64), size: u64 },
    Error(String),
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        Self::Content {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.len(),
        }
    }
}

/// The event of the file's present content if it differs from what was `seen`; `None` if the runtime is ending.
async fn read_if_changed(path: &Path, seen: &mut Option<Seen>) -> Option<Option<NodeEvent>> {
    let file = path.to_owned();
    let before = seen.clone();
    match tokio::task::spawn_blocking(move || read(&file, before.as_ref())).await {
        Ok((now, event)) => {
            *seen = Some(now);
            Some(event)
        }
        Err(error) if error.is_panic() => {
            Some(Some(NodeEvent::Trouble(format!("{}: reading it failed: {error}", path.display()))))
        }
        Err(_) => None,
    }
}

fn read(path: &Path, before: Option<&Seen>) -> (Seen, Option<NodeEvent>) {
    match read_text(path, before) {
        Ok((seen, None)) => (seen, None),
        Ok((seen, Some(text))) => {
            let event = match parse_nodes(&text) {
                Ok(nodes) => NodeEvent::Listed(nodes),
                Err(error) => NodeEvent::Trouble(format!("{}: {error}", path.display())),
            };
            (seen, Some(event))
        }
        Err(error) => {
            let seen = Seen::Error(format!("{}: {error}", path.display()));
            let Seen::Error(reason) = &seen else { return (seen, None) };
            let event = (before != Some(&seen)).then(|| NodeEvent::Trouble(reason.clone()));
            (seen, event)
        }
    }
}

/// The text, unless the file is the one already seen. Its identity is taken from the open file before the reading, so a
/// write during it shows as another change.
fn read_text(path: &Path, before: Option<&Seen>) -> io::Result<(Seen, Option<String>)> {
    let file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a file"));
    }
    let seen = Seen::of(&metadata);
    if before == Some(&seen) {
        return Ok((seen, None));
    }
    if metadata.len() > SIZE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is over {} MiB", SIZE_LIMIT >> 20)));
    }
    let mut text = String::new();
    file.take(SIZE_LIMIT).read_to_string(&mut text)?;
    Ok((seen, Some(text)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(4);

    fn node(name: &str) -> String {
        format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nspec:\n  podCIDR: 10.1.0.0/24\n")
    }

    fn start(path: &Path) -> mpsc::Receiver<Told> {
        let (sender, events) = mpsc::channel(8);
        tokio::spawn(watch(path.to_owned(), sender));
        events
    }

    /// Waits less than a look takes, so that what arrives came by notification.
    async fn next(events: &mut mpsc::Receiver<Told>) -> NodeEvent {
        timeout(DEADLINE, events.recv()).await.expect("an event within the deadline").unwrap().event
    }

    async fn next_names(events: &mut mpsc::Receiver<Told>) -> Vec<String> {
        match next(events).await {
            NodeEvent::Listed(nodes) => nodes.into_iter().map(|node| node.name).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_file_written_in_place_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nodes.yaml");
        fs::write(&path, node("a")).unwrap();
        let mut events = start(&path);
        assert_eq!(next_names(&mut events).await, ["a"]);
        fs::write(&path, node("b")).unwrap();
        assert_eq!(next_names(&mut events).await, ["b"]);
    }

    #[tokio::test]
    async fn a_file_replaced_by_rename_is_read_again_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nodes.yaml");
        fs::write(&path, node("n0")).unwrap();
        let mut events = start(&path);
        assert_eq!(next_names(&mut events).await, ["n0"]);
        for name in ["n1", "n2", "n3"] {
            let fresh = directory.path().join("fresh");
            fs::write(&fresh, node(name)).unwrap();
            fs::rename(&fresh, &path).unwrap();
            assert_eq!(next_names(&mut events).await, [name]);
        }
    }

    #[tokio::test]
    async fn a_config_map_volume_that_swaps_its_symlink_is_read_again() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["one", "two"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("nodes.yaml"), node(name)).unwrap();
        }
        symlink("one", at("..data")).unwrap();
        symlink("..data/nodes.yaml", at("nodes.yaml")).unwrap();
        let mut events = start(&at("nodes.yaml"));
        assert_eq!(next_names(&mut events).await, ["one"]);
        symlink("two", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(next_names(&mut events).await, ["two"]);
    }

    #[tokio::test]
    async fn a_missing_file_is_a_trouble_until_it_appears() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nodes.yaml");
        let mut events = start(&path);
        let trouble = next(&mut events).await;
        assert!(
            matches!(&trouble, NodeEvent::Trouble(reason) if reason.contains("nodes.yaml")),
            "{trouble:?}"
        );
        fs::write(&path, node("a")).unwrap();
        assert_eq!(next_names(&mut events).await, ["a"]);
    }

    #[tokio::test]
    async fn a_half_written_file_is_a_trouble_and_never_an_empty_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nodes.yaml");
        fs::write(&path, node("a")).unwrap();
        let mut events = start(&path);
        assert_eq!(next_names(&mut events).await, ["a"]);
        fs::write(&path, "").unwrap();
        let trouble = next(&mut events).await;
        assert!(matches!(trouble, NodeEvent::Trouble(_)), "{trouble:?}");
        fs::write(&path, "apiVersion: v1\nkind: Node\nmetadata: {name").unwrap();
        let trouble = next(&mut events).await;
        assert!(matches!(trouble, NodeEvent::Trouble(_)), "{trouble:?}");
        fs::write(&path, node("b")).unwrap();
        assert_eq!(next_names(&mut events).await, ["b"]);
    }
}
