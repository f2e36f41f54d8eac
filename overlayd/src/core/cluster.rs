//! Folds Node events into an immutable picture of the cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use wire::packet::MacAddr;

use super::config::Config;
use super::node::NodeObject;

/// What a source of Node objects reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// The complete list: nodes that are not in it are gone.
    Listed(Vec<NodeObject>),
    /// One node is new or changed.
    Applied(Box<NodeObject>),
    /// One node is gone.
    Deleted(String),
    /// The source cannot be read. Never means "no nodes".
    Trouble(String),
}

/// All Node objects known, raw. The only state; [`Book::cluster`] derives the rest.
#[derive(Clone, Debug, Default)]
pub struct Book {
    nodes: BTreeMap<String, NodeObject>,
    synced: bool,
}

/// The believed picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Our own node, or why it cannot serve.
    pub own: Option<Own>,
    /// In words: why `own` is `None` (no such Node, no podCIDR and which kube-controller-manager flag, no address).
    pub own_problem: Option<String>,
    /// Peers by name.
    pub peers: Vec<Peer>,
    /// Nodes (or single CIDRs of them) that were refused.
    pub refused: Vec<Refusal>,
}

/// Our own node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Name.
    pub name: String,
    /// Our pod CIDRs, IPv4 first.
    pub pod_cidrs: Vec<IpNet>,
    /// Our IPv4 underlay address.
    pub underlay_v4: Option<Ipv4Addr>,
    /// Our IPv6 underlay address.
    pub underlay_v6: Option<Ipv6Addr>,
    /// MAC of our VTEP: inner destination of what we accept.
    pub mac: MacAddr,
}

impl Own {
    /// The tunnel addresses: the network address of each pod CIDR (as flannel), IPv4 first.
    #[must_use]
    pub fn tunnel_addresses(&self) -> Vec<IpAddr> {
        self.pod_cidrs.iter().map(IpNet::network).collect()
    }
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name.
    pub name: String,
    /// Ways to it: one for all its CIDRs, or with flannel's prefix one per family.
    pub paths: Vec<PeerPath>,
}

/// One VTEP of a peer and what lies behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPath {
    /// Outer destination, and the only outer source accepted.
    pub underlay: IpAddr,
    /// Inner destination MAC.
    pub mac: MacAddr,
    /// Pod CIDRs that travel by this path.
    pub pod_cidrs: Vec<IpNet>,
}

/// A Node, or a part of one, that is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Refusal {
    /// Name of the Node.
    pub node: String,
    /// Why, in one sentence that names the offending value.
    pub reason: String,
}

impl Book {
    /// Takes in one event. Returns whether anything that we read changed.
    pub fn apply(&mut self, event: NodeEvent) -> bool {
        let _ = event;
        todo!()
    }

    /// Whether a complete list has been seen since the start.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The raw Nodes, for the cache file.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeObject> {
        self.nodes.values().cloned().collect()
    }

    /// Derives the believed picture.
    #[must_use]
    pub fn cluster(&self, config: &Config) -> Cluster {
        let _ = config;
        todo!()
    }
}
