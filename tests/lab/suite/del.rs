//! DEL: frees what ADD made, in every form that runtimes call it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Container, Subject, VERSIONS, addresses, answers, links, silent};

pub(super) fn del_changed(subject: &Subject) -> Result<()> {
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

pub(super) fn del_one_of_two(subject: &Subject) -> Result<()> {
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

pub(super) fn del(subject: &Subject) -> Result<()> {
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

pub(super) fn del_forms(subject: &Subject) -> Result<()> {
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

pub(super) fn del_unknown(subject: &Subject) -> Result<()> {
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
