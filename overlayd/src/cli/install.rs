//! `overlayd install`: puts the CNI plugin where the container runtime looks for it. Repeating it is harmless.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{complain, print};
use crate::core::config::Config;
use crate::core::conflist::{LOOPBACK, PLUGIN};
use crate::edge::place::place;

/// Name of the plugin beside this program, in the image and where cargo builds both.
const BESIDE: &str = "cni-shim";

/// Mode of a program for everybody.
const MODE: u32 = 0o755;

/// Copies the plugin, by default the one beside this program, into the runtime's directory.
pub(super) fn install(config: &Config, plugin: Option<&Path>) -> Result<()> {
    let source = match plugin {
        Some(path) => path.to_owned(),
        None => beside_us()?,
    };
    let contents = fs::read(&source).with_context(|| format!("read the plugin {}", source.display()))?;
    ensure!(contents.starts_with(b"\x7fELF"), "the plugin {} is not a program", source.display());
    let directory = &config.cni_bin_dir;
    fs::create_dir_all(directory).with_context(|| format!("make the directory {}", directory.display()))?;
    let target = directory.join(PLUGIN);
    if is_installed(&target, &contents) {
        print(&format!("{} is up to date\n", target.display()));
    } else {
        place(&target, &contents, MODE).with_context(|| format!("install {}", target.display()))?;
        print(&format!("installed {}\n", target.display()));
    }
    if !directory.join(LOOPBACK).exists() {
        complain(&format!(
            "{} is missing: containerd before 2.0 starts no pod without it; install the package kubernetes-cni or the CNI reference plugins",
            directory.join(LOOPBACK).display()
        ));
    }
    Ok(())
}

fn beside_us() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find out where this program is")?;
    Ok(program.with_file_name(BESIDE))
}

/// Another file of the same contents is not worth a write: the disk of a node may be flash.
fn is_installed(target: &Path, contents: &[u8]) -> bool {
    let same = || -> io::Result<bool> {
        let held = fs::symlink_metadata(target)?;
        Ok(held.is_file() && held.permissions().mode() & 0o7777 == MODE && fs::read(target)? == contents)
    };
    same().unwrap_or(false)
}
