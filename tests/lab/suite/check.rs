//! CHECK: silent over what ADD made, and over nothing else.

use anyhow::{Context, Result};
use serde_json::json;

use super::{Container, Subject, VERSIONS, addresses, answers, fails_with, failure, links, silent};
use crate::observe::Observed;

pub(super) fn check(subject: &Subject) -> Result<()> {
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

pub(super) fn check_damage(subject: &Subject) -> Result<()> {
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

pub(super) fn check_host_damage(subject: &Subject) -> Result<()> {
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

pub(super) fn check_additions(subject: &Subject) -> Result<()> {
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
