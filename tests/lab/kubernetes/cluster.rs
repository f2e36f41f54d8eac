//! A whole cluster: a control plane, and every node of the lab a machine of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::machine::Machine;
use super::{ControlPlane, Image, Proxy};
use crate::binaries::shipped;
use crate::go;
use crate::host::Host;
use crate::lab::{Families, Lab};
use crate::must;
use crate::runtime::{Cgroups, PAUSE_IMAGE};

/// The programs that a whole cluster needs.
const PROGRAMS: [&str; 13] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubectl",
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "pause",
    "agnhost",
];

/// The image that Kubernetes' own tests run in most of their pods: one program that is many servers and clients.
pub const AGNHOST_IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// What to start. Made by [`Cluster::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    nodes: usize,
    families: Families,
    proxy: Proxy,
    images: Vec<Image>,
    deadline: Duration,
}

impl Builder {
    /// How many nodes; 2 if not given.
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// Address families of nodes, pods and Services; IPv4 if not given.
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// How kube-proxy works.
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.proxy = proxy;
        self
    }

    /// One more image, on every node.
    pub fn image(mut self, image: Image) -> Self {
        self.images.push(image);
        self
    }

    /// When the whole is ended; 300 s if not given.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts everything and waits until every kubelet has registered. There is no pod network yet, so no node is Ready.
    ///
    /// # Panics
    /// If that is not possible; the message says what to do.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Cluster {
        must(self.try_start())
    }

    /// Starts everything and waits until every kubelet has registered. There is no pod network yet, so no node is Ready.
    ///
    /// # Errors
    /// If that is not possible; the message says what to do.
    pub fn try_start(self) -> Result<Cluster> {
        // Before anything runs: building them may take longer than a lab's deadline.
        shipped()?;
        go::cni_plugins()?;
        for program in PROGRAMS {
            go::program(program)?;
        }
        let mut images = vec![Image::of_program(PAUSE_IMAGE, &go::program("pause")?)];
        let mut agnhost = Image::of_program(AGNHOST_IMAGE, &go::program("agnhost")?);
        agnhost.arguments = vec!["pause".into()];
        images.push(agnhost);
        images.extend(self.images);
        let archives = images.iter().map(Image::archive).collect::<Result<Vec<_>>>()?;
        let lab = Lab::builder().nodes(self.nodes).underlay(self.families).pods(self.families);
        let lab = lab.deadline(self.deadline).try_start()?;
        let names: Vec<&str> = lab.nodes().iter().map(crate::Node::name).collect();
        let cgroups = Cgroups::new(&names)?;
        let archives = &archives;
        let (plane, machines) = std::thread::scope(|scope| {
            let machines: Vec<_> =
                lab.nodes().iter().map(|node| scope.spawn(move || Machine::start(node, archives))).collect();
            let plane = ControlPlane::builder(&lab).on(&lab.node(1)).scheduler().try_start();
            let joined = machines.into_iter().map(|thread| {
                thread.join().map_err(|_| anyhow!("a thread panicked, its message is above")).flatten()
            });
            (plane, joined.collect::<Result<Vec<_>>>())
        });
        let mut cluster = Cluster { machines: machines?, plane: plane?, lab, cgroups };
        for machine in &mut cluster.machines {
            let cgroup = cluster.cgroups.of(machine.node().name());
            machine.start_kubelet(&cluster.plane, &cgroup)?;
            machine.start_proxy(&cluster.plane, self.proxy)?;
        }
        let expected = cluster.machines.len();
        cluster.try_wait("all kubelets have registered", |cluster| {
            let nodes = cluster.plane.try_get(&["nodes"])?;
            Ok(nodes["items"].as_array().is_some_and(|items| items.len() == expected))
        })?;
        Ok(cluster)
    }
}

/// A running cluster. Ends, with everything in it, when dropped.
#[derive(Debug)]
pub struct Cluster {
    // Fields are dropped in this order: programs, the lab with all containers, then the cgroups, which are empty by then.
    machines: Vec<Machine>,
    plane: ControlPlane,
    lab: Lab,
    cgroups: Cgroups,
}

impl Cluster {
    /// Starts the description of a cluster.
    pub fn builder() -> Builder {
        Builder {
            nodes: 2,
            families: Families::V4,
            proxy: Proxy::Nftables,
            images: Vec::new(),
            deadline: Duration::from_secs(300),
        }
    }

    /// The lab that it lives in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Its control plane.
    #[must_use]
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Loads one more image on every node.
    ///
    /// # Errors
    /// If a runtime refuses it.
    pub fn import(&self, image: &Image) -> Result<()> {
        let archive = image.archive()?;
        for machine in &self.machines {
            machine.import(&archive).with_context(|| format!("load {}", image.name))?;
        }
        Ok(())
    }

    /// Waits until every node is Ready, which it is once its pod network is.
    ///
    /// # Panics
    /// If that does not happen; with the logs of everything.
    #[track_caller]
    pub fn wait_nodes_ready(&self) {
        must(self.try_wait_nodes_ready());
    }

    /// Waits until every node is Ready.
    ///
    /// # Errors
    /// If that does not happen; with the logs of everything.
    pub fn try_wait_nodes_ready(&self) -> Result<()> {
        self.try_wait("all nodes are Ready", |cluster| {
            let nodes = cluster.plane.try_get(&["nodes"])?;
            Ok(nodes["items"].as_array().is_some_and(|nodes| nodes.iter().all(is_ready)))
        })
    }

    /// Waits until so many pods with this label are Ready; their objects, sorted by node.
    ///
    /// # Panics
    /// If that does not happen; with the logs of everything.
    #[must_use]
    #[track_caller]
    pub fn wait_pods(&self, namespace: &str, label: &str, count: usize) -> Vec<Value> {
        must(self.try_wait_pods(namespace, label, count))
    }

    /// Waits until so many pods with this label are Ready; their objects, sorted by node.
    ///
    /// # Errors
    /// If that does not happen; with the logs of everything.
    pub fn try_wait_pods(&self, namespace: &str, label: &str, count: usize) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        self.try_wait(&format!("{count} pods {label} are Ready"), |cluster| {
            let pods = cluster.plane.try_get(&["pods", "-n", namespace, "-l", label])?;
            found = pods["items"].as_array().cloned().unwrap_or_default();
            Ok(found.len() == count && found.iter().all(is_ready))
        })?;
        found.sort_by_key(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned));
        Ok(found)
    }

    /// The place in which a running pod's programs run, for tools of the lab.
    ///
    /// # Panics
    /// If it does not run here.
    #[must_use]
    #[track_caller]
    pub fn pod(&self, object: &Value) -> Host {
        must(self.try_pod(object))
    }

    /// The place in which a running pod's programs run, for tools of the lab.
    ///
    /// # Errors
    /// If it does not run here.
    pub fn try_pod(&self, object: &Value) -> Result<Host> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let node = text(&object["spec"]["nodeName"]);
        let machine = self.machines.iter().find(|machine| machine.node().name() == node);
        let machine = machine.with_context(|| format!("no node {node:?}"))?;
        let metadata = &object["metadata"];
        let addresses = object["status"]["podIPs"].as_array().context("a pod without addresses")?;
        let addresses = addresses.iter().map(|one| Ok(text(&one["ip"]).parse()?)).collect::<Result<_>>()?;
        machine.pod(&text(&metadata["namespace"]), &text(&metadata["name"]), addresses)
    }

    /// Asks until the answer is yes.
    ///
    /// # Errors
    /// If it is still no, or an error, after a minute and a half; with the state and the logs of everything.
    pub fn try_wait(&self, what: &str, mut condition: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let answer = condition(self);
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > end {
                let why = answer.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
                bail!("waited in vain: {what}{why}\n{}", self.describe());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Nodes, pods, events and the end of every log, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let commands = [
            "get nodes -o wide",
            "get pods -A -o wide",
            "describe nodes",
            "get events -A --sort-by=.lastTimestamp",
        ];
        for command in commands {
            let args: Vec<&str> = command.split(' ').collect();
            let answer = self.plane.try_kubectl(&args).unwrap_or_else(|error| format!("{error:#}"));
            text += &format!("$ kubectl {command}\n{answer}\n");
        }
        text += &self.plane.log_tails();
        self.machines.iter().for_each(|machine| text += &machine.log_tails());
        text
    }
}

/// Whether a Node's or a Pod's condition Ready is True.
#[must_use]
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
