//! STATUS and GC.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Container, OVERHEAD, Subject, addresses, answers, fails_with, failure, invoke_bare, silent};

pub(super) fn status(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.1.0")?;
    let begun = Instant::now();
    silent(&invoke_bare(subject, "STATUS", container.cni.stdin("STATUS"))?)?;
    ensure!(begun.elapsed() < Duration::from_secs(1) + OVERHEAD, "took {:?}", begun.elapsed());
    let old = Container::new(subject, "1.0.0")?;
    fails_with(&invoke_bare(subject, "STATUS", old.cni.stdin("STATUS"))?, 1).map(drop)
}

pub(super) fn gc(subject: &Subject) -> Result<()> {
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

pub(super) fn gc_by_interface(subject: &Subject) -> Result<()> {
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

pub(super) fn gc_without_list(subject: &Subject) -> Result<()> {
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
