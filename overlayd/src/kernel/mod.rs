//! Kernel state: `read()` what is, `apply()` one operation. Netlink and nftables only, no binaries.

use crate::core::plan::{Actual, Op};

/// Why a read or an operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(pub String);

/// What an operation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Conntrack entries deleted by it.
    pub conntrack_deleted: u64,
}

/// Sockets to the kernel. Synchronous; every call is short.
#[derive(Debug)]
pub struct Kernel {}

impl Kernel {
    /// Opens the sockets in the calling thread's network namespace. `device` is the TUN device's name.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub fn open(device: &str) -> Result<Self, KernelError> {
        let _ = device;
        todo!()
    }

    /// Reads everything that carries our tag, and the facts that decisions need.
    ///
    /// # Errors
    /// If a dump fails.
    pub fn read(&mut self) -> Result<Actual, KernelError> {
        todo!()
    }

    /// Makes one change. Repeating it is harmless.
    ///
    /// # Errors
    /// In words, naming the object.
    pub fn apply(&mut self, op: &Op) -> Result<Applied, KernelError> {
        let _ = op;
        todo!()
    }
}

/// Subscriptions to link, address, route and nftables changes. Dropping it ends them.
#[derive(Debug)]
pub struct Watch {}

/// Calls `notify` (from its own thread) after every burst of changes, also our own.
///
/// # Errors
/// If the kernel refuses the sockets.
pub fn watch(notify: impl Fn() + Send + 'static) -> Result<Watch, KernelError> {
    let _ = notify;
    todo!()
}
