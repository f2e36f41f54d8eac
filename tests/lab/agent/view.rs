//! What this namespace holds: as values, and as lines that two moments can be compared by.

use std::collections::BTreeSet;

use anyhow::Result;
use cni_shim::netlink::{Address, Link, Neighbour, Netlink, Route, Rule};
use overlayd::core::desired::uplink::tap_name;
use overlayd::kernel::Kernel;
use tests::observe::{Observed, ObservedAddress, ObservedLink, ObservedRoute, ObservedRule};

use crate::traffic::report;

/// `RT_TABLE_MAIN`.
const TABLE_MAIN: u32 = 254;

/// What rtnetlink tells of a namespace.
pub(crate) struct View {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
    pub(crate) rules: Vec<Rule>,
}

impl View {
    /// Of the calling thread's namespace.
    pub(crate) fn read() -> Result<Self> {
        let mut netlink = Netlink::open()?;
        Ok(Self {
            links: netlink.links()?,
            addresses: netlink.addresses()?,
            routes: netlink.routes()?,
            neighbours: netlink.neighbours()?,
            rules: netlink.rules()?,
        })
    }

    /// Name of a link, by its index.
    pub(crate) fn name(&self, index: u32) -> Option<&str> {
        self.links.iter().find(|link| link.index == index).map(|link| link.name.as_str())
    }
}

/// Prints links, addresses and routes as values.
pub(crate) fn observe() -> Result<()> {
    let view = View::read()?;
    let name = |index: u32| view.name(index).unwrap_or_default().to_owned();
    report(&Observed {
        rules: view
            .rules
            .iter()
            .map(|rule| ObservedRule { source: rule.source, table: rule.table })
            .collect(),
        addresses: view
            .addresses
            .iter()
            .map(|address| ObservedAddress { link: name(address.link), net: address.net })
            .collect(),
        routes: view
            .routes
            .iter()
            .map(|route| ObservedRoute {
                destination: route.destination,
                gateway: route.gateway,
                link: route.link.map(name),
                metric: route.metric,
                protocol: route.protocol,
            })
            .collect(),
        links: view
            .links
            .iter()
            .map(|link| ObservedLink {
                name: link.name.clone(),
                kind: link.kind.clone(),
                mtu: link.mtu,
                up: link.up,
                mac: link.mac.map(|mac| mac.to_string()),
                group: link.group,
                alias: link.alias.clone(),
            })
            .collect(),
    })
}

/// Prints kernel objects as lines: names and not indexes, no counters, sorted.
pub(crate) fn objects(device: &str) -> Result<()> {
    let mut lines = BTreeSet::new();
    let view = View::read()?;
    let name = |index: u32| view.name(index).unwrap_or("?");
    for link in &view.links {
        lines.insert(format!(
            "link {} kind {} up {} mtu {} qlen {} group {} alias {:?}",
            link.name, link.kind, link.up, link.mtu, link.tx_queue_len, link.group, link.alias
        ));
    }
    for address in &view.addresses {
        lines.insert(format!("address {} dev {}", address.net, name(address.link)));
    }
    for route in view.routes.iter().filter(|route| route.table == TABLE_MAIN) {
        lines.insert(format!(
            "route {:?} {} via {:?} dev {} src {:?} mtu {:?} metric {} proto {}",
            route.kind,
            route.destination,
            route.gateway,
            route.link.map_or("-", name),
            route.source,
            route.mtu,
            route.metric,
            route.protocol
        ));
    }
    for neighbour in view.neighbours.iter().filter(|neighbour| neighbour.permanent) {
        lines.insert(format!(
            "neighbour {} mac {} dev {}",
            neighbour.address,
            neighbour.mac,
            name(neighbour.link)
        ));
    }
    let actual = Kernel::open(device)?.read()?;
    if let Some(table) = actual.table {
        for set in table.sets {
            let ranges: Vec<String> = set.ranges.iter().map(ToString::to_string).collect();
            lines.insert(format!("set {} {}", set.name, ranges.join(" ")));
        }
        for chain in table.chains {
            lines.insert(format!(
                "chain {} {} hook {} priority {}",
                chain.name, chain.kind, chain.hook, chain.priority
            ));
            for (at, rule) in chain.rules.iter().enumerate() {
                lines.insert(format!("rule {} {at} {:?} {}", chain.name, rule.parts, rule.comment));
            }
        }
    }
    for chain in actual.forward_chains {
        lines.insert(format!(
            "forward {} drop {} rules of ours {}",
            chain.name,
            chain.policy_drop,
            chain.ours.len()
        ));
    }
    for (key, value) in actual.sysctls {
        lines.insert(format!("sysctl {key} = {value}"));
    }
    // It comes and goes with the daemon.
    let tap = tap_name(device);
    for line in lines.iter().filter(|line| !line.contains(&tap)) {
        println!("{line}");
    }
    Ok(())
}
