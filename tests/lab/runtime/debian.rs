//! containerd as Debian 12 ships it, for runtimes as old as clusters still have them.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::binaries::target_directory;

/// A directory that has them already.
const VARIABLE: &str = "DEBIAN_CONTAINERD";
/// As apt has them; not installed, only unpacked.
const PACKAGES: [&str; 2] = ["containerd=1.6.*", "runc=1.1.*"];
const PROGRAMS: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];
const REMEDY: &str = "containerd 1.6 of Debian 12 is needed: run on Debian 12, or set DEBIAN_CONTAINERD to a directory with \
     containerd, containerd-shim-runc-v2, ctr and runc of those lines";

/// The directory with its programs: the one that a variable names, or one in the target directory, filled by whoever asks first.
///
/// # Errors
/// One sentence that says what is needed.
pub fn programs() -> Result<PathBuf> {
    if let Some(directory) = env::var_os(VARIABLE).map(PathBuf::from) {
        let missing: Vec<_> = PROGRAMS.iter().filter(|name| !directory.join(name).is_file()).collect();
        ensure!(missing.is_empty(), "{} of {VARIABLE} has no {missing:?}: {REMEDY}", directory.display());
        return Ok(directory);
    }
    let cache = target_directory()?.join("debian");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let lock = File::create(cache.join("containerd.lock")).context("make a lock file")?;
    lock.lock().context("lock it")?;
    let directory = cache.join("containerd-1.6");
    if !directory.is_dir() {
        let aside = cache.join("containerd.new");
        // What somebody who was killed left.
        let _ = fs::remove_dir_all(&aside);
        fs::create_dir_all(&aside).with_context(|| format!("make {}", aside.display()))?;
        unpack(&aside)?;
        fs::rename(aside.join("programs"), &directory)
            .with_context(|| format!("make {}", directory.display()))?;
        fs::remove_dir_all(&aside).with_context(|| format!("remove {}", aside.display()))?;
    }
    Ok(directory)
}

fn unpack(place: &Path) -> Result<()> {
    let download =
        || run(Command::new("apt-get").args(["download", "-qq"]).args(PACKAGES).current_dir(place));
    if download().is_err() {
        // A new machine has no lists of packages yet.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        download()?;
    }
    let tree = place.join("tree");
    for entry in fs::read_dir(place).context("see what came")? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            run(Command::new("dpkg").arg("-x").arg(path).arg(&tree))?;
        }
    }
    let programs = place.join("programs");
    fs::create_dir(&programs).with_context(|| format!("make {}", programs.display()))?;
    for name in PROGRAMS {
        let found = ["usr/bin", "usr/sbin"].map(|place| tree.join(place).join(name));
        // One of them may be a link to the other, as seen from the root of an installed system.
        let found = found.iter().find(|path| path.symlink_metadata().is_ok_and(|file| file.is_file()));
        let found = found.with_context(|| format!("Debian's packages have no {name}: {REMEDY}"))?;
        fs::rename(found, programs.join(name)).with_context(|| format!("move {}", found.display()))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}: {REMEDY}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}; {REMEDY}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
