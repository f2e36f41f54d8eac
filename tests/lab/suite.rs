//! A black-box suite of the CNI contract: it drives any plugin binary by environment and standard input, and looks at
//! what it prints and at what the namespaces hold afterwards. It knows nothing of a plugin's inside.
//!
//! Every case has namespaces and container ids of its own, so one that fails does not make others fail.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
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
    ("VERSION lists every version that runtimes use, whatever the environment and input", version),
    ("without CNI_COMMAND nothing happens and nothing is printed", no_command),
    ("an unknown verb is error 4", unknown_verb),
    ("missing variables are error 4 and all named", missing_variables),
    ("malformed ids and interface names are error 4", malformed_variables),
    ("environment, JSON, name, version: faults are judged in this order", order_of_faults),
    ("an error is one document that names the version it is of", error_shape),
    ("input that is too large, too deep or no text is an error", monstrous_input),
    ("input that never ends is given up within 20 s, and nothing is left", endless_input),
    ("ADD answers in the exact shape of each version", shapes),
    ("ADD returns when the container can talk", usable_at_once),
    ("ADD tolerates null and unknown fields, in both spellings of runtimeConfig", tolerant),
    ("ADD takes every legal container id and interface name, and arguments only as text", odd_names),
    ("ADD of an interface that exists is an error and changes nothing", add_twice),
    ("one container may have a second interface", second_interface),
    ("a second interface answers by itself", second_interface_answers),
    ("ADD into something that is no namespace is an error and leaves nothing", no_namespace),
    ("ADD into the host's own namespace is error 8", own_namespace),
    ("ADD with closed standard output fails and leaves nothing", closed_stdout),
    ("ADD whose answer cannot be written fails and leaves nothing", unwritable_stdout),
    ("eight ADDs at once get eight addresses", parallel),
    ("an address that was freed is not the next one to be given", late_reuse),
    ("ADD that is killed is cleaned up by DEL, and the container can be added again", killed_add),
    ("CHECK is silent after ADD, and needs prevResult and 0.4.0", check),
    ("CHECK finds a missing address, route, link and a link that is down", check_damage),
    ("CHECK finds damage on the host's side: link down, route missing", check_host_damage),
    ("CHECK finds no damage in what others add", check_additions),
    ("DEL frees everything, and may come twice", del),
    ("DEL needs neither namespace nor prevResult, and takes what is no namespace", del_forms),
    ("DEL takes a configuration that changed since, and any prevResult", del_changed),
    ("DEL of one interface leaves the container's other one", del_one_of_two),
    ("DEL of what was never added succeeds and touches nothing", del_unknown),
    ("STATUS is silent within a second, and of 1.1.0", status),
    ("GC frees exactly what is not listed, of its own network", gc),
    ("GC tells two interfaces of one container apart", gc_by_interface),
    ("GC without a list, or with one that is none, frees nothing", gc_without_list),
    ("prevResult on ADD is served whole or refused with 7", previous_on_add),
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

fn version(subject: &Subject) -> Result<()> {
    for input in ["", "nonsense", r#"{"cniVersion":"1.0.0"}"#] {
        let environment = [
            ("CNI_COMMAND", "VERSION"),
            ("CNI_IFNAME", "du/mmy"),
            ("CNI_NETNS", "dummy"),
            ("CNI_PATH", "dummy"),
        ];
        let environment = environment.map(|(name, value)| (name, value.to_owned()));
        let answer = document(&invoke(subject, &environment, input)?)?;
        let supported = answer["supportedVersions"].as_array().context("no supportedVersions")?;
        for version in VERSIONS {
            ensure!(supported.contains(&json!(version)), "{version} is not among {supported:?}");
        }
    }
    Ok(())
}

fn no_command(subject: &Subject) -> Result<()> {
    silent(&invoke(subject, &[("CNI_COMMAND", String::new())], "")?)
}

fn unknown_verb(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    fails_with(&container.call("UPDATE")?, 4).map(drop)
}

fn missing_variables(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    let only = [("CNI_COMMAND", "ADD".to_owned()), ("CNI_PATH", subject.plugin_path.clone())];
    let message = fails_with(&invoke(subject, &only, container.cni.stdin("ADD"))?, 4)?;
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        ensure!(message.contains(name), "{name} is not named: {message}");
    }
    Ok(())
}

fn malformed_variables(subject: &Subject) -> Result<()> {
    for id in ["../x", "-x", "a b", "a\n", "a/b", "ä"] {
        let mut container = Container::new(subject, "1.0.0")?;
        let good = std::mem::replace(&mut container.cni.container, id.into());
        let verdict = fails_with(&container.call("ADD")?, 4);
        container.cni.container = good;
        verdict.with_context(|| format!("container id {id:?}"))?;
    }
    for ifname in ["sixteen-bytes-xx", ".", "..", "a/b", "a:b", "a b"] {
        let mut container = Container::new(subject, "1.0.0")?;
        container.cni.ifname = ifname.into();
        fails_with(&container.call("ADD")?, 4).with_context(|| format!("interface name {ifname:?}"))?;
    }
    Ok(())
}

fn order_of_faults(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    let only = [("CNI_COMMAND", "ADD".to_owned())];
    fails_with(&invoke(subject, &only, "not JSON")?, 4).context("environment")?;
    for (input, code) in [
        ("", 6),
        ("not JSON", 6),
        (r#"{"cniVersion":"9.9.9"}"#, 7),
        (r#"{"cniVersion":"9.9.9","name":"../x"}"#, 7),
        (r#"{"cniVersion":"9.9.9","name":"suite"}"#, 1),
        // Versions are compared as text.
        (r#"{"cniVersion":"1.0","name":"suite"}"#, 1),
    ] {
        fails_with(&container.call_with("ADD", input.into())?, code).with_context(|| input.to_owned())?;
    }
    Ok(())
}

fn monstrous_input(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    let deep = format!(
        r#"{{"cniVersion":"1.0.0","name":"suite","x":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    failure(&container.call_with("ADD", deep)?).context("100,000 levels")?;
    let large = format!(r#"{{"cniVersion":"1.0.0","name":"suite","x":"{}"}}"#, "x".repeat(8 << 20));
    failure(&container.call_with("ADD", large)?).context("8 MiB")?;
    let mut bytes = br#"{"cniVersion":"1.0.0","name":"suite","x":""#.to_vec();
    bytes.extend([0xff, 0xc0, b'"', b'}']);
    failure(&invoke(subject, &container.environment("ADD"), bytes)?).context("bytes that are no text")?;
    Ok(())
}

fn error_shape(subject: &Subject) -> Result<()> {
    for version in VERSIONS {
        let container = Container::new(subject, version)?;
        let mut environment = container.environment("ADD");
        environment
            .iter_mut()
            .filter(|(name, _)| *name == "CNI_NETNS")
            .for_each(|(_, path)| *path = "/nonexistent".into());
        let output = invoke(subject, &environment, container.cni.stdin("ADD"))?;
        let (_, message) = failure(&output)?;
        ensure!(message.contains("/nonexistent"), "{version}: the path is not named: {message}");
        let error: Value = serde_json::from_str(&output.stdout)?;
        ensure!(error["cniVersion"] == version, "{version}: {error}");
    }
    Ok(())
}

fn endless_input(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    let before = links(&subject.node);
    // Without an input of its own it is one that stays open.
    let mut command = subject.node.command(&subject.program);
    for (name, value) in container.environment("ADD") {
        command = command.env(name, value);
    }
    let process = command.try_spawn()?;
    ensure!(process.try_wait(Duration::from_secs(20) + OVERHEAD)?.is_some(), "it still waits");
    failure(&process.try_finish(OVERHEAD)?)?;
    ensure!(links(&subject.node) == before, "links stay");
    Ok(())
}

fn shapes(subject: &Subject) -> Result<()> {
    for version in VERSIONS {
        let mut container = Container::new(subject, version)?;
        let result = container.add().context(version)?;
        shape(&container, version, &result).with_context(|| format!("{version}: {result}"))?;
    }
    Ok(())
}

fn shape(container: &Container<'_>, version: &str, result: &Value) -> Result<()> {
    ensure!(result["cniVersion"] == version, "cniVersion");
    let interfaces = result["interfaces"].as_array().context("interfaces")?;
    let is_ours = |interface: &Value| {
        interface["name"] == container.cni.ifname.as_str()
            && interface["sandbox"] == container.cni.netns.as_str()
    };
    let place = interfaces.iter().position(is_ours).context("the container's interface")?;
    let link = container.observe().link(&container.cni.ifname).context("no such link")?.clone();
    ensure!(interfaces[place]["mac"].as_str() == link.mac.as_deref(), "mac");
    let mtu = &interfaces[place]["mtu"];
    ensure!(mtu.is_null() || (version == "1.1.0" && *mtu == link.mtu), "mtu");
    for ip in result["ips"].as_array().context("ips")? {
        let net: IpNet = ip["address"].as_str().context("address")?.parse()?;
        ensure!(ip["interface"] == place, "interface of {net}");
        ensure!(container.observe().has_address(&link.name, net), "{net} is not there");
        let family = if net.addr().is_ipv4() { "4" } else { "6" };
        let expected = if version.starts_with('0') { json!(family) } else { Value::Null };
        ensure!(ip["version"] == expected, "version of {net}");
    }
    Ok(())
}

fn usable_at_once(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.0.0")?;
    for address in addresses(&container.add()?)? {
        answers(&subject.node, address)?;
    }
    Ok(())
}

fn tolerant(subject: &Subject) -> Result<()> {
    for runtime in [
        json!({"PortMappings": [{"HostPort": 18080, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""}],
               "bandwidth": {"IngressRate": 10_000_000, "IngressBurst": 4_294_967_295_u64}, "dns": {"Servers": ["10.0.0.1"]},
               "io.kubernetes.cri.pod-annotations": null}),
        json!({"portMappings": null, "aliases": {"net": ["a"]}}),
        Value::Null,
    ] {
        let mut container = Container::new(subject, "1.0.0")?;
        container.cni.config["runtimeConfig"] = runtime;
        container.cni.config["capabilities"] = json!({"portMappings": true});
        container.cni.config["future"] = json!({"key": [null]});
        container.cni.config["dns"] = Value::Null;
        container.cni.config["args"] = Value::Null;
        container.cni.config["prevResult"] = Value::Null;
        container.add()?;
    }
    Ok(())
}

fn odd_names(subject: &Subject) -> Result<()> {
    for (suffix, ifname) in
        [("", "fifteen-bytes-x"), ("_.-Z9", "a@b"), (&"-x".repeat(20)[..], "e"), ("", "\u{e9}th0")]
    {
        let mut container = Container::new(subject, "1.0.0")?;
        container.cni.container += suffix;
        container.cni.ifname = ifname.into();
        // Names of pods are for logs; what they hold is nobody's command.
        container.cni.args =
            "IgnoreUnknown=1;K8S_POD_NAME=$(touch /run/owned) `touch /run/owned` ../../x".into();
        let address = addresses(&container.add().with_context(|| format!("interface {ifname:?}"))?)?[0];
        answers(&subject.node, address).with_context(|| format!("interface {ifname:?}"))?;
        silent(&container.call("DEL")?)?;
        ensure!(container.observe().link(ifname).is_none(), "{ifname:?} stays");
    }
    ensure!(!subject.node.has_file("/run/owned"), "an argument was run");
    Ok(())
}

fn add_twice(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.0.0")?;
    let address = addresses(&container.add()?)?[0];
    let before = (links(&subject.node), container.observe());
    failure(&container.call("ADD")?)?;
    // Another container that is given the same namespace: the first owner must not notice, nor by its DEL.
    let mut loser = Container::new(subject, "1.0.0")?;
    let own = std::mem::replace(&mut loser.cni.netns, container.cni.netns.clone());
    failure(&loser.call("ADD")?)?;
    let mut expelled = loser.call("DEL");
    loser.cni.netns = own;
    if let Ok(output) = &mut expelled {
        ensure!(output.success(), "{output}");
    }
    ensure!(before == (links(&subject.node), container.observe()), "something changed");
    answers(&subject.node, address)
}

fn second_interface(subject: &Subject) -> Result<()> {
    let mut first = Container::new(subject, "1.0.0")?;
    let address = addresses(&first.add()?)?[0];
    let mut second = first.with_ifname("net1");
    ensure!(addresses(&second.add()?)?[0] != address, "the same address");
    silent(&second.call("DEL")?)?;
    answers(&subject.node, address)
}

fn second_interface_answers(subject: &Subject) -> Result<()> {
    let mut first = Container::new(subject, "1.0.0")?;
    let one = addresses(&first.add()?)?;
    let mut second = first.with_ifname("net1");
    let two = addresses(&second.add()?)?;
    for address in one.into_iter().chain(two) {
        answers(&subject.node, address)?;
    }
    silent(&second.call("DEL")?)?;
    let rules = first.observe().rules;
    ensure!(rules.is_empty(), "DEL leaves {rules:?}");
    Ok(())
}

fn no_namespace(subject: &Subject) -> Result<()> {
    subject.node.write_file("/run/plain", "not a namespace");
    for path in ["/run/plain", "/run/netns/nothing", "/proc/self/ns/mnt"] {
        let mut container = Container::new(subject, "1.0.0")?;
        let before = links(&subject.node);
        let own = std::mem::replace(&mut container.cni.netns, path.into());
        let outcome = container.call("ADD");
        container.cni.netns = own;
        failure(&outcome?).context(path)?;
        ensure!(links(&subject.node) == before, "{path}: links stay");
    }
    Ok(())
}

fn own_namespace(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.0.0")?;
    let before = links(&subject.node);
    let own = std::mem::replace(&mut container.cni.netns, "/proc/self/ns/net".into());
    let outcome = container.call("ADD");
    container.cni.netns = own;
    fails_with(&outcome?, 8)?;
    ensure!(links(&subject.node) == before, "links stay");
    Ok(())
}

fn closed_stdout(subject: &Subject) -> Result<()> {
    add_from_shell(subject, "exec \"$0\" >&-")
}

/// A full disk, and a reader that has gone.
fn unwritable_stdout(subject: &Subject) -> Result<()> {
    add_from_shell(subject, "exec \"$0\" >/dev/full").context("a full disk")?;
    // Opened for both first: a FIFO without a reader cannot be opened for writing alone.
    let script =
        "rm -f /run/suite; mkfifo /run/suite; exec 3<>/run/suite 4>/run/suite 3<&-; exec \"$0\" >&4 4>&-";
    add_from_shell(subject, script).context("no reader")
}

/// That ADD, started by this script, fails and leaves nothing.
fn add_from_shell(subject: &Subject, script: &str) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    let before = links(&subject.node);
    let program = match subject.program.as_str() {
        "cni-shim" => crate::binaries::Binaries::build()?.cni_shim().to_string_lossy().into_owned(),
        other => other.to_owned(),
    };
    let mut command = subject.node.command("/bin/sh").args(["-c", script, &program]);
    for (name, value) in container.environment("ADD") {
        command = command.env(name, value);
    }
    let output = command.stdin(container.cni.stdin("ADD")).try_output()?;
    ensure!(!output.success(), "succeeded");
    ensure!(links(&subject.node) == before, "links stay");
    Ok(())
}

fn parallel(subject: &Subject) -> Result<()> {
    let mut containers = (0..8).map(|_| Container::new(subject, "1.0.0")).collect::<Result<Vec<_>>>()?;
    let results: Vec<Result<Value>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            containers.iter_mut().map(|container| scope.spawn(|| container.add())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("panicked"))).collect()
    });
    let mut seen = std::collections::BTreeSet::new();
    for result in results {
        for address in addresses(&result?)? {
            ensure!(seen.insert(address), "{address} was given twice");
            answers(&subject.node, address)?;
        }
    }
    Ok(())
}

fn late_reuse(subject: &Subject) -> Result<()> {
    let mut last = None;
    for _ in 0..3 {
        let mut container = Container::new(subject, "1.0.0")?;
        let address = addresses(&container.add()?)?[0];
        ensure!(last != Some(address), "{address} again");
        last = Some(address);
    }
    Ok(())
}

fn killed_add(subject: &Subject) -> Result<()> {
    let before = links(&subject.node);
    for milliseconds in [0, 1, 2, 4, 8, 16, 32, 64] {
        let mut container = Container::new(subject, "1.0.0")?;
        let mut command = subject.node.command(&subject.program).stdin(container.cni.stdin("ADD"));
        for (name, value) in container.environment("ADD") {
            command = command.env(name, value);
        }
        let process = command.try_spawn()?;
        // One that is done by then was quick.
        process.try_wait(Duration::from_millis(milliseconds))?;
        process.signal(libc::SIGKILL);
        process.try_finish(OVERHEAD)?;
        let what = || format!("killed after {milliseconds} ms");
        silent(&container.call("DEL")?).with_context(what)?;
        ensure!(links(&subject.node) == before, "killed after {milliseconds} ms: links stay");
        for address in addresses(&container.add().with_context(what)?)? {
            answers(&subject.node, address).with_context(what)?;
        }
        silent(&container.call("DEL")?)?;
    }
    Ok(())
}

fn check(subject: &Subject) -> Result<()> {
    for version in &VERSIONS[1..] {
        let mut container = Container::new(subject, version)?;
        container.add()?;
        silent(&container.call("CHECK")?).context(*version)?;
        container.cni.previous = None;
        failure(&container.call("CHECK")?).context("without prevResult")?;
    }
    let mut old = Container::new(subject, "0.3.1")?;
    old.add()?;
    fails_with(&old.call("CHECK")?, 1).map(drop)
}

fn check_damage(subject: &Subject) -> Result<()> {
    type Damage = fn(&Container<'_>, &Observed);
    let damages: [(&str, Damage); 4] = [
        ("address", |container, seen| {
            for address in seen.addresses.iter().filter(|address| address.link == container.cni.ifname) {
                container.inside().delete_address(&address.link, address.net);
            }
        }),
        ("route", |container, seen| {
            for route in seen.routes.iter().filter(|route| route.destination.prefix_len() == 0) {
                container.inside().delete_route(route.destination);
            }
        }),
        ("down", |container, _| {
            container.inside().set_link_state(&container.cni.ifname, crate::LinkState::Down);
        }),
        ("link", |container, _| container.inside().delete_link(&container.cni.ifname)),
    ];
    for (what, damage) in damages {
        let mut container = Container::new(subject, "1.0.0")?;
        container.add()?;
        damage(&container, &container.observe());
        failure(&container.call("CHECK")?).with_context(|| format!("damage: {what}"))?;
    }
    Ok(())
}

fn check_host_damage(subject: &Subject) -> Result<()> {
    for what in ["link", "route"] {
        let before = links(&subject.node);
        let mut container = Container::new(subject, "1.0.0")?;
        let address = addresses(&container.add()?)?[0];
        let own = links(&subject.node)
            .into_iter()
            .find(|link| !before.contains(link))
            .context("no link on the host")?;
        if what == "link" {
            subject.node.set_link_state(&own, crate::LinkState::Down);
        } else {
            subject.node.delete_route(address.into());
        }
        let verdict = failure(&container.call("CHECK")?);
        // A daemon may have mended it before anybody could look.
        if verdict.is_err() && answers(&subject.node, address).is_ok() {
            continue;
        }
        verdict.with_context(|| format!("damage: {what} of the host"))?;
    }
    Ok(())
}

fn check_additions(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.0.0")?;
    container.add()?;
    let (inside, ifname) = (container.inside(), container.cni.ifname.clone());
    inside.add_address(&ifname, "192.0.2.200/32".parse()?);
    inside.add_link_route("198.51.100.0/24".parse()?, &ifname);
    silent(&container.call("CHECK")?).context("another address and another route")?;
    // A further plugin of the chain may add to the result.
    let mut previous = container.cni.previous.clone().unwrap_or_default();
    previous["dns"] = json!({"nameservers": ["10.0.0.1"]});
    if let Some(interfaces) = previous["interfaces"].as_array_mut() {
        interfaces.push(json!({"name": "ifb0", "mac": "02:00:00:00:00:01"}));
    }
    container.cni.previous = Some(previous);
    silent(&container.call("CHECK")?).context("another interface in prevResult")
}

fn del_changed(subject: &Subject) -> Result<()> {
    let results = [
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "192.0.2.7/24"}}),
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "other0"}], "ips": [{"address": "192.0.2.7/24", "interface": 0}]}),
        json!({}),
        Value::Null,
    ];
    for (added, deleted) in [("0.3.1", "1.1.0"), ("1.1.0", "0.3.1"), ("1.0.0", "0.4.0"), ("0.4.0", "1.0.0")] {
        for previous in &results {
            let before = links(&subject.node);
            let mut container = Container::new(subject, added)?;
            container.add()?;
            container.cni.config["cniVersion"] = json!(deleted);
            container.cni.config["mtu"] = json!(1300);
            container.cni.config["runtimeConfig"] = json!({"portMappings": []});
            container.cni.previous = Some(previous.clone());
            let what = || format!("{added}, now {deleted}, prevResult {previous}");
            silent(&container.call("DEL")?).with_context(what)?;
            ensure!(links(&subject.node) == before, "{}: links stay", what());
        }
    }
    Ok(())
}

fn del_one_of_two(subject: &Subject) -> Result<()> {
    let mut first = Container::new(subject, "1.0.0")?;
    let address = addresses(&first.add()?)?[0];
    let mut second = first.with_ifname("net1");
    let other = addresses(&second.add()?)?[0];
    silent(&first.call("DEL")?)?;
    ensure!(first.observe().link("net1").is_some(), "net1 is gone with eth0");
    answers(&subject.node, other).context("net1, when eth0 is gone")?;
    // What was freed may be had again; what lives, not.
    let mut next = Container::new(subject, "1.0.0")?;
    ensure!(addresses(&next.add()?)?[0] != other, "{other} was given twice, after DEL of {address}");
    silent(&second.call("DEL")?)
}

fn del(subject: &Subject) -> Result<()> {
    for version in VERSIONS {
        let mut container = Container::new(subject, version)?;
        let before = links(&subject.node);
        container.add()?;
        silent(&container.call("DEL")?).context(version)?;
        ensure!(links(&subject.node) == before, "{version}: links stay");
        ensure!(container.observe().link(&container.cni.ifname).is_none(), "{version}: the interface stays");
        silent(&container.call("DEL")?).with_context(|| format!("{version}, again"))?;
    }
    Ok(())
}

fn del_forms(subject: &Subject) -> Result<()> {
    subject.node.write_file("/run/plain", "not a namespace");
    for (netns, removed) in
        [("", false), ("", true), ("/run/netns/nothing", true), ("/run/plain", true), ("relative", true)]
    {
        let mut container = Container::new(subject, "1.0.0")?;
        container.add()?;
        container.cni.previous = Some(json!({}));
        if removed {
            container.cni.remove_netns();
        }
        container.cni.netns = netns.into();
        let begun = Instant::now();
        for _ in 0..2 {
            silent(&container.call("DEL")?).with_context(|| format!("netns {netns:?}"))?;
            container.cni.previous = None;
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    }
    Ok(())
}

fn del_unknown(subject: &Subject) -> Result<()> {
    let mut owner = Container::new(subject, "1.0.0")?;
    let address = addresses(&owner.add()?)?[0];
    let mut stranger = Container::new(subject, "1.0.0")?;
    silent(&stranger.call("DEL")?)?;
    let own = std::mem::replace(&mut stranger.cni.netns, owner.cni.netns.clone());
    let outcome = stranger.call("DEL");
    stranger.cni.netns = own;
    silent(&outcome?)?;
    answers(&subject.node, address).context("the interface of another container went")
}

fn status(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.1.0")?;
    let begun = Instant::now();
    silent(&invoke_bare(subject, "STATUS", container.cni.stdin("STATUS"))?)?;
    ensure!(begun.elapsed() < Duration::from_secs(1) + OVERHEAD, "took {:?}", begun.elapsed());
    let old = Container::new(subject, "1.0.0")?;
    fails_with(&invoke_bare(subject, "STATUS", old.cni.stdin("STATUS"))?, 1).map(drop)
}

fn gc(subject: &Subject) -> Result<()> {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let mut kept = Container::new(subject, "1.1.0")?;
        let mut stale = Container::new(subject, "1.1.0")?;
        let mut other = Container::new(subject, "1.1.0")?;
        other.cni.config["name"] = json!("other");
        let address = addresses(&kept.add()?)?[0];
        stale.add()?;
        let foreign = addresses(&other.add()?)?[0];
        let mut input: Value = kept.cni.config.clone();
        input[key] = json!([{"containerID": kept.cni.container, "ifname": kept.cni.ifname}]);
        silent(&invoke_bare(subject, "GC", input.to_string())?)?;
        answers(&subject.node, address).context("what is listed")?;
        answers(&subject.node, foreign).context("what is of another network")?;
        let stays = stale.observe().link(&stale.cni.ifname).is_some();
        ensure!(!stays, "what is not listed under {key} stays");
    }
    Ok(())
}

fn gc_by_interface(subject: &Subject) -> Result<()> {
    let mut first = Container::new(subject, "1.1.0")?;
    let mut second = first.with_ifname("net1");
    let (kept, freed) = (addresses(&first.add()?)?[0], addresses(&second.add()?)?[0]);
    let mut input = first.cni.config.clone();
    input["cni.dev/valid-attachments"] = json!([{"containerID": first.cni.container, "ifname": "eth0"}]);
    silent(&invoke_bare(subject, "GC", input.to_string())?)?;
    answers(&subject.node, kept)?;
    ensure!(first.observe().link("net1").is_none(), "the interface with {freed} is not listed and stays");
    Ok(())
}

fn gc_without_list(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.1.0")?;
    let address = addresses(&container.add()?)?[0];
    let mut input = container.cni.config.clone();
    silent(&invoke_bare(subject, "GC", input.to_string())?)?;
    answers(&subject.node, address).context("without the key")?;
    input["cni.dev/valid-attachments"] = Value::Null;
    silent(&invoke_bare(subject, "GC", input.to_string())?)?;
    answers(&subject.node, address).context("with null")?;
    for none in
        [json!("all"), json!([{"containerID": 7}]), json!([{"containerID": "../x", "ifname": "eth0"}])]
    {
        input["cni.dev/valid-attachments"] = none.clone();
        failure(&invoke_bare(subject, "GC", input.to_string())?).with_context(|| none.to_string())?;
        answers(&subject.node, address).with_context(|| none.to_string())?;
    }
    Ok(())
}

fn previous_on_add(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    let mut input = container.cni.config.clone();
    let before = links(&subject.node);
    input["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "earlier0"}], "ips": []});
    let output = container.call_with("ADD", input.to_string())?;
    if output.success() {
        let result = document(&output)?;
        ensure!(result["interfaces"][0]["name"] == "earlier0", "prevResult is lost: {result}");
        return Ok(());
    }
    fails_with(&output, 7)?;
    ensure!(links(&subject.node) == before, "links stay");
    Ok(())
}
