//! Other people's programs that tests run, built from their Go modules: versions and hashes are pinned by the small
//! modules under `tests/go`. Whoever has the programs names their directory in a variable, and what is found there is used.

mod modules;

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use self::modules::{CNI, MODULES, Module, Program};
use crate::binaries::target_directory;
use crate::packet::hex;

/// The version of Kubernetes that is built.
#[must_use]
pub fn kubernetes_version() -> &'static str {
    modules::kubernetes_version()
}

/// The directory with the reference CNI plugins and cnitool.
///
/// # Errors
/// One sentence that says what to install.
pub fn cni_plugins() -> Result<PathBuf> {
    if let Some(directory) = env::var_os("CNI_PLUGINS").map(PathBuf::from) {
        let missing: Vec<&str> =
            CNI.programs.iter().map(|one| one.name).filter(|name| !directory.join(name).is_file()).collect();
        if !missing.is_empty() {
            bail!("{} of CNI_PLUGINS has no {}: {}", directory.display(), missing.join(", "), remedy(&CNI));
        }
        return Ok(directory);
    }
    let mut directory = PathBuf::new();
    for program in CNI.programs {
        directory = cached(&CNI, program)?.0.parent().context("no directory")?.to_owned();
    }
    Ok(directory)
}

/// One of the programs: from a directory that a variable names, or from the cache under the target directory, built into it by
/// whoever asks first.
///
/// # Errors
/// One sentence that says what to install.
///
/// # Panics
/// If no module has a program of this name.
pub fn program(name: &str) -> Result<PathBuf> {
    Ok(fetch(name)?.0)
}

/// As [`program`]; also how many seconds the build took, if there was one.
///
/// # Errors
/// One sentence that says what to install.
///
/// # Panics
/// If no module has a program of this name.
pub fn fetch(name: &str) -> Result<(PathBuf, Option<f64>)> {
    let found = MODULES
        .iter()
        .find_map(|module| Some((module, module.programs.iter().find(|one| one.name == name)?)));
    let Some((module, program)) = found else { panic!("no Go module here builds {name}") };
    for variable in module.variables {
        if let Some(path) = env::var_os(variable).map(|directory| Path::new(&directory).join(name))
            && path.is_file()
        {
            return Ok((path, None));
        }
    }
    cached(module, program)
}

/// Every program, by name: what a machine builds that wants to have them all before the tests begin.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODULES.iter().flat_map(|module| module.programs).map(|program| program.name)
}

/// Where the sources of a module lie that the module under `tests/go` of this name requires, for the files in it that are no programs.
///
/// # Errors
/// If Go is not there, or has no such module.
pub fn module_directory(name: &str, path: &str) -> Result<PathBuf> {
    let mut go = Command::new(env::var_os("GO").unwrap_or_else(|| "go".into()));
    go.args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", path]);
    go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(name)).stdin(Stdio::null());
    let output = go.output().context("run go: install Go")?;
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !directory.is_dir() {
        bail!("Go knows no directory of {path}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(directory)
}

fn cached(module: &Module, program: &Program) -> Result<(PathBuf, Option<f64>)> {
    let cache = target_directory()?.join("go");
    let directory = cache.join(format!("{}-{}", module.name, pin(module)));
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let path = cache.join(format!("{}.lock", module.name));
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    lock.lock().with_context(|| format!("lock {}", path.display()))?;
    let path = directory.join(program.name);
    if path.is_file() {
        return Ok((path, None));
    }
    let begin = Instant::now();
    build(module, program, &path)?;
    Ok((path, Some(begin.elapsed().as_secs_f64())))
}

/// A new pin is a new directory.
fn pin(module: &Module) -> String {
    let mut digest = Sha256::new();
    for text in module.files {
        digest.update(text);
    }
    digest.update((module.definitions)().join(" "));
    hex(&digest.finalize()[..6])
}

fn build(module: &Module, program: &Program, path: &Path) -> Result<()> {
    let aside = path.with_extension("new");
    let definitions: String = (module.definitions)().iter().map(|one| format!(" -X {one}")).collect();
    let mut go = Command::new(env::var_os("GO").unwrap_or_else(|| "go".into()));
    go.args(if program.is_test { ["test", "-c"].as_slice() } else { ["build"].as_slice() });
    go.args([
        "-trimpath",
        "-buildvcs=false",
        "-mod=readonly",
        "-ldflags",
        &format!("-s -w{definitions}"),
        "-o",
    ]);
    go.arg(&aside);
    if !module.tags.is_empty() {
        go.args(["-tags", module.tags]);
    }
    go.arg(program.package);
    go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(module.name));
    go.env("CGO_ENABLED", if module.has_c { "1" } else { "0" }).env_remove("GOFLAGS");
    let status = go
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("run go: {}", remedy(module)))?;
    if !status.success() {
        bail!("go builds no {} ({status}), its words are above; {}", program.name, remedy(module));
    }
    std::fs::rename(&aside, path).with_context(|| format!("rename {}", aside.display()))
}

fn remedy(module: &Module) -> String {
    let programs: Vec<&str> = module.programs.iter().map(|program| program.name).collect();
    let compiler = match (module.has_c, module.tags) {
        (true, "") => " and a C compiler",
        (true, _) => ", a C compiler and libseccomp (libseccomp-dev and pkg-config)",
        (false, _) => "",
    };
    format!(
        "{} needed: install Go {} or newer{compiler}, or set {} to a directory with {}",
        module.title,
        module.go,
        module.variables[0],
        programs.join(", ")
    )
}
