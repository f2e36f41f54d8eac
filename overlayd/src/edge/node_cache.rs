//! The Nodes as they were last known, for a daemon that starts while the API server is away.
//!
//! A cache: without it, with an old or with a broken one, everything is right as soon as the first list comes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::core::node::{NodeObject, emit_nodes, parse_nodes};

/// Name of the file in the run directory.
pub const FILE: &str = "nodes.yaml";

/// Largest file in bytes: 5,000 Nodes take 2 MB.
const SIZE_LIMIT: u64 = 64 << 20;

/// What an earlier daemon knew.
#[derive(Debug)]
pub struct Cached {
    /// The Nodes.
    pub nodes: Vec<NodeObject>,
    /// When they were written.
    pub written: SystemTime,
}

/// Reads the cache; `None` if there is none.
///
/// # Errors
/// In words, if there is a file that is not a cache.
pub fn load(directory: &Path) -> Result<Option<Cached>, String> {
    let path = directory.join(FILE);
    let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    // No link, and no pipe that would keep us waiting: only a file that a daemon of ours wrote here.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(&error)),
    };
    let metadata = file.metadata().map_err(|error| bad(&error))?;
    if !metadata.is_file() || metadata.len() > SIZE_LIMIT {
        return Err(bad(&"is not a file, or a huge one"));
    }
    let mut text = String::new();
    file.take(SIZE_LIMIT).read_to_string(&mut text).map_err(|error| bad(&error))?;
    let nodes = parse_nodes(&text).map_err(|error| bad(&error))?;
    let written = metadata.modified().map_err(|error| bad(&error))?;
    Ok(Some(Cached { nodes, written }))
}

/// Writes the cache, whole or not at all.
///
/// # Errors
/// If the directory cannot be written.
pub fn store(directory: &Path, nodes: &[NodeObject]) -> io::Result<()> {
    let fresh = directory.join("nodes.yaml.new");
    let written =
        write(&fresh, emit_nodes(nodes).as_bytes()).and_then(|()| fs::rename(&fresh, directory.join(FILE)));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}

impl Cached {
    /// Its age by the wall clock; zero if it was written in the future.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.written.elapsed().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeObject {
        NodeObject { name: name.into(), pod_cidrs: vec!["10.1.0.0/24".into()], ..NodeObject::default() }
    }

    #[test]
    fn what_is_stored_is_loaded_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        assert!(load(directory.path()).unwrap().is_none());
        for nodes in [vec![node("a"), node("b")], vec![node("c")]] {
            store(directory.path(), &nodes).unwrap();
            assert_eq!(load(directory.path()).unwrap().unwrap().nodes, nodes);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing half-written stays");
    }

    #[test]
    fn a_broken_or_hostile_file_is_named_and_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in ["", "kind: Pod\n", "\u{0}\u{1}", "kind: List\nitems:\n- {kind: Node"] {
            fs::write(&path, text).unwrap();
            let problem = load(directory.path()).unwrap_err();
            assert!(problem.contains("nodes.yaml: "), "{problem}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(load(directory.path()).is_err());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(load(directory.path()).is_err());
        store(directory.path(), &[node("a")]).unwrap();
        assert!(load(directory.path()).unwrap().is_some(), "a cache replaces whatever was there");
    }

    #[test]
    fn a_pipe_does_not_keep_us_waiting() {
        let directory = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&directory.path().join(FILE), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(load(directory.path()).is_err());
    }
}
