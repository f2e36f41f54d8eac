//! The container's network namespace: opened, checked, entered by a thread of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use rustix::fs::{Mode, OFlags, fstatfs, open};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::environment::Sandbox;
use crate::error::{CniError, Code};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: String,
}

impl Namespace {
    /// Opens `CNI_NETNS`. It must be a network namespace, and not the plugin's own unless that was asked for.
    ///
    /// # Errors
    /// Code 8.
    pub fn open(sandbox: &Sandbox) -> Result<Self, CniError> {
        Self::open_for(sandbox, || ()).map(|(namespace, ())| namespace)
    }

    /// The same, and the first work inside: whether it can be entered has to be tried anyway.
    ///
    /// # Errors
    /// Code 8.
    pub fn open_for<T: Send>(
        sandbox: &Sandbox,
        work: impl FnOnce() -> T + Send,
    ) -> Result<(Self, T), CniError> {
        let path = sandbox.path.clone();
        let invalid =
            |cause: &str| CniError::new(Code::InvalidNamespace, format!("CNI_NETNS {path}: {cause}"));
        // Non-blocking, so that a FIFO at this place cannot hold us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file =
            open(sandbox.to_path(), flags, Mode::empty()).map_err(|errno| invalid(&errno.to_string()))?;
        let kind = fstatfs(&file).map_err(|errno| invalid(&errno.to_string()))?.f_type;
        if u64::try_from(kind).ok() != Some(NSFS_MAGIC) {
            return Err(invalid("not a namespace"));
        }
        let file = File::from(file);
        let namespace = Self { file, path: path.clone() };
        let is_own = namespace.is_own().map_err(|error| invalid(&error.to_string()))?;
        if is_own && !sandbox.may_be_own {
            return Err(invalid("this is the network namespace of the host, not one of a container"));
        }
        match namespace.enter(work) {
            Ok(done) => Ok((namespace, done)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(invalid("a namespace, but not of the network"))
            }
            Err(error) => Err(invalid(&format!("enter it: {error}"))),
        }
    }

    fn is_own(&self) -> io::Result<bool> {
        let (ours, theirs) = (std::fs::metadata("/proc/thread-self/ns/net")?, self.file.metadata()?);
        Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
    }

    /// Runs `work` inside the namespace, on a fresh thread: no other thread ever changes its own.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().spawn_scoped(scope, || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<T, Errno>(work())
            })?;
            match inside.join() {
                Ok(outcome) => Ok(outcome?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// `CNI_NETNS`, verbatim.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> CniError {
        Namespace::open(&Sandbox { path: path.into(), may_be_own: false }).unwrap_err()
    }

    #[test]
    fn what_is_not_a_namespace_is_refused() {
        for path in ["/proc/self/exe", "/", "/dev/null", "/nonexistent/netns"] {
            assert_eq!(refusal(path).code, Code::InvalidNamespace, "{path}");
        }
    }

    #[test]
    fn our_own_namespace_is_refused() {
        let error = refusal("/proc/self/ns/net");
        assert_eq!(error.code, Code::InvalidNamespace);
        assert!(error.message.contains("of the host"), "{}", error.message);
    }
}
