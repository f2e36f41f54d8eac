//! The difference between wish and reality, as ordered operations.
//!
//! Everything here is a value. Ownership is a tag on the kernel object (device name, route protocol, table name, veth
//! prefix and group, rule comment): [`Actual`] holds our objects as such, and of foreign ones only facts. No operation
//! can name a foreign object; where one stands in our way, [`plan`] leaves the place to it and [`conflicts`] names it.

mod conflict;
pub mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use wire::packet::MacAddr;
use wire::tag;

use super::desired::{Desired, egress};
use super::leases::ObservedVeth;
use ruleset::{ChainName, ElementChange, Family, ForwardChain, Range, Rule, Ruleset};

pub use conflict::{Conflict, conflicts};

/// What the kernel holds: our own objects, and the facts about others' that decisions need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Our veths.
    pub veths: Vec<ObservedVeth>,
    /// Every /32 and /128 host destination in table main, whoever owns it, that lies on a link (not the TUN).
    pub routed_hosts: Vec<IpAddr>,
    /// Indexes of veths of ours whose plumbing is over: what they lack was lost, and is ours to restore.
    pub settled: BTreeSet<u32>,
    /// Indexes of veths with our prefix and group that stayed without an alias for longer than any plumbing lasts.
    pub orphans: BTreeSet<u32>,
    /// Permanent neighbour entries on our veths.
    pub neighbours: BTreeSet<Neighbour>,
    /// Indexes of our veths that have the IPv6 gateway address.
    pub gateways: BTreeSet<u32>,
    /// Our TUN device.
    pub device: Option<Device>,
    /// Addresses on it, of any scope.
    pub device_addresses: BTreeSet<IpNet>,
    /// Routes of table main with our protocol number.
    pub routes: BTreeSet<Route>,
    /// Our nftables table.
    pub table: Option<Ruleset>,
    /// The TAP device that super-packets leave by whole, while the datapath has it open.
    pub tap: Option<Device>,
    /// What our table of the `netdev` family does, if there is one.
    pub uplink_table: Option<UplinkTable>,
    /// Base chains of others on the forward hook that drop by policy or hold rules of ours.
    pub forward_chains: Vec<ForwardChain>,
    /// Values of the sysctls that we care about, by path below `/proc/sys`; one that does not exist is not here.
    pub sysctls: BTreeMap<String, String>,
    /// All other links.
    pub foreign_links: Vec<ForeignLink>,
    /// Routes of table main that others own, default routes left out.
    pub foreign_routes: Vec<ForeignRoute>,
    /// Names of the links that a router-advertised IPv6 default route leaves by.
    pub advertised_defaults: BTreeSet<String>,
}

impl Actual {
    /// Shows what the kernel holds after this operation, if that follows from the operation alone: so it is with all that peers are
    /// made of. Otherwise the kernel must be read again, and `false` is returned.
    pub fn take_in(&mut self, op: &Op) -> bool {
        let tun = self.device.as_ref().map(|device| Via::Link(device.index));
        let is_plain = |route: &Route| route.via == Via::Unreachable || Some(route.via) == tun;
        match op {
            Op::AddRoute(route) if is_plain(route) => self.routes.insert(route.clone()),
            Op::ReplaceRoute(route) if is_plain(route) => {
                let (destination, metric) = route.key();
                let first = Route { destination, metric, via: Via::Link(0), source: None, mtu: None };
                let old = self.routes.range(first..).next().filter(|old| old.key() == route.key()).cloned();
                old.is_some_and(|old| self.routes.remove(&old)) && self.routes.insert(route.clone())
            }
            Op::DeleteRoute(route) if is_plain(route) => self.routes.remove(route),
            Op::ChangeElements(changes) => {
                let Some(table) = &mut self.table else { return false };
                changes.iter().all(|change| table.take_in(change))
            }
            Op::OpenUplinks(table) => {
                self.uplink_table = Some(table.clone());
                self.tap.iter_mut().for_each(|tap| tap.up = true);
                self.tap.is_some()
            }
            Op::ForgetBareFlows { .. } => true,
            _ => false,
        }
    }
}

/// A device of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Transmit queue's length in packets.
    pub tx_queue_len: u32,
    /// Whether it is up.
    pub up: bool,
}

/// Our table of the `netdev` family: what is written to a TAP device leaves by a link of each family, and nothing else enters
/// there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkTable {
    /// Name of the TAP device.
    pub device: String,
    /// Index of the link by which outer packets of a family leave.
    pub links: Vec<(Family, u32)>,
}

/// A permanent neighbour entry on a veth of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// Interface index.
    pub link: u32,
    /// The pod's address.
    pub address: IpAddr,
    /// The MAC of the pod's end.
    pub mac: MacAddr,
}

/// A link of somebody else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignLink {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind as the kernel names it, empty for hardware.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Whether it segments TCP below the headers of a UDP tunnel, outer checksums included.
    pub tunnel_gso: bool,
    /// UDP port, if it is a vxlan device.
    pub vxlan_port: Option<u16>,
    /// VNI, if it is a vxlan device.
    pub vxlan_vni: Option<u32>,
}

/// A route of somebody else in table main.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRoute {
    /// Destination.
    pub destination: IpNet,
    /// Metric.
    pub metric: u32,
    /// Name of the link it leaves by, if it has one.
    pub link: Option<String>,
    /// Whether it leads to a router.
    pub gateway: bool,
}

/// A route of ours in table main. Destination and metric are its identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Metric.
    pub metric: u32,
    /// Where to.
    pub via: Via,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
}

impl Route {
    /// What the kernel allows once.
    #[must_use]
    pub fn key(&self) -> (IpNet, u32) {
        (self.destination, self.metric)
    }
}

/// Where a route of ours leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// Out by the link with this index.
    Link(u32),
    /// Back to the sender as an ICMP error.
    Unreachable,
}

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a sysctl.
    SetSysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// Value.
        value: String,
    },
    /// Sets the TUN device's MTU in bytes.
    SetMtu {
        /// Interface index.
        link: u32,
        /// Bytes.
        mtu: u32,
    },
    /// Sets the TUN device's queue length in packets.
    SetQueueLength {
        /// Interface index.
        link: u32,
        /// Packets.
        packets: u32,
    },
    /// Brings a link of ours up.
    SetUp {
        /// Interface index.
        link: u32,
    },
    /// Adds an address to the TUN device or a veth of ours.
    AddAddress {
        /// Interface index.
        link: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Removes an address from the TUN device.
    DeleteAddress {
        /// Interface index.
        link: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Sets a permanent neighbour entry.
    SetNeighbour(Neighbour),
    /// Adds a route exclusively.
    AddRoute(Route),
    /// Replaces our route of the same identity.
    ReplaceRoute(Route),
    /// Deletes a route of ours.
    DeleteRoute(Route),
    /// Puts this in the place of our table, in one transaction.
    ReplaceTable(Ruleset),
    /// Removes elements of our sets and adds others, in one transaction.
    ChangeElements(Vec<ElementChange>),
    /// Deletes our table.
    DeleteTable,
    /// Brings the TAP device up, and puts this in the place of our table of the `netdev` family.
    OpenUplinks(UplinkTable),
    /// Deletes conntrack entries that leave the cluster without source NAT: they began while our table was missing,
    /// and would stay bare for as long as they live.
    ForgetBareFlows {
        /// Sources: pods of this node.
        sources: Vec<Range>,
        /// Destinations that rightly see pod addresses.
        exempt: Vec<Range>,
    },
    /// Inserts tagged rules at the head of somebody else's chain.
    InsertForwardRules {
        /// The chain.
        chain: ChainName,
        /// The rules, in the order in which they shall stand.
        rules: Vec<Rule>,
    },
    /// Deletes a tagged rule from somebody else's chain.
    DeleteForwardRule {
        /// The chain.
        chain: ChainName,
        /// The kernel's handle of the rule.
        handle: u64,
    },
    /// Deletes a link of ours.
    DeleteLink {
        /// Interface index.
        link: u32,
        /// Name: another link may have the index by now.
        name: String,
    },
}

/// Ordered operations that turn `have` into `want`: creations before deletions.
#[must_use]
pub fn plan(want: &Desired, have: &Actual) -> Vec<Op> {
    let mut create = sysctls(want, have);
    let mut delete = Vec::new();
    device(want, have, &mut create, &mut delete);
    veths(want, have, &mut create);
    routes(want, have, &mut create, &mut delete);
    table(want, have, &mut create);
    uplink(want, have, &mut create);
    forward(want, have, &mut create, &mut delete);
    let surplus = have.veths.iter().filter(|veth| want.surplus_links.contains(&veth.index));
    delete.extend(surplus.map(|veth| Op::DeleteLink { link: veth.index, name: veth.name.clone() }));
    create.append(&mut delete);
    create
}

/// Operations that remove all that is ours on this node but the pods' veths.
#[must_use]
pub fn cleanup_plan(have: &Actual) -> Vec<Op> {
    let mut ops = Vec::new();
    for chain in &have.forward_chains {
        for (handle, _) in &chain.ours {
            ops.push(Op::DeleteForwardRule { chain: chain.name.clone(), handle: *handle });
        }
    }
    if have.table.is_some() {
        ops.push(Op::DeleteTable);
    }
    // Host routes go with the veths that they lead to.
    let to_veth = |route: &Route| have.veths.iter().any(|veth| route.via == Via::Link(veth.index));
    ops.extend(have.routes.iter().filter(|route| !to_veth(route)).cloned().map(Op::DeleteRoute));
    if let Some(device) = &have.device {
        ops.push(Op::DeleteLink { link: device.index, name: device.name.clone() });
    }
    ops
}

/// Operations that take the network away from every pod of ours.
#[must_use]
pub fn cleanup_veths_plan(have: &Actual) -> Vec<Op> {
    have.veths.iter().map(|veth| Op::DeleteLink { link: veth.index, name: veth.name.clone() }).collect()
}

fn sysctls(want: &Desired, have: &Actual) -> Vec<Op> {
    want.sysctls
        .iter()
        .filter(|sysctl| have.sysctls.get(&sysctl.key).is_some_and(|value| *value != sysctl.value))
        .map(|sysctl| Op::SetSysctl { key: sysctl.key.clone(), value: sysctl.value.clone() })
        .collect()
}

fn device(want: &Desired, have: &Actual, create: &mut Vec<Op>, delete: &mut Vec<Op>) {
    let Some(device) = &have.device else { return };
    let link = device.index;
    if let Some(mtu) = want.mtu.filter(|mtu| *mtu != device.mtu) {
        create.push(Op::SetMtu { link, mtu });
    }
    if want.queue_length != device.tx_queue_len {
        create.push(Op::SetQueueLength { link, packets: want.queue_length });
    }
    if !device.up {
        create.push(Op::SetUp { link });
    }
    let missing = want.addresses.difference(&have.device_addresses);
    create.extend(missing.map(|net| Op::AddAddress { link, net: *net }));
    let stale = have.device_addresses.difference(&want.addresses);
    delete.extend(stale.map(|net| Op::DeleteAddress { link, net: *net }));
}

fn veths(want: &Desired, have: &Actual, create: &mut Vec<Op>) {
    let down = have.veths.iter().filter(|veth| !veth.up && want.links_up.contains(&veth.index));
    create.extend(down.map(|veth| Op::SetUp { link: veth.index }));
    let net = IpNet::from(IpAddr::V6(tag::GATEWAY_V6));
    create.extend(want.gateways.difference(&have.gateways).map(|link| Op::AddAddress { link: *link, net }));
    create.extend(want.neighbours.difference(&have.neighbours).copied().map(Op::SetNeighbour));
}

fn routes(want: &Desired, have: &Actual, create: &mut Vec<Op>, delete: &mut Vec<Op>) {
    let taken: BTreeSet<(IpNet, u32)> =
        have.foreign_routes.iter().map(|route| (route.destination, route.metric)).collect();
    // Routes to links other than the TUN belong to a pod that the plugin may be plumbing right now; they go with
    // their link and are never deleted by destination.
    let tun = have.device.as_ref().map(|device| Via::Link(device.index));
    let mut drop_if_ours = |route: &Route| {
        if route.via == Via::Unreachable || Some(route.via) == tun {
            delete.push(Op::DeleteRoute(route.clone()));
        }
    };
    // Both ascend by key.
    let mut present = have.routes.iter().peekable();
    for route in &want.routes {
        while let Some(stale) = present.next_if(|present| present.key() < route.key()) {
            drop_if_ours(stale);
        }
        let (mut is_there, mut is_right) = (false, false);
        while let Some(same) = present.next_if(|present| present.key() == route.key()) {
            (is_there, is_right) = (true, is_right || same == route);
        }
        if !is_there && !taken.contains(&route.key()) {
            create.push(Op::AddRoute(route.clone()));
        } else if is_there && !is_right {
            create.push(Op::ReplaceRoute(route.clone()));
        }
    }
    present.for_each(drop_if_ours);
}

fn table(want: &Desired, have: &Actual, create: &mut Vec<Op>) {
    let whole = have.table.as_ref().filter(|table| table.same_shape(&want.table));
    let Some(table) = whole else {
        create.push(Op::ReplaceTable(want.table.clone()));
        create.push(forget_bare_flows(want));
        return;
    };
    let changed = table.element_changes(&want.table);
    if changed.is_empty() {
        return;
    }
    // Pods that go out bare when these elements are not there.
    let masqueraded = |pods: &Range| {
        let cluster = egress::set_names(Family::of(pods.first)).cluster;
        table.ranges(cluster).iter().any(|range| range.first <= pods.first && pods.last <= range.last)
    };
    let exposed = !want.bare_flow_sources.iter().all(masqueraded);
    create.push(Op::ChangeElements(changed));
    if exposed {
        create.push(forget_bare_flows(want));
    }
}

/// A table that is not wanted any more may stay: nobody writes to the device then, and it goes with the daemon.
fn uplink(want: &Desired, have: &Actual, create: &mut Vec<Op>) {
    let is_open = have.tap.as_ref().is_some_and(|tap| tap.up) && have.uplink_table == want.uplink_table;
    create.extend(want.uplink_table.iter().filter(|_| !is_open).cloned().map(Op::OpenUplinks));
}

fn forget_bare_flows(want: &Desired) -> Op {
    Op::ForgetBareFlows { sources: want.bare_flow_sources.clone(), exempt: want.bare_flow_exempt.clone() }
}

fn forward(want: &Desired, have: &Actual, create: &mut Vec<Op>, delete: &mut Vec<Op>) {
    for chain in &have.forward_chains {
        let wanted: &[Rule] =
            if chain.policy_drop && want.forward_accept { &want.forward_rules } else { &[] };
        if chain.ours.iter().map(|(_, rule)| rule).eq(wanted) {
            continue;
        }
        if !wanted.is_empty() {
            create.push(Op::InsertForwardRules { chain: chain.name.clone(), rules: wanted.to_vec() });
        }
        delete.extend(
            chain
                .ours
                .iter()
                .map(|(handle, _)| Op::DeleteForwardRule { chain: chain.name.clone(), handle: *handle }),
        );
    }
}

#[cfg(test)]
mod laws;
