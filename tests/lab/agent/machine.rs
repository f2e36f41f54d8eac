//! A node that is a whole machine: what kubelet and runtime write stays its own, and what they mount is seen by all of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Holds what the machine writes, in the node's own memory.
const LAYERS: &str = "/run/machine";

pub(crate) fn prepare() -> Result<()> {
    for directory in ["/etc", "/opt", "/var"] {
        overlay(directory)?;
    }
    // Parts of an overlay cannot be the upper part of another, which is what a container's root is.
    for directory in ["/var/lib/containerd", "/var/lib/kubelet"] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
        tmpfs(directory)?;
    }
    for directory in ["/etc/cni/net.d", "/opt/cni/bin", "/var/log/pods", "/var/log/containers"] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    write("/etc/hosts", &format!("127.0.0.1 localhost {name}\n::1 localhost\n"))?;
    // No name server: a lookup fails at once instead of after its time.
    write("/etc/resolv.conf", "")?;
    cgroups_over_own_sysfs()?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .context("share the machine's mounts with its containers")
}

/// The directory stays what it is; changes go elsewhere.
fn overlay(directory: &str) -> Result<()> {
    let upper = format!("{LAYERS}{directory}/upper");
    let work = format!("{LAYERS}{directory}/work");
    for path in [&upper, &work] {
        fs::create_dir_all(path).with_context(|| format!("make {path}"))?;
    }
    let options = format!("lowerdir={directory},upperdir={upper},workdir={work}");
    mount(Some("overlay"), directory, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mount an overlay on {directory} (a cluster needs overlayfs, and root)"))
}

fn tmpfs(directory: &str) -> Result<()> {
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("mount tmpfs on {directory}"))
}

fn write(path: &str, text: &str) -> Result<()> {
    // On many machines a link to somewhere in /run, which is empty here.
    let _ = fs::remove_file(path);
    fs::write(path, text).with_context(|| format!("write {path}"))
}

/// The node's own sysfs hides the cgroup mounts of the one below it.
fn cgroups_over_own_sysfs() -> Result<()> {
    umount2("/sys", MntFlags::empty()).context("look below the node's sysfs")?;
    let kept = format!("{LAYERS}/cgroup");
    fs::create_dir_all(&kept).with_context(|| format!("make {kept}"))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some("/sys/fs/cgroup"), Path::new(&kept), None::<&str>, bind, None::<&str>)
        .context("keep the cgroup mounts")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>).context("mount sysfs on /sys")?;
    mount(Some(Path::new(&kept)), "/sys/fs/cgroup", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("put the cgroup mounts back")
}
