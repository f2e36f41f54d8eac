//! One node whose runtime runs sandboxes in overlayd's network, as far as possible from a cluster: no kubelet, no API.

use std::net::IpAddr;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{CONF_DIR, Cgroups, PATIENCE, PAUSE_IMAGE, PLUGIN_DIR, Release, Runtime};
use crate::go;
use crate::host::Host;
use crate::kubernetes::Image;
use crate::lab::Lab;
use crate::must;
use crate::node::Node;
use crate::process::Output;
use crate::protocol::{NftChange, NftFamily};

/// What a node has before anything of overlayd or a runtime is there.
const OWN_LINKS: [&str; 2] = ["lo", "eth0"];
/// Where runtimes keep what is left of an attachment: libcni its results, host-local its leases, everybody the namespaces.
const TRACES: [&str; 3] = ["/var/lib/cni/results", "/var/lib/cni/networks", "/run/netns"];

/// A node with a runtime and the installed plugin. Ends, with every sandbox, when dropped.
#[derive(Debug)]
pub struct Rig {
    // Fields are dropped in this order: the runtime, the lab with all containers, then the cgroups, which are empty by then.
    runtime: Runtime,
    lab: Lab,
    cgroups: Cgroups,
}

/// A pod as the runtime knows it, without a container of its own. Dereferences to its network namespace.
#[derive(Clone, Debug)]
pub struct Sandbox {
    host: Host,
    /// Its id.
    pub id: String,
    /// The path of its network namespace.
    pub netns: String,
}

impl Deref for Sandbox {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Rig {
    /// One node with this runtime, and overlayd's plugin where `overlayd install` puts it. No daemon runs yet.
    ///
    /// # Panics
    /// If that is not possible; the message says what to do.
    #[must_use]
    #[track_caller]
    pub fn start(release: Release) -> Self {
        must(Self::try_start(release))
    }

    fn try_start(release: Release) -> Result<Self> {
        // Before the lab's time runs: building them may take longer.
        go::cni_plugins()?;
        for name in ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "crictl"] {
            release.program(name)?;
        }
        let pause = Image::of_program(PAUSE_IMAGE, &go::program("pause")?).archive()?;
        let lab = Lab::builder().nodes(1).deadline(Duration::from_secs(400)).try_start()?;
        let node = lab.node(1);
        let cgroups = Cgroups::new(&[node.name()])?;
        let runtime = Runtime::start(&node, release, &[pause])?;
        node.overlayd(&["install", "--cni-bin-dir", PLUGIN_DIR]).try_run()?;
        Ok(Self { runtime, lab, cgroups })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> Node {
        self.lab.node(1)
    }

    /// Starts the daemon as its DaemonSet does, with more flags, and does not wait.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn launch_daemon(&self, flags: &[&str]) {
        let place = ["--cni-conf-dir", CONF_DIR, "--cni-bin-dir", PLUGIN_DIR];
        self.node().launch_daemon(&[&place, flags].concat());
    }

    /// Starts the daemon as its DaemonSet does, and waits until the runtime is ready to run pods.
    ///
    /// # Panics
    /// If one of them does not get ready.
    #[track_caller]
    pub fn start_daemon(&self) {
        self.launch_daemon(&[]);
        self.node().wait_ready();
        crate::eventually("the runtime's network is ready", PATIENCE, || self.network().is_ok());
    }

    /// A call of the runtime by its operators' client.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn crictl(&self, args: &[&str]) -> Output {
        must(self.try_crictl(args, ""))
    }

    fn try_crictl(&self, args: &[&str], stdin: &str) -> Result<Output> {
        self.runtime.crictl()?.args(args).stdin(stdin).deadline(PATIENCE).try_output()
    }

    fn answer(&self, args: &[&str]) -> Result<Value> {
        let output = self.try_crictl(args, "")?;
        if !output.success() {
            bail!("crictl {args:?}: {output}");
        }
        serde_json::from_str(&output.stdout).with_context(|| format!("crictl {args:?}: {output}"))
    }

    /// Whether pods can have a network here, by the runtime's word to kubelet: if not, its reason.
    ///
    /// # Errors
    /// The reason.
    pub fn network(&self) -> Result<()> {
        let info = self.answer(&["info"])?;
        let conditions = info["status"]["conditions"].as_array().context("no conditions")?;
        let network = conditions.iter().find(|one| one["type"] == "NetworkReady");
        let network = network.context("no condition NetworkReady")?;
        if network["status"] != true {
            bail!("{}", network["message"].as_str().unwrap_or_default());
        }
        Ok(())
    }

    /// `RunPodSandbox`.
    ///
    /// # Errors
    /// If the runtime fails, in its words.
    pub fn run(&self, name: &str) -> Result<Sandbox> {
        self.run_with(name, &[])
    }

    /// `RunPodSandbox`, with more flags for its client.
    ///
    /// # Errors
    /// If the runtime fails, in its words.
    pub fn run_with(&self, name: &str, flags: &[&str]) -> Result<Sandbox> {
        let config = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "attempt": 0},
            "log_directory": "/var/log/pods",
            "linux": {"cgroup_parent": self.cgroups.of(self.node().name())},
        });
        let args = [&["runp"], flags, &["/dev/stdin"]].concat();
        let output = self.try_crictl(&args, &config.to_string())?;
        if !output.success() {
            bail!("{}", output.stderr.trim());
        }
        let id = output.stdout.trim().to_owned();
        let state = self.answer(&["inspectp", &id])?;
        let address: IpAddr = state["status"]["network"]["ip"].as_str().unwrap_or_default().parse()?;
        let namespaces = state["info"]["runtimeSpec"]["linux"]["namespaces"].as_array();
        let netns = namespaces.into_iter().flatten().find(|one| one["type"] == "network");
        let netns = netns.and_then(|one| one["path"].as_str()).context("no network namespace")?.to_owned();
        let label = format!("{name}@{}", self.node().name());
        Ok(Sandbox { host: self.node().in_netns(label, netns.as_str().into(), vec![address]), id, netns })
    }

    /// `StopPodSandbox` and `RemovePodSandbox`, as kubelet ends a pod.
    ///
    /// # Panics
    /// If the runtime fails.
    #[track_caller]
    pub fn end(&self, sandbox: &Sandbox) {
        for verb in ["stopp", "rmp"] {
            let output = self.crictl(&[verb, &sandbox.id]);
            assert!(output.success(), "{verb} {}: {output}", sandbox.id);
        }
    }

    /// The ids of all sandboxes that the runtime remembers.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    #[track_caller]
    pub fn sandboxes(&self) -> Vec<String> {
        let output = self.crictl(&["pods", "--quiet"]);
        assert!(output.success(), "{output}");
        output.stdout.split_whitespace().map(str::to_owned).collect()
    }

    /// What attachments leave on the node while they live, and must not leave after: links, routes, rules of the source,
    /// namespaces, remembered results, leases of others. Empty on a node without pods. The daemon is not asked.
    ///
    /// # Panics
    /// If the node cannot be looked at.
    #[must_use]
    #[track_caller]
    pub fn traces(&self) -> Vec<String> {
        let node = self.node();
        let seen = node.observe();
        let mut traces: Vec<String> =
            seen.links_named("ovp").into_iter().map(|link| format!("link {link}")).collect();
        let pods = node.pod_cidrs();
        let to_pod = seen.routes.iter().filter(|route| {
            let net = route.destination;
            net.prefix_len() == net.max_prefix_len() && pods.iter().any(|pods| pods.contains(&net))
        });
        traces.extend(to_pod.map(|route| format!("route to {} by {:?}", route.destination, route.link)));
        traces.extend(seen.rules.iter().map(|rule| format!("rule for {}", rule.source)));
        for directory in TRACES {
            // One that is not there holds nothing.
            let files = node.command("/bin/ls").arg(directory).output().stdout;
            traces.extend(files.split_whitespace().map(|file| format!("{directory}/{file}")));
        }
        traces
    }

    /// Kills containerd. Its sandboxes live on.
    pub fn kill_runtime(&mut self) {
        self.runtime.kill();
    }

    /// Starts containerd again.
    ///
    /// # Panics
    /// If it does not serve.
    #[track_caller]
    pub fn start_runtime(&mut self) {
        must(self.runtime.serve());
    }

    /// What a power cut leaves of the node: its disk. Every program ends, `/run` is empty, the kernel holds nothing that was
    /// configured but the uplink, which the operating system would bring up again.
    ///
    /// # Panics
    /// If a part of it fails.
    #[track_caller]
    pub fn cut_power(&mut self) {
        let node = self.node();
        node.command("lab-agent").arg("power-cut").run();
        self.runtime.kill();
        let links = node.observe().links;
        for link in links.iter().filter(|link| !OWN_LINKS.contains(&link.name.as_str())) {
            // One end of a pair takes the other along, and a namespace its links.
            if node.observe().link(&link.name).is_some() {
                node.delete_link(&link.name);
            }
        }
        let configured = node.observe().routes.into_iter().filter(|route| route.link.is_none());
        configured.for_each(|route| node.delete_route_of_metric(route.destination, route.metric));
        node.nft(NftChange::DeleteTable(NftFamily::Inet, "overlayd".into()));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.runtime.log_tail());
        }
    }
}
