//! The outside: Node file, CNI socket, admin HTTP, the runtime's network configuration. Asynchronous; decides nothing.
//!
//! Each part turns bytes from outside into a value for `control`, or a snapshot that `control` published into
//! bytes. None of them holds state that a restart would miss.

pub mod admin;
pub mod board;
pub mod cni;
pub mod conflist;
mod directory;
pub mod metrics;
pub mod node_file;
pub mod place;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::net::UnixListener;

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
