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

type Case = (&'static str, fn(&Subject) -> Result<()>);

const CASES: &[Case] = &[
    ("VERSION lists every version that runtimes use, whatever the environment and input", version),
    ("without CNI_COMMAND nothing happens and nothing is printed", no_command),
    ("an unknown verb is error 4", unknown_verb),
    ("missing variables are error 4 and all named", missing_variables),
    ("malformed ids and interface names are error 4", malformed_variables),
    ("environment, JSON, name, version: faults are judged in this order", order_of_faults),
    ("input that is too large or too deep is an error", monstrous_input),
    ("ADD answers in the exact shape of each version", shapes),
    ("ADD returns when the container can talk", usable_at_once),
    ("ADD tolerates null and unknown fields, in both spellings of runtimeConfig", tolerant),
    ("ADD of an interface that exists is an error and changes nothing", add_twice),
    ("one container may have a second interface", second_interface),
    ("a second interface answers by itself", second_interface_answers),
    ("ADD into something that is no namespace is an error and leaves nothing", no_namespace),
    ("ADD into the host's own namespace is error 8", own_namespace),
    ("ADD with closed standard output fails and leaves nothing", closed_stdout),
    ("eight ADDs at once get eight addresses", parallel),
    ("CHECK is silent after ADD, and needs prevResult and 0.4.0", check),
    ("CHECK finds a missing address, route, link and a link that is down", check_damage),
    ("DEL frees everything, and may come twice", del),
    ("DEL needs neither namespace nor prevResult, and takes what is no namespace", del_forms),
    ("DEL of what was never added succeeds and touches nothing", del_unknown),
    ("STATUS is silent within a second, and of 1.1.0", status),
    ("GC frees exactly what is not listed, of its own network", gc),
    ("GC without a list frees nothing", gc_without_list),
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

fn invoke(subject: &Subject, environment: &[(&str, String)], input: String) -> Result<Output> {
    let mut command = subject.node.command(&subject.program).stdin(input).deadline(Duration::from_secs(40));
    for (name, value) in environment {
        command = command.env(name, value);
    }
    command.try_output()
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
        let answer = document(&invoke(subject, &environment, input.to_owned())?)?;
        let supported = answer["supportedVersions"].as_array().context("no supportedVersions")?;
        for version in VERSIONS {
            ensure!(supported.contains(&json!(version)), "{version} is not among {supported:?}");
        }
    }
    Ok(())
}

fn no_command(subject: &Subject) -> Result<()> {
    silent(&invoke(subject, &[("CNI_COMMAND", String::new())], String::new())?)
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
    fails_with(&invoke(subject, &only, "not JSON".into())?, 4).context("environment")?;
    for (input, code) in [
        ("", 6),
        ("not JSON", 6),
        (r#"{"cniVersion":"9.9.9"}"#, 7),
        (r#"{"cniVersion":"9.9.9","name":"../x"}"#, 7),
        (r#"{"cniVersion":"9.9.9","name":"suite"}"#, 1),
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
    ] {
        let mut container = Container::new(subject, "1.0.0")?;
        container.cni.config["runtimeConfig"] = runtime;
        container.cni.config["capabilities"] = json!({"portMappings": true});
        container.cni.config["future"] = json!({"key": [null]});
        container.cni.config["dns"] = Value::Null;
        container.cni.config["args"] = Value::Null;
        container.add()?;
    }
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
    let container = Container::new(subject, "1.0.0")?;
    let before = links(&subject.node);
    let program = match subject.program.as_str() {
        "cni-shim" => crate::binaries::Binaries::build()?.cni_shim().to_string_lossy().into_owned(),
        other => other.to_owned(),
    };
    let mut command = subject.node.command("/bin/sh").args(["-c", "exec \"$0\" >&-", &program]);
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
    let only = [("CNI_COMMAND", "STATUS".to_owned()), ("CNI_PATH", subject.plugin_path.clone())];
    silent(&invoke(subject, &only, container.cni.stdin("STATUS"))?)?;
    let old = Container::new(subject, "1.0.0")?;
    fails_with(&invoke(subject, &only, old.cni.stdin("STATUS"))?, 1).map(drop)
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
        let only = [("CNI_COMMAND", "GC".to_owned()), ("CNI_PATH", subject.plugin_path.clone())];
        silent(&invoke(subject, &only, input.to_string())?)?;
        answers(&subject.node, address).context("what is listed")?;
        answers(&subject.node, foreign).context("what is of another network")?;
        let stays = stale.observe().link(&stale.cni.ifname).is_some();
        ensure!(!stays, "what is not listed under {key} stays");
    }
    Ok(())
}

fn gc_without_list(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.1.0")?;
    let address = addresses(&container.add()?)?[0];
    let only = [("CNI_COMMAND", "GC".to_owned()), ("CNI_PATH", subject.plugin_path.clone())];
    silent(&invoke(subject, &only, container.cni.config.to_string())?)?;
    answers(&subject.node, address)
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
