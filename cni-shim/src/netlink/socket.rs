//! The socket: request, acknowledge, dump.

use std::io;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused; the errno is inside.
    #[error("{what}: {errno}")]
    Kernel {
        /// What was being done, naming the object.
        what: String,
        /// The kernel's answer.
        errno: io::Error,
    },
    /// The socket itself failed, or an answer was malformed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
}

impl NetlinkError {
    /// The errno, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => errno.raw_os_error(),
            Self::Socket(_) => None,
        }
    }
}

/// An open rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace, with strict checking of dump requests and extended acks.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        todo!()
    }
}
