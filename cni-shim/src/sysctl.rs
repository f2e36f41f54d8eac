//! Kernel settings of one interface, in the calling thread's network namespace.

use std::fs;
use std::io;

use crate::error::{CniError, Code};

/// One value under `/proc/sys/net/<family>/conf/<interface>`.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// File name.
    pub key: &'static str,
    /// What it shall hold.
    pub value: &'static str,
}

impl Setting {
    /// An IPv4 setting.
    #[must_use]
    pub const fn v4(key: &'static str, value: &'static str) -> Self {
        Self { family: "ipv4", key, value }
    }

    /// An IPv6 setting.
    #[must_use]
    pub const fn v6(key: &'static str, value: &'static str) -> Self {
        Self { family: "ipv6", key, value }
    }

    /// Whether it holds the value.
    #[must_use]
    pub fn holds(self, interface: &str) -> bool {
        fs::read_to_string(self.path(interface)).is_ok_and(|held| held.trim() == self.value)
    }

    fn path(self, interface: &str) -> String {
        format!("/proc/sys/net/{}/conf/{interface}/{}", self.family, self.key)
    }

    /// Writes it, unless it holds the value already: `/proc/sys` may be read-only.
    ///
    /// # Errors
    /// Code 100, naming the file.
    pub fn apply(self, interface: &str) -> Result<(), CniError> {
        let (path, value) = (self.path(interface), self.value);
        let outcome = match fs::read_to_string(&path) {
            Ok(held) if held.trim() == value => Ok(()),
            Ok(_) => fs::write(&path, value),
            Err(error) => Err(error),
        };
        outcome.map_err(|error| CniError::new(Code::Plumbing, format!("set {path} to {value}: {error}")))
    }
}

/// Whether the kernel has IPv6 at all.
#[must_use]
pub fn has_ipv6() -> bool {
    !matches!(fs::metadata("/proc/sys/net/ipv6"), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
