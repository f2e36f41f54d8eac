//! A part of every cgroup hierarchy for each node: two kubelets in one would end each other's pods as orphans.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

/// Begins the names of all that labs make.
const PREFIX: &str = "overlayd-lab-";

/// The cgroups of one cluster. Removed, with all below them, when dropped: their processes must be gone by then.
#[derive(Debug)]
pub(crate) struct Cgroups {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug)]
struct Hierarchy {
    path: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of version 1.
    One,
    /// Of version 2, with all controllers.
    Unified,
    /// Of version 2, beside those of version 1: runtimes make cgroups there by themselves.
    Beside,
}

impl Cgroups {
    pub(crate) fn new(nodes: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let hierarchies = hierarchies(&mounts);
        for hierarchy in &hierarchies {
            sweep(&hierarchy.path);
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Made at once, so that what there is goes away if the next one fails.
        let cgroups = Self { name: format!("{PREFIX}{}-{count}", std::process::id()), hierarchies };
        let no = "this user may not make cgroups, which kubelets need: run as root, for example `sudo -E cargo test`";
        for hierarchy in cgroups.hierarchies.iter().filter(|hierarchy| hierarchy.kind != Kind::Beside) {
            let top = hierarchy.path.join(&cgroups.name);
            let nodes = nodes.iter().map(|node| top.join(node));
            for path in std::iter::once(top.clone()).chain(nodes) {
                hierarchy.make(&path).with_context(|| format!("make {}: {no}", path.display()))?;
            }
        }
        Ok(cgroups)
    }

    /// The path of a node's part below each hierarchy's mount point.
    pub(crate) fn of(&self, node: &str) -> String {
        format!("/{}/{node}", self.name)
    }
}

impl Hierarchy {
    fn make(&self, path: &Path) -> io::Result<()> {
        if self.kind == Kind::Unified
            && let Some(parent) = path.parent()
        {
            let controllers = fs::read_to_string(parent.join("cgroup.controllers"))?;
            let all: String = controllers.split_whitespace().map(|name| format!("+{name} ")).collect();
            fs::write(parent.join("cgroup.subtree_control"), all)?;
        }
        fs::create_dir(path)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // A new cpuset of version 1 has no CPU at all, and takes no process.
            if self.kind == Kind::One && path.join(file).exists() {
                let inherited = path.parent().map(|parent| fs::read(parent.join(file))).transpose()?;
                fs::write(path.join(file), inherited.unwrap_or_default())?;
            }
        }
        Ok(())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for hierarchy in &self.hierarchies {
            let path = hierarchy.path.join(&self.name);
            // The kernel takes a moment to see that the last process is gone.
            for _ in 0..100 {
                remove(&path);
                if !path.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The hierarchies that are mounted.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): the mount point is the fifth field, the type the first one behind the separator.
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        let Some(path) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
        match source.split(' ').next() {
            Some("cgroup") => found.push(Hierarchy { path, kind: Kind::One }),
            Some("cgroup2") => {
                let kind = if path == Path::new("/sys/fs/cgroup") { Kind::Unified } else { Kind::Beside };
                found.push(Hierarchy { path, kind });
            }
            _ => {}
        }
    }
    found
}

/// Removes what test processes left behind that were killed.
fn sweep(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a tree of cgroups, deepest first, as far as no process is in it.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
