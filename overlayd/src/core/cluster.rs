//! Folds Node events into an immutable picture of the cluster.
//!
//! What is believed is a function of the set of raw Node objects alone, whatever the events were that led to it: other nodes'
//! objects are hostile input, and a bad one costs itself, never a good one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use wire::packet::MacAddr;

use super::config::Config;
use super::node::NodeObject;

mod annotations;
mod announcement;
mod claims;
mod doubt;
mod fold;
mod picture;

pub use annotations::AnnotationPrefix;
pub use announcement::{Announcement, announcement};
pub use doubt::{Doubt, doubt};
use picture::{Changed, Picture};

/// What a source of Node objects reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// The complete list: nodes that are not in it are gone.
    Listed(Vec<NodeObject>),
    /// One node is new or changed.
    Applied(Box<NodeObject>),
    /// One node is gone.
    Deleted(String),
    /// The source answers, and what it told stands.
    InStep,
    /// The source cannot be read. Never means "no nodes".
    Trouble(String),
}

/// All Node objects known, raw, and the picture that was last derived from them.
#[derive(Clone, Debug, Default)]
pub struct Book {
    nodes: BTreeMap<String, NodeObject>,
    synced: bool,
    picture: Picture,
    /// What changed since; `None` if anything may have.
    changed: Option<Changed>,
}

/// What is new in a picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether our own node, or what keeps it from serving, is another.
    pub own: bool,
    /// The peers that came, changed or went.
    pub peers: Vec<PeerChange>,
    /// What is refused that was not before.
    pub refused: Vec<Refusal>,
}

impl Change {
    /// Whether nothing is new.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One peer before and after; one that came or went is `None` there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// As it was.
    pub before: Option<Peer>,
    /// As it is.
    pub after: Option<Peer>,
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
    /// Whether it contradicts what an older Node, or ours, claims.
    pub is_conflict: bool,
}

/// The MAC address of a node's VTEP that announces none: a function of its name, so that every node knows
/// it without being told.
#[must_use]
pub fn vtep_mac(node_name: &str) -> MacAddr {
    let digest: [u8; 32] = Sha256::digest(node_name).into();
    let [a, b, c, d, e, f, ..] = digest;
    MacAddr::local([a, b, c, d, e, f])
}

impl Book {
    /// Takes in one event. Returns whether anything that we read changed, or the first complete list came.
    pub fn apply(&mut self, event: NodeEvent) -> bool {
        match event {
            NodeEvent::Listed(list) => {
                let nodes = list.into_iter().map(|node| (node.name.clone(), node)).collect();
                let changed = !self.synced || self.nodes != nodes;
                self.nodes = nodes;
                self.synced = true;
                if changed {
                    self.changed = None;
                }
                changed
            }
            NodeEvent::Applied(node) => {
                if self.nodes.get(&node.name) == Some(&*node) {
                    return false;
                }
                let name = node.name.clone();
                let before = self.nodes.insert(name.clone(), *node);
                self.note(name, before);
                true
            }
            NodeEvent::Deleted(name) => {
                let before = self.nodes.remove(&name);
                let changed = before.is_some();
                if changed {
                    self.note(name, before);
                }
                changed
            }
            NodeEvent::InStep | NodeEvent::Trouble(_) => false,
        }
    }

    fn note(&mut self, name: String, before: Option<NodeObject>) {
        if let Some(changed) = &mut self.changed {
            changed.entry(name).or_insert(before);
        }
    }

    /// Fills an empty book with what an earlier daemon knew. It serves until the first complete list.
    pub fn seed(&mut self, nodes: Vec<NodeObject>) {
        if !self.synced && self.nodes.is_empty() {
            self.nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
            self.changed = None;
        }
    }

    /// The raw Node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeObject> {
        self.nodes.get(name)
    }

    /// How many Nodes are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no Node is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
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

    /// The believed picture, as it was last derived.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.picture.cluster
    }

    /// Derives the believed picture and tells what is new in it. Without our own node nobody is a peer yet. Linear in the Nodes
    /// but for the logarithm of a look-up; if Nodes changed that have no part in a contradiction, linear in those. `config` is the
    /// same each time.
    pub fn derive(&mut self, config: &Config) -> Change {
        if let Some(changed) = self.changed.replace(Changed::new())
            && let Some(change) = self.picture.revise(config, &self.nodes, &changed)
        {
            return change;
        }
        let old = std::mem::replace(&mut self.picture, Picture::whole(config, &self.nodes, self.synced));
        self.picture.since(old.cluster)
    }
}

#[cfg(test)]
mod tests;
