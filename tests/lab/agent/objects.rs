//! Kernel objects as lines that two moments can be compared by: names and not indexes, no counters, sorted.

use std::collections::BTreeSet;

use anyhow::Result;
use cni_shim::netlink::Netlink;
use overlayd::kernel::Kernel;

/// `RT_TABLE_MAIN`.
const TABLE_MAIN: u32 = 254;

pub(crate) fn objects(device: &str) -> Result<()> {
    let mut lines = BTreeSet::new();
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let name = |index: u32| links.iter().find(|link| link.index == index).map_or("?", |link| &link.name);
    for link in &links {
        lines.insert(format!(
            "link {} kind {} up {} mtu {} qlen {} group {} alias {:?}",
            link.name, link.kind, link.up, link.mtu, link.tx_queue_len, link.group, link.alias
        ));
    }
    for address in netlink.addresses()? {
        lines.insert(format!("address {} dev {}", address.net, name(address.link)));
    }
    for route in netlink.routes()?.into_iter().filter(|route| route.table == TABLE_MAIN) {
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
    for neighbour in netlink.neighbours()?.into_iter().filter(|neighbour| neighbour.permanent) {
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
    for line in lines {
        println!("{line}");
    }
    Ok(())
}
