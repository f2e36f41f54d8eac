//! A black-box suite of the CNI contract: it drives any plugin binary by environment and standard input, and looks at
//! what it prints and at what the namespaces hold afterwards. It knows nothing of a plugin's inside.
//!
//! Every case has namespaces and container ids of its own, so one that fails does not make others fail.

mod add;
mod check;
mod del;
mod gc;
mod input;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::host::Host;
use crate::node::Node;
use crate::observe::Observed;
use crate::pod::Cni;
use crate::process::Output;

/// The plugin under test.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Where it runs.
    pub node: Node,
    /// Path of the binary, or a name that [`Host::command`] knows.
    pub program: String,
    /// A network configuration that works, without `cniVersion` and `name`.
    pub config: Value,
    /// `CNI_PATH`.
    pub plugin_path: String,
}

/// How one case went.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What must hold.
    pub fact: &'static str,
    /// Why it does not, if so.
    pub failure: Option<String>,
}

/// All versions that runtimes still use.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a loaded machine adds to the time that a plugin takes by itself.
const OVERHEAD: Duration = Duration::from_secs(4);

type Case = (&'static str, fn(&Subject) -> Result<()>);

const CASES: &[Case] = &[
    ("VERSION lists every version that runtimes use, whatever the environment and input", input::version),
    ("without CNI_COMMAND nothing happens and nothing is printed", input::no_command),
    ("an unknown verb is error 4", input::unknown_verb),
    ("missing variables are error 4 and all named", input::missing_variables),
    ("malformed ids and interface names are error 4", input::malformed_variables),
    ("environment, JSON, name, version: faults are judged in this order", input::order_of_faults),
    ("an error is one document that names the version it is of", input::error_shape),
    ("input that is too large, too deep or no text is an error", input::monstrous_input),
    ("input that never ends is given up within 20 s, and nothing is left", input::endless_input),
    ("ADD answers in the exact shape of each version", add::shapes),
    ("ADD returns when the container can talk", add::usable_at_once),
    ("ADD tolerates null and unknown fields, in both spellings of runtimeConfig", add::tolerant),
    ("ADD takes every legal container id and interface name, and arguments only as text", add::odd_names),
    ("ADD of an interface that exists is an error and changes nothing", add::add_twice),
    ("one container may have a second interface", add::second_interface),
    ("a second interface answers by itself", add::second_interface_answers),
    ("ADD into something that is no namespace is an error and leaves nothing", add::no_namespace),
    ("ADD into the host's own namespace is error 8", add::own_namespace),
    ("ADD with closed standard output fails and leaves nothing", add::closed_stdout),
    ("ADD whose answer cannot be written fails and leaves nothing", add::unwritable_stdout),
    ("eight ADDs at once get eight addresses", add::parallel),
    ("an address that was freed is not the next one to be given", add::late_reuse),
    ("ADD that is killed is cleaned up by DEL, and the container can be added again", add::killed_add),
    ("CHECK is silent after ADD, and needs prevResult and 0.4.0", check::check),
    ("CHECK finds a missing address, route, link and a link that is down", check::check_damage),
    ("CHECK finds damage on the host's side: link down, route missing", check::check_host_damage),
    ("CHECK finds no damage in what others add", check::check_additions),
    ("DEL frees everything, and may come twice", del::del),
    ("DEL needs neither namespace nor prevResult, and takes what is no namespace", del::del_forms),
    ("DEL takes a configuration that changed since, and any prevResult", del::del_changed),
    ("DEL of one interface leaves the container's other one", del::del_one_of_two),
    ("DEL of what was never added succeeds and touches nothing", del::del_unknown),
    ("STATUS is silent within a second, and of 1.1.0", gc::status),
    ("GC frees exactly what is not listed, of its own network", gc::gc),
    ("GC tells two interfaces of one container apart", gc::gc_by_interface),
    ("GC without a list, or with one that is none, frees nothing", gc::gc_without_list),
    ("prevResult on ADD is served whole or refused with 7", add::previous_on_add),
];

/// Runs every case.
#[must_use]
pub fn run(subject: &Subject) -> Vec<Verdict> {
    CASES
        .iter()
        .map(|(fact, case)| Verdict { fact, failure: case(subject).err().map(|why| format!("{why:#}")) })
        .collect()
}

/// The verdicts as a table in Markdown.
#[must_use]
pub fn table(verdicts: &[Verdict]) -> String {
    let passed = verdicts.iter().filter(|verdict| verdict.failure.is_none()).count();
    let mut text = format!("| {passed} of {} | |\n|---|---|\n", verdicts.len());
    for Verdict { fact, failure } in verdicts {
        let failure = failure.as_deref().map_or_else(|| "ok".to_owned(), |why| why.replace(['\n', '|'], " "));
        text += &format!("| {fact} | {failure} |\n");
    }
    text
}

/// A container, and how the plugin is called for it.
struct Container<'a> {
    subject: &'a Subject,
    cni: Cni,
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.call("DEL");
        self.cni.remove_netns();
    }
}

impl<'a> Container<'a> {
    fn new(subject: &'a Subject, version: &str) -> Result<Self> {
        let mut cni = Cni::prepare(&subject.node, "suite")?;
        cni.config = subject.config.clone();
        cni.plugin_path.clone_from(&subject.plugin_path);
        cni.config["cniVersion"] = json!(version);
        cni.config["name"] = json!("suite");
        Ok(Self { subject, cni })
    }

    /// The same container with another interface.
    fn with_ifname(&self, ifname: &str) -> Self {
        let mut cni = self.cni.clone();
        cni.ifname = ifname.into();
        cni.previous = None;
        Self { subject: self.subject, cni }
    }

    fn call(&self, verb: &str) -> Result<Output> {
        self.call_with(verb, self.cni.stdin(verb))
    }

    fn call_with(&self, verb: &str, input: String) -> Result<Output> {
        invoke(self.subject, &self.environment(verb), input)
    }

    fn environment(&self, verb: &str) -> Vec<(&'static str, String)> {
        self.cni.environment(verb)
    }

    fn add(&mut self) -> Result<Value> {
        let result = document(&self.call("ADD")?)?;
        self.cni.previous = Some(result.clone());
        Ok(result)
    }

    fn inside(&self) -> Host {
        let path = PathBuf::from(&self.cni.netns);
        self.subject.node.in_netns("container".into(), path, Vec::new())
    }

    fn observe(&self) -> Observed {
        self.inside().observe()
    }
}

fn invoke(subject: &Subject, environment: &[(&str, String)], input: impl Into<Vec<u8>>) -> Result<Output> {
    let mut command = subject.node.command(&subject.program).stdin(input).deadline(Duration::from_secs(40));
    for (name, value) in environment {
        command = command.env(name, value);
    }
    command.try_output()
}

/// A verb that is of no container: libcni sends the variables all the same, empty.
fn invoke_bare(subject: &Subject, verb: &str, input: String) -> Result<Output> {
    let mut environment = vec![("CNI_COMMAND", verb.to_owned()), ("CNI_PATH", subject.plugin_path.clone())];
    environment
        .extend(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"].map(|name| (name, String::new())));
    invoke(subject, &environment, input)
}

/// The one document of a success.
fn document(output: &Output) -> Result<Value> {
    ensure!(output.success(), "{output}");
    serde_json::from_str(&output.stdout).with_context(|| format!("not one document: {output}"))
}

fn silent(output: &Output) -> Result<()> {
    ensure!(output.success() && output.stdout.trim().is_empty(), "{output}");
    Ok(())
}

/// Code and message of the one document of a failure.
fn failure(output: &Output) -> Result<(u64, String)> {
    ensure!(!output.success(), "succeeded: {output}");
    let error: Value =
        serde_json::from_str(&output.stdout).with_context(|| format!("not one document: {output}"))?;
    let code = error["code"].as_u64().with_context(|| format!("no code: {output}"))?;
    let message = error["msg"].as_str().with_context(|| format!("no msg: {output}"))?;
    ensure!(!message.is_empty(), "an empty msg: {output}");
    Ok((code, message.to_owned()))
}

fn fails_with(output: &Output, code: u64) -> Result<String> {
    let (found, message) = failure(output)?;
    ensure!(found == code, "error {found}, not {code}: {message}");
    Ok(message)
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let list = result["ips"].as_array().context("no ips")?;
    let read = |entry: &Value| -> Result<IpAddr> {
        let net: IpNet = entry["address"].as_str().context("no address")?.parse()?;
        Ok(net.addr())
    };
    list.iter().map(read).collect()
}

fn answers(from: &Host, address: IpAddr) -> Result<()> {
    ensure!(from.ping(address, 56, 1).answered == 1, "{address} does not answer");
    Ok(())
}

/// Names of the host's links, but for those that a plugin may share among containers.
fn links(node: &Node) -> Vec<String> {
    node.observe().links.into_iter().filter(|link| link.kind == "veth").map(|link| link.name).collect()
}
