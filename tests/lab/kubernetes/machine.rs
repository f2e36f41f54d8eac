//! One node as a machine of a cluster: runtime, kubelet and kube-proxy in the namespaces of a lab node.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{ControlPlane, Proxy};
use crate::go;
use crate::host::Host;
use crate::node::Node;
use crate::process::{Command, Process, tail};
use crate::runtime::{Release, Runtime, SOCKET, in_path_of};

/// A machine of a cluster. Its programs end when it is dropped; containers end with the lab.
#[derive(Debug)]
pub(super) struct Machine {
    node: Node,
    proxy: Option<Process>,
    kubelet: Option<Process>,
    runtime: Runtime,
}

impl Machine {
    /// The runtime, with these images.
    pub(super) fn start(node: &Node, images: &[Vec<u8>]) -> Result<Self> {
        let runtime = Runtime::start(node, Release::Current, images)?;
        Ok(Self { node: node.clone(), proxy: None, kubelet: None, runtime })
    }

    pub(super) fn import(&self, archive: &[u8]) -> Result<()> {
        self.runtime.import(archive)
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
        let list = || self.runtime.ctr().map(|ctr| ctr.arg("containers"));
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
        let all = [("kubelet", &self.kubelet), ("kube-proxy", &self.proxy)];
        let running = all.iter().filter_map(|(name, process)| Some((name, process.as_ref()?)));
        let others = running.map(|(name, process)| {
            format!("--- {name} of {}\n{}\n", self.node.name(), tail(&process.stderr(), 40))
        });
        std::iter::once(self.runtime.log_tail()).chain(others).collect()
    }

    /// A program with those that it runs in its path.
    fn command(&self, name: &str) -> Result<Command> {
        Ok(in_path_of(&self.node, &go::program(name)?, &go::program("containerd-shim-runc-v2")?))
    }
}

fn kubelet_config(cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
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
