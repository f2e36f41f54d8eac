//! Sysctls as files. The kernel shows each process those of its own network namespace, whatever mount it looks through.
//! Only what is below `net/` is touched: a container gets a writable mount of that part at another place, and no more.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where they can be read by everybody.
const ROOT: &str = "/proc/sys";

#[derive(Debug)]
pub(super) struct Sysctls {
    written_at: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::written_at(Path::new(ROOT))
    }
}

impl Sysctls {
    /// `root` is a mount of `/proc/sys` that can be written.
    pub(super) fn written_at(root: &Path) -> Self {
        Self { written_at: root.to_owned() }
    }

    /// The values of those that exist.
    pub(super) fn read(&self, keys: impl IntoIterator<Item = String>) -> BTreeMap<String, String> {
        let value = |key: &String| {
            fs::read_to_string(Path::new(ROOT).join(key)).ok().map(|text| text.trim().to_owned())
        };
        keys.into_iter().filter_map(|key| value(&key).map(|value| (key, value))).collect()
    }

    pub(super) fn write(&self, key: &str, value: &str) -> io::Result<()> {
        let root = &self.written_at;
        let told = |kind, why: String| Err(io::Error::new(kind, why));
        match fs::write(root.join(key), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !root.join("net").is_dir() => {
                told(error.kind(), format!("sysctl_dir {} has no directory net", root.display()))
            }
            // Its link is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => told(
                error.kind(),
                format!(
                    "{} is read-only here: let sysctl_dir name a writable mount of it, or set this by the node's own means",
                    root.display()
                ),
            ),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_success_unless_nothing_is_there_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::written_at(directory.path());
        let error = sysctls.write("net/ipv4/ip_forward", "1").unwrap_err().to_string();
        assert!(error.contains("has no directory net"), "{error}");
        fs::create_dir(directory.path().join("net")).unwrap();
        sysctls.write("net/ipv4/conf/gone/rp_filter", "2").unwrap();
        fs::create_dir(directory.path().join("net/ipv4")).unwrap();
        sysctls.write("net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("net/ipv4/ip_forward")).unwrap(), "1");
    }
}
