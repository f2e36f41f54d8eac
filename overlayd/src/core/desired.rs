//! What the kernel should hold, as a value.
//!
//! The wish is derived anew each round from configuration, cluster and what the kernel shows; nothing is remembered.

pub mod egress;
mod keeping;
pub mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use wire::tag;

use super::cluster::{Cluster, Own};
use super::config::Config;
use super::leases::ObservedVeth;
use super::plan::ruleset::{Device, FORWARD_TAG, Family, Part, Range, Rule, Ruleset, ranges};
use super::plan::{Actual, ForeignLink, Neighbour, Route, UplinkTable, Via};

/// Bytes that VXLAN puts around an inner packet over IPv4: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348, 5).
pub const OVERHEAD_V4: u32 = 50;

/// The same over IPv6, whose header has 40 bytes.
pub const OVERHEAD_V6: u32 = 70;

/// Metric of the unreachable routes: greater than any that a person or a routing daemon gives, so they lose against all.
pub const UNREACHABLE_METRIC: u32 = 4_000_000_000;

/// Metric that IPv6 gives a route without one (`IP6_RT_PRIO_USER` of `net/ip6_route.h`). IPv4 has 0.
const METRIC_V6: u32 = 1024;

/// Everything the wish depends on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// Our own node (the daemon reconciles nothing before it is known).
    pub own: &'a Own,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Smaller path MTUs learnt by the datapath: underlay address of the peer to outer MTU in bytes.
    pub path_mtus: &'a BTreeMap<IpAddr, u32>,
    /// What the kernel holds now: facts such as the underlay link's MTU and the veths that need their routes.
    pub actual: &'a Actual,
}

/// The wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Name of the TUN device.
    pub device: String,
    /// UDP port of the tunnel.
    pub port: u16,
    /// MTU of the TUN device in bytes; `None` while the underlay's is unknown: it stays as it is.
    pub mtu: Option<u32>,
    /// Queue length of the TUN device in packets.
    pub queue_length: u32,
    /// All addresses of the TUN device.
    pub addresses: BTreeSet<IpNet>,
    /// Routes of ours, one per destination and metric.
    pub routes: BTreeSet<Route>,
    /// Host ends of pods' veths that must be up.
    pub links_up: BTreeSet<u32>,
    /// Those among them that must have the IPv6 gateway address.
    pub gateways: BTreeSet<u32>,
    /// Their permanent neighbour entries.
    pub neighbours: BTreeSet<Neighbour>,
    /// Veths to delete.
    pub surplus_links: BTreeSet<u32>,
    /// Sysctls in the order in which they are written.
    pub sysctls: Vec<Sysctl>,
    /// Our nftables table.
    pub table: Ruleset,
    /// The way of super-packets that leave whole.
    pub uplink_table: Option<UplinkTable>,
    /// Whether the rules below go into foreign forward chains that drop by policy.
    pub forward_accept: bool,
    /// What such a chain must accept for pods to be reachable.
    pub forward_rules: Vec<Rule>,
    /// Addresses whose flows to the outside must have source NAT.
    pub bare_flow_sources: Vec<Range>,
    /// Destinations that rightly see pod addresses: the cluster, what is exempted, and this node.
    pub bare_flow_exempt: Vec<Range>,
    /// Our own pod CIDRs of the families that we serve.
    pub own_cidrs: Vec<IpNet>,
}

/// A sysctl and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below `/proc/sys`.
    pub key: String,
    /// Value.
    pub value: String,
}

/// Derives the wish.
#[must_use]
pub fn desired(inputs: Inputs<'_>) -> Desired {
    let Inputs { config, own, actual, .. } = inputs;
    let families = families(own);
    let cluster = cluster_cidrs(inputs, &families);
    let table = egress::ruleset(inputs, &cluster, &families);
    let sources = families.iter().flat_map(|family| ranges(*family, &own.pod_cidrs)).collect();
    Desired {
        device: config.device.clone(),
        port: config.port,
        mtu: inner_mtu(config, own, actual),
        queue_length: config.queue_length,
        addresses: own.tunnel_addresses().into_iter().map(IpNet::from).collect(),
        routes: routes(inputs, &cluster, &families),
        links_up: settled(actual).map(|veth| veth.index).collect(),
        gateways: pods(actual).filter(|(_, address)| address.is_ipv6()).map(|(veth, _)| veth.index).collect(),
        neighbours: neighbours(actual),
        surplus_links: actual.orphans.clone(),
        sysctls: sysctls(inputs, &families),
        forward_accept: config.forward_accept,
        forward_rules: forward_rules(config),
        bare_flow_sources: sources,
        bare_flow_exempt: exempt(inputs, &cluster, &families),
        own_cidrs: own.pod_cidrs.clone(),
        uplink_table: uplink::table(inputs),
        table,
    }
}

/// Inner MTU in bytes for this node: configured, or that of the underlay link less the overhead (50 over IPv4, 70 over IPv6).
#[must_use]
pub fn inner_mtu(config: &Config, own: &Own, actual: &Actual) -> Option<u32> {
    // With both families IPv4 is the common one of most pairs of nodes; the routes of peers over IPv6 say less.
    let v4 = own
        .underlay_v4
        .and_then(|address| link_mtu(actual, address.into()))
        .map(|mtu| mtu - OVERHEAD_V4.min(mtu));
    let v6 = own
        .underlay_v6
        .and_then(|address| link_mtu(actual, address.into()))
        .map(|mtu| mtu - OVERHEAD_V6.min(mtu));
    let derived = v4.or(v6);
    match (config.mtu, derived) {
        (Some(configured), Some(derived)) => Some(configured.min(derived)),
        (configured, derived) => configured.or(derived),
    }
}

/// Inner MTU in bytes towards a peer behind this underlay address: what our link, the path as far as it is known, and the
/// configuration allow.
#[must_use]
pub fn peer_mtu(inputs: Inputs<'_>, underlay: IpAddr) -> Option<u32> {
    let Inputs { config, own, actual, path_mtus, .. } = inputs;
    let (overhead, local) = match underlay {
        IpAddr::V4(_) => (OVERHEAD_V4, own.underlay_v4.map(IpAddr::V4)),
        IpAddr::V6(_) => (OVERHEAD_V6, own.underlay_v6.map(IpAddr::V6)),
    };
    let link = local.and_then(|address| link_mtu(actual, address));
    let outer = [link, path_mtus.get(&underlay).copied()].into_iter().flatten().min();
    let inner = outer.map(|mtu| mtu - overhead.min(mtu));
    [inner, inner_mtu(config, own, actual)].into_iter().flatten().min()
}

/// MTU in bytes of the link that has this address.
fn link_mtu(actual: &Actual, address: IpAddr) -> Option<u32> {
    link_of(actual, address).map(|link| link.mtu)
}

/// The link that has this address.
fn link_of(actual: &Actual, address: IpAddr) -> Option<&ForeignLink> {
    let has = |nets: &[IpNet]| nets.iter().any(|net| net.addr() == address);
    actual.foreign_links.iter().find(|link| has(&link.addresses))
}

/// The families of our pods: only these are touched.
fn families(own: &Own) -> Vec<Family> {
    let found: BTreeSet<Family> = own.pod_cidrs.iter().map(|net| Family::of(net.addr())).collect();
    found.into_iter().collect()
}

/// Pod CIDRs of all nodes and configured ones, of the families that we serve.
fn cluster_cidrs(inputs: Inputs<'_>, families: &[Family]) -> Vec<IpNet> {
    let peers = inputs.cluster.peers.iter().flat_map(|peer| &peer.paths).flat_map(|path| &path.pod_cidrs);
    let all: BTreeSet<IpNet> = inputs
        .own
        .pod_cidrs
        .iter()
        .chain(peers)
        .chain(&inputs.config.cluster_cidrs)
        .filter(|net| families.contains(&Family::of(net.addr())))
        .map(IpNet::trunc)
        .collect();
    all.into_iter().collect()
}

fn settled(actual: &Actual) -> impl Iterator<Item = &ObservedVeth> {
    actual.veths.iter().filter(|veth| veth.alias.is_some() && actual.settled.contains(&veth.index))
}

/// The addresses of settled veths.
fn pods(actual: &Actual) -> impl Iterator<Item = (&ObservedVeth, IpAddr)> {
    let addresses =
        |veth: &'_ ObservedVeth| veth.alias.as_ref().map(|alias| alias.addresses.clone()).unwrap_or_default();
    settled(actual).flat_map(move |veth| addresses(veth).into_iter().map(move |address| (veth, address)))
}

/// As the plugin made them: the pod's MAC follows from the veth's names.
fn neighbours(actual: &Actual) -> BTreeSet<Neighbour> {
    pods(actual)
        .map(|(veth, address)| Neighbour {
            link: veth.index,
            address,
            mac: veth.pod_mac.unwrap_or_else(|| tag::pod_mac(&veth.name)),
        })
        .collect()
}

fn routes(inputs: Inputs<'_>, cluster: &[IpNet], families: &[Family]) -> BTreeSet<Route> {
    let mut routes = Vec::with_capacity(2 * cluster.len() + inputs.actual.veths.len());
    routes.extend(cluster.iter().map(|destination| {
        let (destination, metric, via) = (*destination, UNREACHABLE_METRIC, Via::Unreachable);
        Route { destination, metric, via, source: None, mtu: None }
    }));
    if let Some(device) = &inputs.actual.device {
        let own = inputs.own.tunnel_addresses();
        for path in inputs.cluster.peers.iter().flat_map(|peer| &peer.paths) {
            let mtu = peer_mtu(inputs, path.underlay);
            for cidr in path.pod_cidrs.iter().filter(|net| families.contains(&Family::of(net.addr()))) {
                let family = Family::of(cidr.addr());
                let source = own.iter().copied().find(|address| Family::of(*address) == family);
                let metric = if family == Family::V4 { 0 } else { METRIC_V6 };
                let (destination, via) = (cidr.trunc(), Via::Link(device.index));
                routes.push(Route { destination, metric, via, source, mtu });
            }
        }
    }
    routes.extend(pods(inputs.actual).map(|(veth, address)| {
        let (destination, metric) = (IpNet::from(address), tag::POD_ROUTE_METRIC);
        Route { destination, metric, via: Via::Link(veth.index), source: None, mtu: None }
    }));
    // Of several for one place the first stays, as the sort is stable.
    routes.sort_by_key(Route::key);
    routes.dedup_by_key(|route| route.key());
    routes.into_iter().collect()
}

fn sysctls(inputs: Inputs<'_>, families: &[Family]) -> Vec<Sysctl> {
    let Inputs { config, actual, .. } = inputs;
    let mut all = Vec::new();
    let mut want = |key: String, value: &str| {
        // What does not exist (IPv6 off, the device not there yet) is nothing to set.
        if actual.sysctls.contains_key(&key) {
            all.push(Sysctl { key, value: value.to_owned() });
        }
    };
    if families.contains(&Family::V6) {
        // First: forwarding alone makes the kernel drop its router-advertised default route at once.
        for link in &actual.advertised_defaults {
            let key = accept_ra(link);
            if actual.sysctls.get(&key).is_some_and(|value| value == "1") {
                want(key, "2");
            }
        }
        want(FORWARDING_V6.to_owned(), "1");
        // A node that turned IPv6 off for new devices would refuse the tunnel address.
        want(disable_ipv6(&config.device), "0");
    }
    want(FORWARDING_V4.to_owned(), "1");
    want(accept_ra(&config.device), "0");
    // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: no link-local address, so nothing of the kernel's own on the tunnel.
    want(addr_gen_mode(&config.device), "1");
    let strict = |key: &str| actual.sysctls.get(key).and_then(|value| value.parse::<u32>().ok()).unwrap_or(0);
    let everywhere = strict(&rp_filter("all"));
    let veths = actual.veths.iter().map(|veth| &veth.name);
    for link in std::iter::once(&config.device).chain(veths) {
        let key = rp_filter(link);
        // The kernel takes the greater of both: 1 is strict, 2 loose.
        if everywhere.max(strict(&key)) == 1 {
            want(key, "2");
        }
    }
    all
}

/// `net.ipv4.ip_forward` below `/proc/sys`.
pub const FORWARDING_V4: &str = "net/ipv4/ip_forward";

/// `net.ipv6.conf.all.forwarding` below `/proc/sys`.
pub const FORWARDING_V6: &str = "net/ipv6/conf/all/forwarding";

/// The link's `accept_ra` below `/proc/sys`.
#[must_use]
pub fn accept_ra(link: &str) -> String {
    format!("net/ipv6/conf/{link}/accept_ra")
}

/// The link's `disable_ipv6` below `/proc/sys`.
#[must_use]
pub fn disable_ipv6(link: &str) -> String {
    format!("net/ipv6/conf/{link}/disable_ipv6")
}

/// The link's `addr_gen_mode` below `/proc/sys`.
#[must_use]
pub fn addr_gen_mode(link: &str) -> String {
    format!("net/ipv6/conf/{link}/addr_gen_mode")
}

/// The link's IPv4 `rp_filter` below `/proc/sys`.
#[must_use]
pub fn rp_filter(link: &str) -> String {
    format!("net/ipv4/conf/{link}/rp_filter")
}

/// By device and not by address: a handful whatever the cluster looks like, and in a form that iptables can show.
fn forward_rules(config: &Config) -> Vec<Rule> {
    let rule =
        |part: Part| Rule { comment: FORWARD_TAG.to_owned(), parts: vec![part, Part::Counter, Part::Accept] };
    let pods = || Device::Prefixed(tag::VETH_PREFIX.to_owned());
    let tunnel = || Device::Named(config.device.clone());
    vec![
        rule(Part::InDevice(pods())),
        rule(Part::OutDevice(pods())),
        rule(Part::InDevice(tunnel())),
        rule(Part::OutDevice(tunnel())),
    ]
}

fn exempt(inputs: Inputs<'_>, cluster: &[IpNet], families: &[Family]) -> Vec<Range> {
    let local = inputs
        .actual
        .foreign_links
        .iter()
        .flat_map(|link| &link.addresses)
        .map(|net| IpNet::from(net.addr()));
    let multicast = families.iter().flat_map(|family| egress::multicast(*family));
    let all: Vec<IpNet> = cluster
        .iter()
        .chain(&inputs.config.no_masquerade_cidrs)
        .copied()
        .chain(multicast)
        .chain(local)
        .collect();
    families.iter().flat_map(|family| ranges(*family, &all)).collect()
}

#[cfg(test)]
pub(crate) mod tests;
