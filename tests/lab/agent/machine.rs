//! A node that is a whole machine: what kubelet and runtime write stays its own, and what they mount is seen by all of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Holds what the machine writes, in the node's own memory.
const LAYERS: &str = "/run/machine";

/// What stands in `/run` for a disk, and what for things outside of the machine.
const KEPT: [&str; 2] = [LAYERS, "/run/lab"];

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

/// Ends every program of this machine and empties what was in its memory; what is on its disk stays.
pub(crate) fn cut_power() -> Result<()> {
    // Who starts a program must not be quicker than we are.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let running = programs()?;
        if running.is_empty() {
            break;
        }
        ensure!(Instant::now() < end, "processes {running:?} do not end");
        for pid in running {
            // One that is gone by now is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    // proc_pid_mountinfo(5): the mount point is the fifth field.
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let volatile = places.filter(|place| place.starts_with("/run/") && !place.starts_with(LAYERS));
    for place in volatile.collect::<Vec<_>>().into_iter().rev() {
        umount2(place, MntFlags::MNT_DETACH).with_context(|| format!("unmount {place}"))?;
    }
    for entry in fs::read_dir("/run").context("look into /run")? {
        let path = entry?.path();
        if KEPT.iter().any(|kept| path == Path::new(kept)) {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// The processes in this mount namespace but for this one, and all that they started.
fn programs() -> Result<Vec<i32>> {
    let own = fs::read_link("/proc/self/ns/mnt").context("look at /proc/self/ns/mnt")?;
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("look into /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // proc_pid_stat(5): state and parent follow the name, which ends with the last parenthesis.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (Some(state), Some(parent)) = (fields.next(), fields.next()) else { continue };
        if state != "Z" {
            parents.push((pid, parent.parse::<i32>().unwrap_or_default()));
        }
    }
    let is_here = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|space| space == own);
    let us = std::process::id().cast_signed();
    let mut found: BTreeSet<i32> =
        parents.iter().map(|(pid, _)| *pid).filter(|pid| *pid != us && is_here(*pid)).collect();
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return Ok(found.into_iter().collect());
        }
        found.extend(more);
    }
}
