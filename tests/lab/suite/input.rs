//! What a call must be like, and how faults in it are told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Container, OVERHEAD, Subject, VERSIONS, document, fails_with, failure, invoke, links, silent};

pub(super) fn version(subject: &Subject) -> Result<()> {
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

pub(super) fn no_command(subject: &Subject) -> Result<()> {
    silent(&invoke(subject, &[("CNI_COMMAND", String::new())], "")?)
}

pub(super) fn unknown_verb(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    fails_with(&container.call("UPDATE")?, 4).map(drop)
}

pub(super) fn missing_variables(subject: &Subject) -> Result<()> {
    let container = Container::new(subject, "1.0.0")?;
    let only = [("CNI_COMMAND", "ADD".to_owned()), ("CNI_PATH", subject.plugin_path.clone())];
    let message = fails_with(&invoke(subject, &only, container.cni.stdin("ADD"))?, 4)?;
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        ensure!(message.contains(name), "{name} is not named: {message}");
    }
    Ok(())
}

pub(super) fn malformed_variables(subject: &Subject) -> Result<()> {
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

pub(super) fn order_of_faults(subject: &Subject) -> Result<()> {
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

pub(super) fn monstrous_input(subject: &Subject) -> Result<()> {
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

pub(super) fn error_shape(subject: &Subject) -> Result<()> {
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

pub(super) fn endless_input(subject: &Subject) -> Result<()> {
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
