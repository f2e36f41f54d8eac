//! Netlink dumps to the core's picture: what is ours by its tag, and of everything else only facts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_shim::netlink::{Address, Link, Neighbour as KernelNeighbour, Route as KernelRoute, RouteKind};
use ipnet::IpNet;
use wire::tag::{self, Alias};

use crate::core::desired::uplink::tap_name;
use crate::core::desired::{FORWARDING_V4, FORWARDING_V6, accept_ra, addr_gen_mode, disable_ipv6, rp_filter};
use crate::core::leases::ObservedVeth;
use crate::core::plan::{Actual, Device, ForeignLink, ForeignRoute, Neighbour, Route, Via};

/// `RT_TABLE_MAIN` of `linux/rtnetlink.h`.
const TABLE_MAIN: u32 = 254;

/// `RTPROT_RA`: routes from router advertisements.
const PROTOCOL_RA: u8 = 9;

/// What the kernel said.
pub(super) struct Dumps<'a> {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) neighbours: Vec<KernelNeighbour>,
    pub(super) routes: &'a [KernelRoute],
}

/// The picture, without rules, sysctls and ages.
pub(super) fn observe(device: &str, dumps: &Dumps<'_>) -> Actual {
    let mut actual = Actual::default();
    let tap = tap_name(device);
    let mut by_index: BTreeMap<u32, usize> = BTreeMap::new();
    for link in &dumps.links {
        // A TAP device has the same kind, but a link-layer address.
        if link.name == device && link.kind == "tun" && link.mac.is_none() {
            actual.device = Some(own_device(link));
        } else if link.name == tap && link.kind == "tun" && link.mac.is_some() {
            actual.tap = Some(own_device(link));
        } else if is_pod_veth(link) {
            actual.veths.push(ObservedVeth {
                name: link.name.clone(),
                index: link.index,
                alias: link.alias.as_deref().and_then(Alias::parse),
                pod_mac: link.altnames.iter().find_map(|name| tag::parse_mac_altname(&link.name, name)),
                mtu: link.mtu,
                up: link.up,
            });
        } else {
            by_index.insert(link.index, actual.foreign_links.len());
            actual.foreign_links.push(foreign_link(link));
        }
    }
    let tun = actual.device.as_ref().map(|device| device.index);
    let pods: BTreeSet<u32> = actual.veths.iter().map(|veth| veth.index).collect();
    for address in &dumps.addresses {
        if Some(address.link) == tun {
            actual.device_addresses.insert(address.net);
        } else if pods.contains(&address.link) {
            if address.net == IpNet::from(IpAddr::V6(tag::GATEWAY_V6)) {
                actual.gateways.insert(address.link);
            }
        } else if let Some(link) =
            by_index.get(&address.link).and_then(|at| actual.foreign_links.get_mut(*at))
        {
            link.addresses.push(address.net);
        }
    }
    let permanent = dumps.neighbours.iter().filter(|entry| entry.permanent && pods.contains(&entry.link));
    actual.neighbours = permanent
        .map(|entry| Neighbour { link: entry.link, address: entry.address, mac: entry.mac })
        .collect();
    let names: BTreeMap<u32, &str> =
        dumps.links.iter().map(|link| (link.index, link.name.as_str())).collect();
    for route in dumps.routes.iter().filter(|route| route.table == TABLE_MAIN) {
        let by_tun = route.link.is_some() && route.link == tun;
        let length = route.destination.prefix_len();
        if length == route.destination.max_prefix_len() && route.link.is_some() && !by_tun {
            actual.routed_hosts.push(route.destination.addr());
        }
        let name = || route.link.and_then(|link| names.get(&link)).map(|name| (*name).to_owned());
        if let Some(route) = own_route(route) {
            actual.routes.insert(route);
        } else if length == 0 {
            let advertised = route.protocol == PROTOCOL_RA && route.destination.addr().is_ipv6();
            actual.advertised_defaults.extend(name().filter(|_| advertised));
        } else if !by_tun {
            let (destination, metric) = (route.destination, route.metric);
            let gateway = route.gateway.is_some();
            actual.foreign_routes.push(ForeignRoute { destination, metric, link: name(), gateway });
        }
    }
    actual
}

fn own_device(link: &Link) -> Device {
    let (index, name, mtu) = (link.index, link.name.clone(), link.mtu);
    Device { index, name, mtu, tx_queue_len: link.tx_queue_len, up: link.up }
}

fn is_pod_veth(link: &Link) -> bool {
    link.kind == "veth" && link.group == tag::VETH_GROUP && link.name.starts_with(tag::VETH_PREFIX)
}

fn foreign_link(link: &Link) -> ForeignLink {
    ForeignLink {
        index: link.index,
        name: link.name.clone(),
        kind: link.kind.clone(),
        mtu: link.mtu,
        up: link.up,
        addresses: Vec::new(),
        tunnel_gso: false,
        vxlan_port: link.vxlan_port,
        vxlan_vni: link.vxlan_vni,
    }
}

/// A route as ours, if it has our protocol and lies in table main.
pub(super) fn own_route(route: &KernelRoute) -> Option<Route> {
    if route.protocol != tag::ROUTE_PROTOCOL || route.table != TABLE_MAIN {
        return None;
    }
    let via = match route.kind {
        RouteKind::Unicast => Via::Link(route.link?),
        RouteKind::Unreachable => Via::Unreachable,
        RouteKind::Other(_) => return None,
    };
    let KernelRoute { destination, metric, source, mtu, .. } = *route;
    Some(Route { destination, metric, via, source, mtu })
}

/// A route of ours as the kernel wants it.
pub(super) fn request(route: &Route) -> KernelRoute {
    let (kind, link) = match route.via {
        Via::Link(link) => (RouteKind::Unicast, Some(link)),
        Via::Unreachable => (RouteKind::Unreachable, None),
    };
    let Route { destination, metric, source, mtu, .. } = *route;
    let (table, protocol) = (TABLE_MAIN, tag::ROUTE_PROTOCOL);
    KernelRoute {
        destination,
        table,
        metric,
        kind,
        protocol,
        link,
        gateway: None,
        source,
        mtu,
        onlink: false,
    }
}

/// Host addresses of table main with the link that they are routed to.
pub(super) fn routed_links(routes: &[KernelRoute]) -> BTreeSet<(IpAddr, u32)> {
    let host = |route: &&KernelRoute| {
        route.table == TABLE_MAIN && route.destination.prefix_len() == route.destination.max_prefix_len()
    };
    routes.iter().filter(host).filter_map(|route| Some((route.destination.addr(), route.link?))).collect()
}

/// The sysctls that decisions depend on.
pub(super) fn sysctl_keys(device: &str, actual: &Actual) -> Vec<String> {
    let mut keys = vec![FORWARDING_V4.to_owned(), FORWARDING_V6.to_owned(), rp_filter("all")];
    keys.extend(actual.advertised_defaults.iter().map(|link| accept_ra(link)));
    keys.extend([accept_ra(device), addr_gen_mode(device), disable_ipv6(device), rp_filter(device)]);
    keys.extend(actual.veths.iter().map(|veth| rp_filter(&veth.name)));
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            mtu: 1500,
            up: true,
            loopback: false,
            mac: None,
            group: 0,
            alias: None,
            altnames: Vec::new(),
            tx_queue_len: 1000,
            vxlan_port: None,
            vxlan_vni: None,
        }
    }

    fn route(destination: &str, link: u32, protocol: u8) -> KernelRoute {
        KernelRoute {
            destination: destination.parse().unwrap(),
            table: TABLE_MAIN,
            metric: 0,
            kind: RouteKind::Unicast,
            protocol,
            link: Some(link),
            gateway: None,
            source: None,
            mtu: None,
            onlink: false,
        }
    }

    #[test]
    fn only_tagged_objects_are_ours() {
        let veth = |index, name: &str, group| Link { group, ..link(index, name, "veth") };
        let links = vec![
            link(1, "ovl0", "tun"),
            veth(2, "ovp000000000001", tag::VETH_GROUP),
            veth(3, "ovp000000000002", 0),
            veth(4, "vethabc", tag::VETH_GROUP),
            link(5, "eth0", ""),
        ];
        let routes = [
            route("10.244.2.0/24", 1, tag::ROUTE_PROTOCOL),
            route("10.244.1.5/32", 2, tag::ROUTE_PROTOCOL),
            route("10.244.1.6/32", 4, 3),
            route("10.244.3.0/24", 5, 3),
            route("0.0.0.0/0", 5, 3),
            route("::/0", 5, PROTOCOL_RA),
        ];
        let actual =
            observe("ovl0", &Dumps { links, addresses: Vec::new(), neighbours: Vec::new(), routes: &routes });
        assert_eq!(actual.device.map(|device| device.index), Some(1));
        assert_eq!(actual.veths.iter().map(|veth| veth.index).collect::<Vec<_>>(), [2]);
        assert_eq!(actual.foreign_links.len(), 3);
        assert_eq!(actual.routes.len(), 2);
        assert_eq!(actual.routed_hosts.len(), 2);
        assert_eq!(actual.foreign_routes.len(), 2);
        assert_eq!(actual.advertised_defaults, BTreeSet::from(["eth0".to_owned()]));
    }

    #[test]
    fn a_tap_device_or_another_kind_of_our_name_is_foreign() {
        let tap = Link { mac: Some(wire::packet::MacAddr([2, 0, 0, 0, 0, 1])), ..link(1, "ovl0", "tun") };
        for foreign in [tap, link(1, "ovl0", "bridge")] {
            let actual = observe(
                "ovl0",
                &Dumps { links: vec![foreign], addresses: Vec::new(), neighbours: Vec::new(), routes: &[] },
            );
            assert_eq!(actual.device, None);
            assert_eq!(actual.foreign_links.len(), 1);
        }
    }

    #[test]
    fn own_routes_survive_request_then_own_route() {
        for via in [Via::Link(9), Via::Unreachable] {
            let destination = "fd00:2::/64".parse().unwrap();
            let ours = Route {
                destination,
                metric: 1024,
                via,
                source: Some("fd00:1::".parse().unwrap()),
                mtu: Some(1430),
            };
            assert_eq!(own_route(&request(&ours)), Some(ours));
        }
    }
}
