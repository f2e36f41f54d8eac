//! ADD: its answer, what it makes, and what it leaves when it fails.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    Container, OVERHEAD, Subject, VERSIONS, addresses, answers, document, fails_with, failure, links, silent,
};

pub(super) fn shapes(subject: &Subject) -> Result<()> {
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

pub(super) fn usable_at_once(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.0.0")?;
    for address in addresses(&container.add()?)? {
        answers(&subject.node, address)?;
    }
    Ok(())
}

pub(super) fn tolerant(subject: &Subject) -> Result<()> {
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

pub(super) fn odd_names(subject: &Subject) -> Result<()> {
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

pub(super) fn add_twice(subject: &Subject) -> Result<()> {
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

pub(super) fn second_interface(subject: &Subject) -> Result<()> {
    let mut first = Container::new(subject, "1.0.0")?;
    let address = addresses(&first.add()?)?[0];
    let mut second = first.with_ifname("net1");
    ensure!(addresses(&second.add()?)?[0] != address, "the same address");
    silent(&second.call("DEL")?)?;
    answers(&subject.node, address)
}

pub(super) fn second_interface_answers(subject: &Subject) -> Result<()> {
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

pub(super) fn no_namespace(subject: &Subject) -> Result<()> {
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

pub(super) fn own_namespace(subject: &Subject) -> Result<()> {
    let mut container = Container::new(subject, "1.0.0")?;
    let before = links(&subject.node);
    let own = std::mem::replace(&mut container.cni.netns, "/proc/self/ns/net".into());
    let outcome = container.call("ADD");
    container.cni.netns = own;
    fails_with(&outcome?, 8)?;
    ensure!(links(&subject.node) == before, "links stay");
    Ok(())
}

pub(super) fn closed_stdout(subject: &Subject) -> Result<()> {
    add_from_shell(subject, "exec \"$0\" >&-")
}

/// A full disk, and a reader that has gone.
pub(super) fn unwritable_stdout(subject: &Subject) -> Result<()> {
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

pub(super) fn parallel(subject: &Subject) -> Result<()> {
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

pub(super) fn late_reuse(subject: &Subject) -> Result<()> {
    let mut last = None;
    for _ in 0..3 {
        let mut container = Container::new(subject, "1.0.0")?;
        let address = addresses(&container.add()?)?[0];
        ensure!(last != Some(address), "{address} again");
        last = Some(address);
    }
    Ok(())
}

pub(super) fn killed_add(subject: &Subject) -> Result<()> {
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

pub(super) fn previous_on_add(subject: &Subject) -> Result<()> {
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
