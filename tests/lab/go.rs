//! The reference CNI plugins, built from their Go modules: versions and hashes are pinned in `tests/go/cni`.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::binaries::target_directory;
use crate::packet::hex;

/// What is built.
pub const PLUGINS: [&str; 5] = ["cnitool", "host-local", "portmap", "bandwidth", "ptp"];

const SUMS: &str = include_str!("../go/cni/go.sum");

const REMEDY: &str = "the reference CNI plugins are needed: install Go 1.24 or newer, or set CNI_PLUGINS to a directory with \
    cnitool, host-local, portmap, bandwidth and ptp";

/// The directory with the reference plugins: that of `CNI_PLUGINS`, or one under the target directory, filled by the first
/// test that asks.
///
/// # Errors
/// One sentence that says what to install.
pub fn cni_plugins() -> Result<PathBuf> {
    if let Some(directory) = env::var_os("CNI_PLUGINS").map(PathBuf::from) {
        let missing: Vec<&str> = PLUGINS.into_iter().filter(|name| !directory.join(name).is_file()).collect();
        if !missing.is_empty() {
            bail!("{} of CNI_PLUGINS has no {}: {REMEDY}", directory.display(), missing.join(", "));
        }
        return Ok(directory);
    }
    let target = target_directory()?;
    // A new pin is a new directory.
    let pin = hex(&Sha256::digest(SUMS)[..6]);
    let directory = target.join(format!("cni-plugins-{pin}"));
    let path = target.join("cni-plugins.lock");
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    lock.lock().with_context(|| format!("lock {}", path.display()))?;
    if !PLUGINS.iter().all(|name| directory.join(name).is_file()) {
        build(&directory)?;
    }
    Ok(directory)
}

fn build(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go/cni");
    let mut go = Command::new(env::var_os("GO").unwrap_or_else(|| "go".into()));
    go.args(["build", "-trimpath", "-mod=readonly", "-o"]).arg(directory).arg("tool");
    go.current_dir(module).env("CGO_ENABLED", "0").stdin(Stdio::null()).stdout(Stdio::null());
    let status = go.status().with_context(|| format!("run go: {REMEDY}"))?;
    if !status.success() {
        bail!("go build failed ({status}), its words are above; {REMEDY}");
    }
    Ok(())
}
