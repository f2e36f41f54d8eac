//! A pod: a network namespace that the real plugin has plumbed.

use std::net::IpAddr;
use std::ops::Deref;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wire::ipc::Attachment;

use crate::host::{Host, run_plugin};
use crate::must;
use crate::node::{Node, RUN_DIR};
use crate::packet;
use crate::process::Output;

/// Name of the lab's CNI network.
pub const NETWORK: &str = "overlay";

/// A pod. Dereferences to its [`Host`]. Not deleted when dropped: the lab's end is enough.
#[derive(Clone, Debug)]
pub struct Pod {
    host: Host,
    cni: Cni,
    result: Value,
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Pod {
    pub(crate) fn add(node: &Node, name: &str) -> Result<Self> {
        let mut cni = Cni::prepare(node, name)?;
        let output = cni.try_call("ADD")?;
        if !output.success() {
            bail!("ADD of pod {name} on {} failed: {output}", node.name());
        }
        let result: Value = serde_json::from_str(&output.stdout)
            .with_context(|| format!("result of ADD: {}", output.stdout))?;
        let addresses = addresses(&result)?;
        cni.previous = Some(result.clone());
        let label = format!("{name}@{}", node.name());
        let host = node.in_netns(label, PathBuf::from(&cni.netns), addresses);
        Ok(Self { host, cni, result })
    }

    /// The plugin's result of ADD.
    #[must_use]
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// The container id, 64 hex digits.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.cni.container
    }

    /// The name of the host end of its veth pair.
    #[must_use]
    pub fn host_link(&self) -> String {
        self.cni.host_link()
    }

    /// For other verbs and other ways of calling.
    #[must_use]
    pub fn cni(&self) -> Cni {
        self.cni.clone()
    }

    /// CHECK.
    #[must_use]
    #[track_caller]
    pub fn check(&self) -> Output {
        self.cni.call("CHECK")
    }

    /// DEL, then the namespace is removed, as a runtime does. May be called again.
    #[track_caller]
    pub fn del(&self) -> Output {
        let output = self.cni.call("DEL");
        self.cni.remove_netns();
        output
    }
}

/// The addresses in a result of ADD, IPv4 first.
fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let list = result["ips"].as_array().context("a result without ips")?;
    let mut addresses = Vec::new();
    for entry in list {
        let text = entry["address"].as_str().context("an ip without address")?;
        let (address, _) = text.split_once('/').context("an address without prefix length")?;
        addresses.push(address.parse::<IpAddr>().with_context(|| format!("address {text}"))?);
    }
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

/// A call of the plugin as a runtime makes it: change the fields, then [`Cni::call`].
#[derive(Clone, Debug)]
pub struct Cni {
    host: Host,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; may be empty for DEL.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub plugin_path: String,
    /// The network configuration without `prevResult`.
    pub config: Value,
    /// `prevResult`, given to every verb but ADD.
    pub previous: Option<Value>,
}

impl Cni {
    /// Makes a namespace for a pod of this name, and a call that fits it; nothing is called yet.
    ///
    /// # Errors
    /// If the namespace cannot be made.
    pub fn prepare(node: &Node, name: &str) -> Result<Self> {
        let seed = format!("{name} {} {}", node.name(), fastrand::u128(..));
        let container = packet::hex(&Sha256::digest(seed.as_bytes()));
        let short = format!("cni-{}", &container[..12]);
        node.command("lab-agent").args(["netns-add", &short]).try_run()?;
        Ok(Self {
            host: Host::clone(node),
            netns: format!("/run/netns/{short}"),
            ifname: "eth0".into(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container}"
            ),
            plugin_path: "/opt/cni/bin".into(),
            config: json!({
                "cniVersion": "1.0.0",
                "name": NETWORK,
                "type": "overlayd",
                "socket": format!("{RUN_DIR}/cni.sock"),
            }),
            previous: None,
            container,
        })
    }

    /// The environment of a verb.
    #[must_use]
    pub fn environment(&self, verb: &str) -> Vec<(&'static str, String)> {
        vec![
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", self.container.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.ifname.clone()),
            ("CNI_ARGS", self.args.clone()),
            ("CNI_PATH", self.plugin_path.clone()),
        ]
    }

    /// What goes to standard input for a verb.
    #[must_use]
    pub fn stdin(&self, verb: &str) -> String {
        let mut config = self.config.clone();
        if let (Some(previous), true) = (&self.previous, verb != "ADD") {
            config["prevResult"] = previous.clone();
        }
        config.to_string()
    }

    /// Calls the plugin.
    ///
    /// # Panics
    /// If it cannot be started or takes more than 40 s.
    #[must_use]
    #[track_caller]
    pub fn call(&self, verb: &str) -> Output {
        must(self.try_call(verb))
    }

    /// Calls the plugin.
    ///
    /// # Errors
    /// If it cannot be started or takes more than 40 s.
    pub fn try_call(&self, verb: &str) -> Result<Output> {
        self.try_call_of("cni-shim", verb)
    }

    /// Calls another plugin, or another build of ours, in the same way.
    ///
    /// # Errors
    /// If it cannot be started or takes more than 40 s.
    pub fn try_call_of(&self, program: &str, verb: &str) -> Result<Output> {
        run_plugin(&self.host, program, &self.environment(verb), self.stdin(verb))
    }

    /// Starts the plugin and leaves it running, for tests that kill it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn spawn(&self, verb: &str) -> crate::process::Process {
        let mut command = self.host.command("cni-shim").stdin(self.stdin(verb));
        for (key, value) in self.environment(verb) {
            command = command.env(key, value);
        }
        command.spawn()
    }

    /// The pod's namespace as a place to run programs in, with the addresses that this result of ADD names.
    ///
    /// # Panics
    /// If the result names none.
    #[must_use]
    #[track_caller]
    pub fn inside(&self, result: &Value) -> Host {
        let label = format!("{}@{}", &self.container[..8.min(self.container.len())], self.host.label());
        self.host.in_netns(label, PathBuf::from(&self.netns), must(addresses(result)))
    }

    /// The name of the host end of its veth pair.
    #[must_use]
    pub fn host_link(&self) -> String {
        wire::tag::veth_name(&Attachment {
            network: NETWORK.into(),
            container: self.container.clone(),
            ifname: self.ifname.clone(),
        })
    }

    /// Removes the pod's namespace, if it is still there.
    pub fn remove_netns(&self) {
        if let Some(name) = self.netns.strip_prefix("/run/netns/") {
            let _ = self.host.command("lab-agent").args(["netns-delete", name]).try_output();
        }
    }
}
