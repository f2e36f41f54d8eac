//! The programs under test. `cargo test` does not build other packages' binaries, and a stale one would be used
//! in silence: so the lab builds them, once per process and under a lock.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

/// Which artifacts belong to the running test program.
#[derive(Debug)]
struct Target {
    directory: PathBuf,
    is_test: bool,
    profile: String,
    triple: Option<String>,
    artifacts: PathBuf,
}

impl Binaries {
    /// Builds the programs in the profile and target directory of the running program, unless done before.
    ///
    /// # Errors
    /// If the build fails; the compiler's words have gone to standard error.
    pub fn build() -> Result<Self> {
        static BUILT: OnceLock<Result<Binaries, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        built.clone().map_err(|why| anyhow!(why))
    }

    /// The daemon.
    #[must_use]
    pub fn overlayd(&self) -> PathBuf {
        self.directory.join("overlayd")
    }

    /// The CNI plugin.
    #[must_use]
    pub fn cni_shim(&self) -> PathBuf {
        self.directory.join("cni-shim")
    }

    /// The lab's own agent.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.directory.join("lab-agent")
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// `target[/triple]/profile[/deps]/program`.
fn target() -> Result<Target> {
    let program = env::current_exe().context("where is this program")?;
    let mut artifacts = program.parent().context("a program without a directory")?.to_owned();
    let is_test = artifacts.file_name().is_some_and(|name| name == "deps");
    if is_test {
        artifacts.pop();
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let profile = match name(&artifacts).as_deref() {
        Some("debug") => "dev".to_owned(),
        Some(other) => other.to_owned(),
        None => bail!("{} is not in a cargo target directory", program.display()),
    };
    let mut directory = artifacts.parent().context("no target directory")?.to_owned();
    let mut triple = None;
    // Cargo marks the top of a target directory with this file.
    if !directory.join("CACHEDIR.TAG").exists() && !directory.join(".rustc_info.json").exists() {
        triple = name(&directory);
        directory.pop();
    }
    Ok(Target { directory, is_test, profile, triple, artifacts })
}

/// What cargo told this program about its own package is no business of a build: `ring` builds anew, and with it all that stands on
/// it, whenever one of these variables is another one than last time.
fn forget_own_package(cargo: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
}

/// The target directory of the running program.
pub(crate) fn target_directory() -> Result<PathBuf> {
    target().map(|target| target.directory)
}

fn build() -> Result<Binaries> {
    let target = target()?;
    let path = target.directory.join("lab-build.lock");
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    lock.lock().with_context(|| format!("lock {}", path.display()))?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?.join("Cargo.toml");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("build").arg("--manifest-path").arg(&manifest);
    cargo.args(["--package", "overlayd", "--package", "cni-shim", "--package", "tests", "--bins"]);
    cargo.args(["--profile", &target.profile]).arg("--target-dir").arg(&target.directory);
    if let Some(triple) = &target.triple {
        cargo.args(["--target", triple]);
    }
    forget_own_package(&mut cargo);
    // People who run the demo want to see progress; a test's output is for the test.
    if target.is_test {
        cargo.arg("--quiet");
    }
    let status = cargo.stdin(Stdio::null()).stdout(Stdio::null()).status().context("run cargo build")?;
    if !status.success() {
        bail!("the programs under test do not build ({status}); the compiler's words are above");
    }
    Ok(Binaries { directory: target.artifacts })
}

/// The programs as they are shipped, static and optimised: builds them as `cargo ship` does, unless done before. The daemon, then the
/// plugin.
///
/// # Errors
/// If the build fails; the compiler's words have gone to standard error.
pub fn shipped() -> Result<[PathBuf; 2]> {
    static BUILT: OnceLock<Result<[PathBuf; 2], String>> = OnceLock::new();
    BUILT.get_or_init(|| ship().map_err(|error| format!("{error:#}"))).clone().map_err(|why| anyhow!(why))
}

fn ship() -> Result<[PathBuf; 2]> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["ship", "--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(target_directory()?);
    // They would be used instead of those that the alias names.
    forget_own_package(&mut cargo);
    cargo.current_dir(workspace).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("run cargo ship")?;
    if !output.status.success() {
        bail!("the shipped programs do not build ({}); the compiler's words are above", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let find = |name: &str| {
        messages.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from))?
        })
    };
    let program = |name: &str| find(name).with_context(|| format!("cargo ship built no {name}"));
    Ok([program("overlayd")?, program("cni-shim")?])
}
