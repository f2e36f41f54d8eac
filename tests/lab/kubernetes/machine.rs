//! One node as a machine of a cluster: runtime, kubelet and kube-proxy in the namespaces of a lab node.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{ControlPlane, Proxy};
use crate::go;
use crate::host::Host;
use crate::node::Node;
use crate::process::{Command, Process, tail};

/// The image of a pod's first container.
pub(super) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
const RUNTIME_SOCKET: &str = "/run/containerd/containerd.sock";
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine of a cluster. Its programs end when it is dropped; containers end with the lab.
#[derive(Debug)]
pub(super) struct Machine {
    node: Node,
    proxy: Option<Process>,
    kubelet: Option<Process>,
    runtime: Option<Process>,
}

impl Machine {
    /// Mounts of its own, plugins as a distribution installs them, and the runtime with these images.
    pub(super) fn start(node: &Node, images: &[Vec<u8>]) -> Result<Self> {
        node.command("lab-agent").arg("machine").try_run()?;
        let plugins = go::cni_plugins()?;
        for name in ["loopback", "portmap", "bandwidth", "host-local"] {
            let bytes = std::fs::read(plugins.join(name)).with_context(|| format!("read {name}"))?;
            node.try_write_program(&format!("/opt/cni/bin/{name}"), bytes)?;
        }
        let mut machine = Self { node: node.clone(), proxy: None, kubelet: None, runtime: None };
        machine.start_runtime()?;
        for image in images {
            machine.import(image)?;
        }
        Ok(machine)
    }

    fn start_runtime(&mut self) -> Result<()> {
        let runc = go::program("runc")?;
        self.node.try_write_file("/etc/containerd/config.toml", runtime_config(&runc))?;
        let command = self.command("containerd")?.args(["--config", "/etc/containerd/config.toml"]);
        let process = command.try_spawn()?;
        let end = Instant::now() + PATIENCE;
        // It serves before its plugins are up; `plugins ls` of CRI is answered by all of them.
        while !self.ctr()?.args(["--namespace", "k8s.io", "images", "ls", "-q"]).try_output()?.success() {
            if !process.running() || Instant::now() > end {
                bail!("containerd of {} does not serve\n{}", self.node.name(), tail(&process.stderr(), 30));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.runtime = Some(process);
        Ok(())
    }

    pub(super) fn import(&self, archive: &[u8]) -> Result<()> {
        let import = self.ctr()?.args(["--namespace", "k8s.io", "images", "import", "-"]);
        import.stdin(archive).deadline(PATIENCE).try_run().map(drop)
    }

    pub(super) fn start_kubelet(&mut self, plane: &ControlPlane, cgroup: &str) -> Result<()> {
        let name = self.node.name().to_owned();
        self.node.try_write_file(
            "/etc/kubernetes/kubelet.kubeconfig",
            plane.kubeconfig(&format!("system:node:{name}")),
        )?;
        self.node.try_write_file("/etc/kubernetes/kubelet.yaml", kubelet_config(cgroup).to_string())?;
        let addresses: Vec<String> = self.node.addresses().iter().map(ToString::to_string).collect();
        let command = self.command("kubelet")?.args([
            "--config=/etc/kubernetes/kubelet.yaml".to_owned(),
            "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig".to_owned(),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", addresses.join(",")),
        ]);
        self.kubelet = Some(command.try_spawn()?);
        Ok(())
    }

    pub(super) fn start_proxy(&mut self, plane: &ControlPlane, proxy: Proxy) -> Result<()> {
        self.node
            .try_write_file("/etc/kubernetes/proxy.kubeconfig", plane.kubeconfig("system:kube-proxy"))?;
        self.node.try_write_file("/etc/kubernetes/proxy.yaml", proxy_config(proxy, plane).to_string())?;
        let command = self.command("kube-proxy")?.args([
            "--config=/etc/kubernetes/proxy.yaml".to_owned(),
            format!("--hostname-override={}", self.node.name()),
        ]);
        self.proxy = Some(command.try_spawn()?);
        Ok(())
    }

    /// The network namespace of a pod that runs here, as a host to run tools on.
    pub(super) fn pod(&self, namespace: &str, name: &str, addresses: Vec<IpAddr>) -> Result<Host> {
        let filter = format!(
            "labels.\"io.kubernetes.pod.name\"=={name},labels.\"io.kubernetes.pod.namespace\"=={namespace}"
        );
        let list = || self.ctr().map(|ctr| ctr.args(["--namespace", "k8s.io", "containers"]));
        let ids = list()?.args(["ls", "-q", &filter]).try_run()?;
        let id = ids
            .lines()
            .next()
            .with_context(|| format!("no container of pod {name} on {}", self.node.name()))?;
        let info: Value = list()?.args(["info", id]).try_json()?;
        let namespaces =
            info["Spec"]["linux"]["namespaces"].as_array().context("a container without namespaces")?;
        let path =
            namespaces.iter().find(|one| one["type"] == "network").and_then(|one| one["path"].as_str());
        let label = format!("{name}@{}", self.node.name());
        match path {
            Some(path) => Ok(self.node.in_netns(label, path.into(), addresses)),
            None => bail!("pod {name} has no network namespace of its own"),
        }
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn log_tails(&self) -> String {
        let all = [("containerd", &self.runtime), ("kubelet", &self.kubelet), ("kube-proxy", &self.proxy)];
        let running = all.iter().filter_map(|(name, process)| Some((name, process.as_ref()?)));
        running
            .map(|(name, process)| {
                format!("--- {name} of {}\n{}\n", self.node.name(), tail(&process.stderr(), 40))
            })
            .collect()
    }

    fn ctr(&self) -> Result<Command> {
        Ok(self.command("ctr")?.args(["--address", RUNTIME_SOCKET]))
    }

    /// A program with those that it runs in its path.
    fn command(&self, name: &str) -> Result<Command> {
        let program = go::program(name)?;
        let shim = go::program("containerd-shim-runc-v2")?;
        let directory = shim.parent().context("no directory")?.to_string_lossy().into_owned();
        let path = format!("{directory}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(self.node.command(&program.to_string_lossy()).env("PATH", path).env("HOME", "/root"))
    }
}

/// What a distribution's package says, less what a namespace forbids: AppArmor, and a better score with the OOM killer.
fn runtime_config(runc: &Path) -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{RUNTIME_SOCKET}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{}"
Root = "/run/runc"
"#,
        runc.display()
    )
}

fn kubelet_config(cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{RUNTIME_SOCKET}"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [super::DNS_ADDRESS],
        "resolvConf": "/etc/resolv.conf",
        // The lab is closed to everybody else.
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        // This machine's disk and memory are not the cluster's.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "oomScoreAdj": 0,
        "protectKernelDefaults": false,
        "shutdownGracePeriod": "0s",
        "nodeStatusUpdateFrequency": "5s",
    })
}

fn proxy_config(proxy: Proxy, plane: &ControlPlane) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "/etc/kubernetes/proxy.kubeconfig"},
        "mode": proxy.name(),
        "clusterCIDR": plane.pod_cidr(),
        // The table's size belongs to the machine.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    })
}
