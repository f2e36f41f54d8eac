//! The believed picture, kept up to date.
//!
//! A claim that contradicts nobody's is nobody else's concern: then a Node that changes is judged alone. If it has a part in a
//! contradiction, before or after the change, all are judged anew.

use std::collections::BTreeMap;

use super::claims::{Claims, LostClaim};
use super::fold::Fold;
use super::{Change, Cluster, Peer, PeerChange, Refusal};
use crate::core::config::Config;
use crate::core::node::NodeObject;

/// The believed picture, and what a Node that changes is held against.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    pub(super) cluster: Cluster,
    claims: Claims,
    lost: Vec<LostClaim>,
}

/// Nodes that changed, by name, each as it was when the picture was made.
pub(super) type Changed = BTreeMap<String, Option<NodeObject>>;

impl Picture {
    /// Judges all Nodes.
    pub(super) fn whole(config: &Config, nodes: &BTreeMap<String, NodeObject>, synced: bool) -> Self {
        let mut fold = Fold::new(config, Claims::default(), &[]);
        let (own, own_problem) = match fold.own(nodes, synced) {
            Ok(own) => (Some(own), None),
            Err(problem) => (None, Some(problem)),
        };
        let mut peers = Vec::new();
        if let Some(own) = &own {
            let mut others: Vec<&NodeObject> =
                nodes.values().filter(|node| node.name != config.node_name).collect();
            others.sort_by_key(|node| age(node));
            peers.extend(others.into_iter().filter_map(|node| fold.peer(own, node)));
        }
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let Fold { claims, lost, mut refused, .. } = fold;
        refused.sort();
        refused.dedup();
        Self { cluster: Cluster { own, own_problem, peers, refused }, claims, lost }
    }

    /// Judges only the Nodes that changed; the picture is then the one of [`Self::whole`]. `None`, and the picture needs to be made
    /// anew, if that could concern others.
    pub(super) fn revise(
        &mut self,
        config: &Config,
        nodes: &BTreeMap<String, NodeObject>,
        changed: &Changed,
    ) -> Option<Change> {
        let Cluster { own, peers, refused, .. } = &mut self.cluster;
        let changes = |name: &str| changed.contains_key(name);
        let is_contest = |lost: &LostClaim| {
            lost.holder.as_ref().is_some_and(|holder| changes(holder) || changes(&lost.node))
        };
        if changes(&config.node_name) || self.lost.iter().any(is_contest) {
            return None;
        }
        self.lost.retain(|lost| !changes(&lost.node));
        let own = own.as_ref()?;
        let mut fold = Fold::new(config, std::mem::take(&mut self.claims), &self.lost);
        let mut changes: Vec<PeerChange> = Vec::with_capacity(changed.len());
        for (name, node) in changed {
            let before = place_of(peers, name).ok().and_then(|at| peers.get(at)).cloned();
            fold.forget(node.as_ref(), before.as_ref());
            changes.push(PeerChange { before, after: None });
        }
        for (name, change) in changed.keys().zip(&mut changes) {
            change.after = nodes.get(name).and_then(|node| fold.peer(own, node));
        }
        let Fold { claims, refused: mut news, lost, meets_lost, .. } = fold;
        if meets_lost || lost.iter().any(|lost| lost.holder.is_some()) {
            return None;
        }
        self.claims = claims;
        self.lost.extend(lost);
        for (name, change) in changed.keys().zip(&changes) {
            match (place_of(peers, name), &change.after) {
                (Ok(at), Some(peer)) => peers[at] = peer.clone(),
                (Ok(at), None) => _ = peers.remove(at),
                (Err(at), Some(peer)) => peers.insert(at, peer.clone()),
                (Err(_), None) => {}
            }
        }
        changes.retain(|change| change.before != change.after);
        news.sort();
        news.dedup();
        let known: Vec<Refusal> =
            refused.extract_if(.., |refusal| changed.contains_key(&refusal.node)).collect();
        let change = Change { own: false, peers: changes, refused: fresh(&known, &news) };
        refused.extend(news);
        refused.sort();
        Some(change)
    }

    /// What is new in this picture.
    pub(super) fn since(&self, old: Cluster) -> Change {
        let new = &self.cluster;
        Change {
            own: (&old.own, &old.own_problem) != (&new.own, &new.own_problem),
            peers: differences(old.peers, &new.peers),
            refused: fresh(&old.refused, &new.refused),
        }
    }
}

/// Those of the new refusals that are not among the old ones, which are sorted.
fn fresh(old: &[Refusal], new: &[Refusal]) -> Vec<Refusal> {
    new.iter().filter(|refusal| old.binary_search(refusal).is_err()).cloned().collect()
}

/// Where in the list, sorted by name, this peer is or would be.
fn place_of(peers: &[Peer], name: &str) -> Result<usize, usize> {
    peers.binary_search_by(|peer| peer.name.as_str().cmp(name))
}

/// The peers that are not the same in both lists, which are sorted by name.
fn differences(old: Vec<Peer>, new: &[Peer]) -> Vec<PeerChange> {
    let mut changes = Vec::new();
    let mut new = new.iter().peekable();
    for before in old {
        while let Some(after) = new.next_if(|peer| peer.name < before.name) {
            changes.push(PeerChange { before: None, after: Some(after.clone()) });
        }
        let after = new.next_if(|peer| peer.name == before.name);
        if after != Some(&before) {
            changes.push(PeerChange { after: after.cloned(), before: Some(before) });
        }
    }
    changes.extend(new.map(|after| PeerChange { before: None, after: Some(after.clone()) }));
    changes
}

/// What orders Nodes by age; one of unknown age has the least claim.
fn age(node: &NodeObject) -> (bool, &str, &str) {
    (node.created.is_empty(), &node.created, &node.name)
}
