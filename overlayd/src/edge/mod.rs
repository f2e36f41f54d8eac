//! The outside: Kubernetes, Node file, CNI socket, admin HTTP, the runtime's network configuration. Asynchronous; decides
//! nothing.
//!
//! Each part turns bytes from outside into a value for `control`, or a snapshot that `control` published into
//! bytes. None of them holds state that a restart would miss.

pub mod admin;
pub mod board;
pub mod cni;
pub mod conflist;
mod directory;
pub mod kube;
pub mod metrics;
pub mod node_cache;
pub mod node_file;
pub mod place;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use tokio::net::UnixListener;

use crate::core::cluster::NodeEvent;

/// An event of a source of Nodes, and when it came.
#[derive(Clone, Debug)]
pub struct Told {
    /// What happened.
    pub event: NodeEvent,
    /// When it was read from the source.
    pub at: Instant,
}

impl Told {
    /// An event of this moment.
    #[must_use]
    pub fn now(event: NodeEvent) -> Self {
        Self { event, at: Instant::now() }
    }
}

/// Listens on a unix socket with mode 0600. A file that an earlier daemon left is replaced: whoever calls this
/// holds the node's lock, so no living daemon listens there. Needs a tokio runtime.
///
/// # Errors
/// If the directory cannot be written.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
