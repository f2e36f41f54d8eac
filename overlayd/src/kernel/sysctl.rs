//! Sysctls as files. The kernel shows each process those of its own network namespace, whatever mount it looks through.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Where they are mounted. A container may have a writable mount at another place.
const ROOT: &str = "/proc/sys";

#[derive(Debug)]
pub(super) struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self { root: PathBuf::from(ROOT) }
    }
}

impl Sysctls {
    /// The values of those that exist.
    pub(super) fn read(&self, keys: impl IntoIterator<Item = String>) -> BTreeMap<String, String> {
        let value =
            |key: &String| fs::read_to_string(self.root.join(key)).ok().map(|text| text.trim().to_owned());
        keys.into_iter().filter_map(|key| value(&key).map(|value| (key, value))).collect()
    }

    pub(super) fn write(&self, key: &str, value: &str) -> io::Result<()> {
        match fs::write(self.root.join(key), value) {
            // Its link is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
