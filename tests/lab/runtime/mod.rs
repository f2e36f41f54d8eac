//! A real container runtime on a node: containerd and runc, with `/etc`, `/opt`, `/var` and `/run` of the node's own.
//!
//! ```no_run
//! use tests::runtime::{Release, Rig};
//!
//! let rig = Rig::start(Release::Current);
//! rig.start_daemon();
//! let sandbox = rig.run("pod").unwrap();
//! assert_eq!(rig.node().ping(sandbox.v4(), 56, 1).answered, 1);
//! ```

mod cgroups;
mod debian;
mod rig;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub(crate) use self::cgroups::Cgroups;
pub use self::debian::programs as debian_programs;
pub use self::rig::{Rig, Sandbox};
use crate::go;
use crate::node::Node;
use crate::process::{Command, Process, tail};

/// The image of a pod's first container.
pub(crate) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
/// Where it serves CRI.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where it looks for plugins.
const PLUGIN_DIR: &str = "/opt/cni/bin";
/// Where it looks for network configurations.
const CONF_DIR: &str = "/etc/cni/net.d";
const CONFIG: &str = "/etc/containerd/config.toml";
const CLIENT_CONFIG: &str = "/etc/crictl.yaml";
const PATIENCE: Duration = Duration::from_secs(60);

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Of line 2, from its Go module.
    Current,
    /// Of line 1.6, with its runc, from Debian 12.
    Debian,
}

impl Release {
    fn program(self, name: &str) -> Result<PathBuf> {
        match self {
            Self::Debian if name != "crictl" => Ok(debian_programs()?.join(name)),
            Self::Current | Self::Debian => go::program(name),
        }
    }

    /// What a distribution's package says, less what a namespace forbids: AppArmor, and a better score with the OOM killer.
    fn config(self, runc: &Path) -> String {
        let runc = runc.display();
        match self {
            Self::Current => format!(
                r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{PLUGIN_DIR}"]
conf_dir = "{CONF_DIR}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "/run/runc"
"#
            ),
            Self::Debian => format!(
                r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGIN_DIR}"
conf_dir = "{CONF_DIR}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "/run/runc"
"#
            ),
        }
    }
}

/// A runtime on a node. It ends when this is dropped; containers end with the lab.
#[derive(Debug)]
pub(crate) struct Runtime {
    node: Node,
    release: Release,
    process: Option<Process>,
}

impl Runtime {
    /// Gives the node mounts of its own and plugins as a distribution installs them, and starts the runtime with these images.
    pub(crate) fn start(node: &Node, release: Release, images: &[Vec<u8>]) -> Result<Self> {
        node.command("lab-agent").arg("machine").try_run()?;
        let plugins = go::cni_plugins()?;
        for name in ["loopback", "portmap", "bandwidth", "host-local"] {
            let bytes = std::fs::read(plugins.join(name)).with_context(|| format!("read {name}"))?;
            node.try_write_program(&format!("{PLUGIN_DIR}/{name}"), bytes)?;
        }
        let config = release.config(&release.program("runc")?);
        node.try_write_file(CONFIG, config)?;
        let client =
            format!("runtime-endpoint: unix://{SOCKET}\nimage-endpoint: unix://{SOCKET}\ntimeout: 60\n");
        node.try_write_file(CLIENT_CONFIG, client)?;
        let mut runtime = Self { node: node.clone(), release, process: None };
        runtime.serve()?;
        for image in images {
            runtime.import(image)?;
        }
        Ok(runtime)
    }

    /// Starts it, for the first time or again, and waits until it answers.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let process = self.command("containerd")?.args(["--config", CONFIG]).try_spawn()?;
        let end = Instant::now() + PATIENCE;
        // It serves before its plugins are up; this is answered by all of them.
        while !self.ctr()?.args(["images", "ls", "-q"]).try_output()?.success() {
            if !process.running() || Instant::now() > end {
                bail!("containerd of {} does not serve\n{}", self.node.name(), tail(&process.stderr(), 30));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Kills it. Containers and those that look after them live on.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    pub(crate) fn import(&self, archive: &[u8]) -> Result<()> {
        let import = self.ctr()?.args(["images", "import", "-"]);
        import.stdin(archive).deadline(PATIENCE).try_run().map(drop)
    }

    /// Its own client, for what Kubernetes does with it.
    pub(crate) fn ctr(&self) -> Result<Command> {
        Ok(self.command("ctr")?.args(["--address", SOCKET, "--namespace", "k8s.io"]))
    }

    /// The client of CRI, as operators have it.
    pub(crate) fn crictl(&self) -> Result<Command> {
        self.command("crictl")
    }

    /// A program with those that it runs in its path.
    fn command(&self, name: &str) -> Result<Command> {
        let program = self.release.program(name)?;
        Ok(in_path_of(&self.node, &program, &self.release.program("containerd-shim-runc-v2")?))
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.process.as_ref().map(Process::stderr).unwrap_or_default();
        format!("--- containerd of {}\n{}\n", self.node.name(), tail(&log, 40))
    }
}

/// This program, with the directory of another first in its path.
pub(crate) fn in_path_of(node: &Node, program: &Path, other: &Path) -> Command {
    let directory = other.parent().unwrap_or(Path::new("/")).display();
    let path = format!("{directory}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    node.command(&program.to_string_lossy()).env("PATH", path).env("HOME", "/root")
}
