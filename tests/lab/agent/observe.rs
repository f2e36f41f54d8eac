//! Prints what this namespace holds.

use anyhow::Result;
use cni_shim::netlink::Netlink;
use tests::observe::{Observed, ObservedAddress, ObservedLink, ObservedRoute};

use crate::traffic::report;

pub(crate) fn observe() -> Result<()> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let name = |index: u32| {
        links.iter().find(|link| link.index == index).map_or_else(String::new, |link| link.name.clone())
    };
    let addresses = netlink.addresses()?.into_iter();
    let routes = netlink.routes()?.into_iter();
    report(&Observed {
        addresses: addresses
            .map(|address| ObservedAddress { link: name(address.link), net: address.net })
            .collect(),
        routes: routes
            .map(|route| ObservedRoute {
                destination: route.destination,
                gateway: route.gateway,
                link: route.link.map(name),
                metric: route.metric,
                protocol: route.protocol,
            })
            .collect(),
        links: links
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
