//! The `inet overlayd` table of island mode: how packets of pods leave, and what connection tracking must not see.
//!
//! Chain `postrouting` sees the first packet of every connection that leaves the node or goes to a local pod, after
//! routing and after every destination NAT. Per family, in this order:
//!
//! | # | match | verdict | why |
//! |---|---|---|---|
//! | 1 | mark has kube-proxy's bit | return | kube-proxy masquerades it; by the TUN that gives the tunnel address too |
//! | 2 | destination is a pod of this node | return | node to pod, pod to pod, outside to pod keep their source |
//! | 3 | by the TUN, source not a pod address of this node | masquerade | or the peer's source check drops it |
//! | 4 | source and destination in the cluster | return | pod to pod |
//! | 5 | source in the cluster, destination in `bypass` | return | multicast, and what the operator exempts |
//! | 6 | source in the cluster | masquerade | the way out; other nodes' addresses included |
//!
//! A pod that talks to its own node never comes here: that traffic ends in the input hook. A host process that takes
//! the tunnel route has the tunnel address, which lies in our pod CIDR, as its source, so rule 3 leaves it alone;
//! it sees forwarded packets (NodePort) and local ones whose destination was rewritten after the source was chosen.
//!
//! Chain `tunnel_guard` drops what pods send to the tunnel's port at other nodes. It would leave with this node's address, and
//! the other node could not tell it from our own datagrams: any pod could speak for all pods of its node, and for the node.
//! It stands in the forward hook, where a destination NAT has happened and the incoming device is known.
//!
//! Chains `raw_output` and `raw_prerouting` take the tunnel's own datagrams out of connection tracking. A tracked
//! tunnel costs two hash lookups per datagram and an entry per source port and peer, and a full conntrack table
//! would stop all pods. The price: a stateful host firewall must allow the UDP port explicitly (it must anyway, as the
//! peer may speak first), and one that drops `ct state invalid` also drops the ICMP errors of the tunnel. The rules name our
//! underlay address on purpose: without it a pod's datagram to the same port of a host outside would lose its SNAT.

use std::net::IpAddr;

use ipnet::IpNet;
use wire::tag;

use super::Inputs;
use crate::core::plan::ruleset::{Chain, Device, Family, Membership, Part, Rule, Ruleset, Set, ranges};

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// `NF_IP_PRI_NAT_SRC` of `linux/netfilter_ipv4.h`.
const PRIORITY_SRCNAT: i32 = 100;

/// `NF_IP_PRI_FILTER`.
const PRIORITY_FILTER: i32 = 0;

/// `NF_IP_PRI_RAW`: before connection tracking (-200).
const PRIORITY_RAW: i32 = -300;

/// `enum nf_inet_hooks` of `linux/netfilter.h`.
const HOOK_PREROUTING: u32 = 0;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;

/// Names of the sets of one family.
#[derive(Clone, Copy, Debug)]
pub struct SetNames {
    /// Our own pod CIDRs.
    pub own: &'static str,
    /// Pod CIDRs of the whole cluster.
    pub cluster: &'static str,
    /// Destinations outside that see pod addresses.
    pub bypass: &'static str,
    /// Underlay addresses of the other nodes.
    pub nodes: &'static str,
}

/// Names of the sets of this family.
#[must_use]
pub fn set_names(family: Family) -> SetNames {
    match family {
        Family::V4 => SetNames { own: "own4", cluster: "cluster4", bypass: "bypass4", nodes: "nodes4" },
        Family::V6 => SetNames { own: "own6", cluster: "cluster6", bypass: "bypass6", nodes: "nodes6" },
    }
}

/// Multicast is never translated: 224.0.0.0/4 (RFC 5771) and ff00::/8 (RFC 4291).
pub(super) fn multicast(family: Family) -> Option<IpNet> {
    let (address, length): (IpAddr, u8) = match family {
        Family::V4 => ([224, 0, 0, 0].into(), 4),
        Family::V6 => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    IpNet::new(address, length).ok()
}

/// The table that these inputs ask for. `cluster` are the pod CIDRs of everybody, `families` those of our pods.
pub(super) fn ruleset(inputs: Inputs<'_>, cluster: &[IpNet], families: &[Family]) -> Ruleset {
    let mut sets: Vec<Set> = families.iter().flat_map(|family| sets(inputs, cluster, *family)).collect();
    sets.sort();
    let rules = families.iter().flat_map(|family| island(inputs, *family)).collect();
    let postrouting = Chain {
        name: "postrouting".to_owned(),
        kind: "nat".to_owned(),
        hook: HOOK_POSTROUTING,
        priority: PRIORITY_SRCNAT,
        policy_drop: false,
        rules,
    };
    let [raw_output, raw_prerouting] = raw(inputs);
    let tunnel_guard = Chain {
        name: "tunnel_guard".to_owned(),
        kind: "filter".to_owned(),
        hook: HOOK_FORWARD,
        priority: PRIORITY_FILTER,
        policy_drop: false,
        rules: families.iter().map(|family| guard(inputs, *family)).collect(),
    };
    Ruleset { sets, chains: vec![postrouting, raw_output, raw_prerouting, tunnel_guard] }
}

fn sets(inputs: Inputs<'_>, cluster: &[IpNet], family: Family) -> [Set; 4] {
    let names = set_names(family);
    let never = multicast(family);
    let underlays = inputs.cluster.peers.iter().flat_map(|peer| &peer.paths).map(|path| path.underlay.into());
    let nodes: Vec<IpNet> = underlays.collect();
    let set = |name: &str, ranges| Set { name: name.to_owned(), family, ranges };
    [
        set(names.own, ranges(family, &inputs.own.pod_cidrs)),
        set(names.cluster, ranges(family, cluster)),
        set(names.bypass, ranges(family, inputs.config.no_masquerade_cidrs.iter().chain(&never))),
        set(names.nodes, ranges(family, &nodes)),
    ]
}

fn island(inputs: Inputs<'_>, family: Family) -> Vec<Rule> {
    let names = set_names(family);
    let member = |set: &str, inside| Membership { set: set.to_owned(), family, inside };
    let by_tun = || Part::OutDevice(Device::Named(inputs.config.device.clone()));
    let masquerade = || Part::Masquerade { fully_random: inputs.config.masquerade_fully_random };
    let rule = |comment: &str, parts: Vec<Part>| {
        let mut all = vec![Part::Family(family)];
        all.extend(parts);
        Rule { comment: comment.to_owned(), parts: all }
    };
    let mut rules = Vec::with_capacity(6);
    if inputs.config.masquerade_mark != 0 {
        rules.push(rule(
            "kube-proxy masquerades it",
            vec![Part::MarkBits(inputs.config.masquerade_mark), Part::Return],
        ));
    }
    rules.extend([
        rule("to a pod of this node", vec![Part::DestinationIn(member(names.own, true)), Part::Return]),
        rule(
            "foreign source into the tunnel",
            vec![by_tun(), Part::SourceIn(member(names.own, false)), Part::Counter, masquerade()],
        ),
        rule(
            "pod to pod",
            vec![
                Part::SourceIn(member(names.cluster, true)),
                Part::DestinationIn(member(names.cluster, true)),
                Part::Return,
            ],
        ),
        rule(
            "pod to an exempted destination",
            vec![
                Part::SourceIn(member(names.cluster, true)),
                Part::DestinationIn(member(names.bypass, true)),
                Part::Return,
            ],
        ),
        rule(
            "pod to outside",
            vec![Part::SourceIn(member(names.cluster, true)), Part::Counter, masquerade()],
        ),
    ]);
    rules
}

fn guard(inputs: Inputs<'_>, family: Family) -> Rule {
    let nodes = Membership { set: set_names(family).nodes.to_owned(), family, inside: true };
    Rule {
        comment: "pod plays the tunnel".to_owned(),
        parts: vec![
            Part::InDevice(Device::Prefixed(tag::VETH_PREFIX.to_owned())),
            Part::Family(family),
            Part::DestinationIn(nodes),
            Part::Protocol(UDP),
            Part::DestinationPort(inputs.config.port),
            Part::Counter,
            Part::Drop,
        ],
    }
}

fn raw(inputs: Inputs<'_>) -> [Chain; 2] {
    let v4 = inputs.own.underlay_v4.map(IpAddr::V4);
    let v6 = inputs.own.underlay_v6.map(IpAddr::V6);
    let rules = |end: fn(IpAddr) -> Part| -> Vec<Rule> {
        v4.into_iter()
            .chain(v6)
            .map(|address| Rule {
                comment: "tunnel datagram".to_owned(),
                parts: vec![
                    Part::Family(Family::of(address)),
                    end(address),
                    Part::Protocol(UDP),
                    Part::DestinationPort(inputs.config.port),
                    Part::Notrack,
                ],
            })
            .collect()
    };
    let chain = |name: &str, hook, rules| Chain {
        name: name.to_owned(),
        kind: "filter".to_owned(),
        hook,
        priority: PRIORITY_RAW,
        policy_drop: false,
        rules,
    };
    [
        chain("raw_output", HOOK_OUTPUT, rules(Part::Source)),
        chain("raw_prerouting", HOOK_PREROUTING, rules(Part::Destination)),
    ]
}
