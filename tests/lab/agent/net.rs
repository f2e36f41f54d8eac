//! The lab's network: links, addresses, routes, switches.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use cni_shim::netlink::{Link, Netlink, Route, RouteKind, VethSpec};
use ipnet::IpNet;
use tests::protocol::Step;
use wire::packet::MacAddr;

use crate::init::{Spaces, in_space};
use crate::{firewall, ioctl, rtnetlink};

/// `RT_TABLE_MAIN`.
const TABLE_MAIN: u32 = 254;
/// `RTPROT_STATIC`.
const PROTOCOL_STATIC: u8 = 4;

/// Sets `lo` up in the calling thread's namespace.
pub(crate) fn loopback_up() -> Result<()> {
    let mut netlink = Netlink::open()?;
    let lo = link(&mut netlink, "lo")?;
    Ok(netlink.set_link_up(lo.index, true)?)
}

fn link(netlink: &mut Netlink, name: &str) -> Result<Link> {
    netlink.link_by_name(name)?.ok_or_else(|| anyhow!("no link {name}"))
}

/// Carries out steps in order.
pub(crate) fn carry_out(spaces: &Arc<Spaces>, steps: &[Step]) -> Result<()> {
    for step in steps {
        one(spaces, step).with_context(|| format!("{step:?}"))?;
    }
    Ok(())
}

fn one(spaces: &Spaces, step: &Step) -> Result<()> {
    if let Step::Veth { a, b, mtu } = step {
        let (other, mtu) = (spaces.get(&b.space)?, *mtu);
        let (name, peer) = (a.name.clone(), b.name.clone());
        in_space(spaces.get(&a.space)?, move || {
            let mut netlink = Netlink::open()?;
            netlink.create_veth(&VethSpec {
                host_name: &name,
                host_mac: random_mac(),
                group: 0,
                pod_name: &peer,
                pod_mac: random_mac(),
                pod_netns: other.net.as_fd(),
                mtu,
            })?;
            let index = link(&mut netlink, &name)?.index;
            Ok(netlink.set_link_up(index, true)?)
        })?;
        return one(spaces, &Step::State { space: b.space.clone(), link: b.name.clone(), up: true });
    }
    let (Step::Bridge { space, .. }
    | Step::Port { space, .. }
    | Step::Vxlan { space, .. }
    | Step::Address { space, .. }
    | Step::DeleteAddress { space, .. }
    | Step::Alias { space, .. }
    | Step::Tunnel { space, .. }
    | Step::VxlanPeer { space, .. }
    | Step::Route { space, .. }
    | Step::DeleteRoute { space, .. }
    | Step::Unreachable { space, .. }
    | Step::State { space, .. }
    | Step::Mtu { space, .. }
    | Step::Delete { space, .. }
    | Step::Features { space, .. }
    | Step::Sysctl { space, .. }
    | Step::QueueLength { space, .. }
    | Step::DeleteNeighbour { space, .. }
    | Step::DeleteRule { space, .. }
    | Step::Nft { space, .. }
    | Step::Veth { a: tests::protocol::End { space, .. }, .. }) = step;
    let (space, step) = (spaces.get(space)?, step.clone());
    in_space(space, move || inside(step))
}

/// Carries out a step in the calling thread's namespace, whatever space it names.
pub(crate) fn inside(step: Step) -> Result<()> {
    let mut netlink = Netlink::open()?;
    match step {
        // Made by the caller, because it touches two namespaces.
        Step::Veth { .. } => {}
        Step::Bridge { name, mtu, .. } => {
            ioctl::add_bridge(&name)?;
            let index = link(&mut netlink, &name)?.index;
            netlink.set_link_mtu(index, mtu)?;
            netlink.set_link_up(index, true)?;
        }
        Step::Port { bridge, port, .. } => {
            let index = link(&mut netlink, &port)?.index;
            ioctl::add_bridge_port(&bridge, index)?;
        }
        Step::Vxlan { name, vni, port, .. } => {
            rtnetlink::add_vxlan(&name, vni, port)?;
            let index = link(&mut netlink, &name)?.index;
            netlink.set_link_up(index, true)?;
        }
        Step::Address { link: name, net, .. } => {
            let index = link(&mut netlink, &name)?.index;
            netlink.add_address(index, net)?;
        }
        Step::Alias { link: name, text, .. } => {
            let index = link(&mut netlink, &name)?.index;
            netlink.set_link_alias(index, &text)?;
        }
        Step::Tunnel { name, vni, port, local, mac, mtu, .. } => {
            let mac: MacAddr = mac.parse().map_err(|error| anyhow!("{mac}: {error}"))?;
            rtnetlink::add_tunnel(&name, vni, port, local, mac)?;
            let index = link(&mut netlink, &name)?.index;
            netlink.set_link_mtu(index, mtu)?;
            netlink.set_link_up(index, true)?;
        }
        Step::VxlanPeer { link: name, mac, tunnel, node, pods, .. } => {
            let index = link(&mut netlink, &name)?.index;
            let mac: MacAddr = mac.parse().map_err(|error| anyhow!("{mac}: {error}"))?;
            netlink.set_permanent_neighbour(index, tunnel, mac)?;
            rtnetlink::forward(index, mac, node)?;
            netlink.add_route(&Route { onlink: true, ..route_by(index, pods, Some(tunnel)) })?;
        }
        Step::Route { destination, via, link: name, .. } => {
            let index = name.map(|name| link(&mut netlink, &name).map(|link| link.index)).transpose()?;
            netlink.add_route(&Route { link: index, ..route_by(0, destination, via) })?;
        }
        Step::Unreachable { destination, metric, .. } => netlink.add_route(&Route {
            destination,
            table: TABLE_MAIN,
            metric,
            kind: RouteKind::Unreachable,
            protocol: PROTOCOL_STATIC,
            link: None,
            gateway: None,
            source: None,
            mtu: None,
            onlink: false,
        })?,
        Step::DeleteRoute { destination, metric, .. } => delete_routes(&mut netlink, destination, metric)?,
        Step::State { link: name, up, .. } => {
            let index = link(&mut netlink, &name)?.index;
            netlink.set_link_up(index, up)?;
        }
        Step::Mtu { link: name, mtu, .. } => {
            let index = link(&mut netlink, &name)?.index;
            netlink.set_link_mtu(index, mtu)?;
        }
        Step::Delete { link: name, .. } => {
            let index = link(&mut netlink, &name)?.index;
            netlink.delete_link(index)?;
        }
        Step::Features { link, features, .. } => ioctl::set_features(&link, &features)?,
        Step::Sysctl { key, value, .. } => {
            let path = format!("/proc/sys/{key}");
            fs::write(&path, &value).with_context(|| format!("write {value} to {path}"))?;
        }
        Step::DeleteAddress { link: name, net, .. } => {
            let index = link(&mut netlink, &name)?.index;
            netlink.delete_address(index, net)?;
        }
        Step::QueueLength { link: name, packets, .. } => {
            let index = link(&mut netlink, &name)?.index;
            netlink.set_link_tx_queue_len(index, packets)?;
        }
        Step::DeleteNeighbour { link: name, address, .. } => {
            let index = link(&mut netlink, &name)?.index;
            rtnetlink::delete_neighbour(index, address)?;
        }
        Step::DeleteRule { source, .. } => {
            for rule in netlink.rules()?.iter().filter(|rule| rule.source == source) {
                netlink.delete_rule(rule)?;
            }
        }
        Step::Nft { change, .. } => firewall::change(&change)?,
    }
    Ok(())
}

/// A route of table main, protocol static.
fn route_by(link: u32, destination: IpNet, gateway: Option<IpAddr>) -> Route {
    Route {
        destination,
        table: TABLE_MAIN,
        metric: 0,
        kind: RouteKind::Unicast,
        protocol: PROTOCOL_STATIC,
        link: Some(link),
        gateway,
        source: None,
        mtu: None,
        onlink: false,
    }
}

fn delete_routes(netlink: &mut Netlink, destination: IpNet, metric: Option<u32>) -> Result<()> {
    let ours = |route: &Route| {
        route.destination == destination
            && route.table == TABLE_MAIN
            && metric.is_none_or(|metric| metric == route.metric)
    };
    let routes: Vec<Route> = netlink.routes()?.into_iter().filter(ours).collect();
    anyhow::ensure!(!routes.is_empty(), "no route to {destination}");
    for route in &routes {
        netlink.delete_route(route)?;
    }
    Ok(())
}

fn random_mac() -> MacAddr {
    let mut bytes = [0; 6];
    fastrand::Rng::new().fill(&mut bytes);
    // Locally administered, not multicast (IEEE 802: the two low bits of the first byte).
    bytes[0] = 0x02;
    MacAddr(bytes)
}
