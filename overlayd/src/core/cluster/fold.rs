//! Judges raw Nodes.
//!
//! Nodes are judged one by one, our own first, then from the oldest to the youngest. Each is held against
//! what was believed before it, so between two that contradict one another the older is believed, and the
//! order in which events came makes no difference.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use wire::packet::MacAddr;

use super::annotations::{
    AnnotationPrefix, Family, Publisher, backend_data, local_address, overwriting_address, pod_cidrs,
    public_address, shorten,
};
use super::claims::{Claims, Key, LostClaim, address_of, key};
use super::{Own, Peer, PeerPath, Refusal, vtep_mac};
use crate::core::config::Config;
use crate::core::node::NodeObject;

/// Least MTU of a link that carries IPv6 (RFC 8200, section 5).
const IPV6_MTU: u32 = 1280;

/// What is known while Nodes are judged.
pub(super) struct Fold<'c> {
    config: &'c Config,
    prefix: AnnotationPrefix,
    pub(super) claims: Claims,
    pub(super) refused: Vec<Refusal>,
    pub(super) lost: Vec<LostClaim>,
    /// What Nodes that are not judged now have lost.
    others_lost: &'c [LostClaim],
    /// Whether a claim that is believed meets one of those: who is right is then another question.
    pub(super) meets_lost: bool,
}

impl<'c> Fold<'c> {
    /// Nothing judged yet, but these claims believed.
    pub(super) fn new(config: &'c Config, claims: Claims, others_lost: &'c [LostClaim]) -> Self {
        Self {
            config,
            // A configuration that was resolved has a prefix that parses.
            prefix: AnnotationPrefix::parse(&config.annotation_prefix).unwrap_or_default(),
            claims,
            refused: Vec::new(),
            lost: Vec::new(),
            others_lost,
            meets_lost: false,
        }
    }

    /// Takes back what a Node claimed that contradicted nobody.
    pub(super) fn forget(&mut self, node: Option<&NodeObject>, peer: Option<&Peer>) {
        let (Some(node), Some(peer)) = (node, peer) else { return };
        for cidr in peer.paths.iter().flat_map(|path| &path.pod_cidrs) {
            self.claims.cidrs.remove(&key(cidr.network()));
        }
        for family in Family::BOTH {
            if let Ok(Some(address)) = public_address(&self.prefix, node, family) {
                self.claims.underlays.remove(&key(address));
            }
        }
    }

    /// Our own node, or why it cannot serve.
    pub(super) fn own(&mut self, nodes: &BTreeMap<String, NodeObject>, synced: bool) -> Result<Own, String> {
        let name = &self.config.node_name;
        let Some(node) = nodes.get(name) else { return Err(self.no_own_node(nodes, synced)) };
        let v4 = self.own_underlay(node, Family::V4);
        let v6 = self.own_underlay(node, Family::V6);
        if v4.is_none() && v6.is_none() {
            return Err(format!(
                "Node {name} has no usable address: it needs a status.addresses entry of type InternalIP, \
                 or the annotation {}",
                self.prefix.key("public-ip")
            ));
        }
        let pod_cidrs = self.believe_cidrs(node);
        if pod_cidrs.is_empty() {
            return Err(format!(
                "Node {name} has no usable pod CIDR: kube-controller-manager gives one when it runs with \
                 --allocate-node-cidrs=true and --cluster-cidr; without it, set spec.podCIDRs or the \
                 annotation {}",
                self.prefix.key("pod-cidrs")
            ));
        }
        if let (Some(mtu), true) = (self.config.mtu, pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()))
            && mtu < IPV6_MTU
        {
            return Err(format!(
                "Node {name} has an IPv6 pod CIDR, which needs an MTU of at least {IPV6_MTU}, but mtu is {mtu}"
            ));
        }
        let mac = self.own_mac(node);
        Ok(Own { name: name.clone(), pod_cidrs, underlay_v4: only_v4(v4), underlay_v6: only_v6(v6), mac })
    }

    fn no_own_node(&self, nodes: &BTreeMap<String, NodeObject>, synced: bool) -> String {
        let name = &self.config.node_name;
        if nodes.is_empty() {
            let state = if synced { "there are no Nodes" } else { "no Nodes have been read yet" };
            return format!("there is no Node named {name}: {state}");
        }
        let some: Vec<&str> = nodes.keys().take(5).map(String::as_str).collect();
        let more = if nodes.len() > some.len() { ", ..." } else { "" };
        format!(
            "there is no Node named {name} (node_name); the {} known: {}{more}",
            nodes.len(),
            some.join(", ")
        )
    }

    fn own_underlay(&mut self, node: &NodeObject, family: Family) -> Option<IpAddr> {
        let publisher =
            if self.config.nodes_file.is_some() { Publisher::Operator } else { Publisher::Ourselves };
        let local = local_address(&self.prefix, node, family, publisher).unwrap_or_else(|problem| {
            self.refuse(node, problem);
            None
        })?;
        // Peers know us by the public address, so nobody else may claim it either; one that we shall correct is no claim.
        let public = match publisher {
            Publisher::Operator => public_address(&self.prefix, node, family).ok().flatten(),
            Publisher::Ourselves => overwriting_address(&self.prefix, node, family).ok().flatten(),
        };
        for address in [Some(local), public].into_iter().flatten() {
            self.claims.underlays.insert(key(address), node.name.as_str().into());
        }
        Some(local)
    }

    fn own_mac(&mut self, node: &NodeObject) -> MacAddr {
        let mut mac = None;
        // Without flannel a node has one VTEP, which `backend-data` describes.
        let families = if self.prefix.is_flannel() { Family::BOTH.as_slice() } else { &[Family::V4] };
        for family in families {
            let data = match backend_data(&self.prefix, node, *family) {
                Ok(data) => data.unwrap_or_default(),
                Err(problem) => {
                    self.refuse(node, problem);
                    continue;
                }
            };
            if let Some(vni) = data.vni.filter(|vni| *vni != self.config.vni) {
                let ours = self.config.vni;
                self.refuse(
                    node,
                    format!("announces VNI {vni}, but this daemon is configured with vni {ours}"),
                );
            }
            if let (Some(first), Some(other)) = (mac, data.mac)
                && first != other
            {
                self.refuse(node, format!("announces VtepMAC {other} for IPv6, but {first} serves both"));
            }
            mac = mac.or(data.mac);
        }
        mac.unwrap_or_else(|| vtep_mac(&node.name))
    }

    /// The peer that this Node is, if it is believed.
    pub(super) fn peer(&mut self, own: &Own, node: &NodeObject) -> Option<Peer> {
        if self.prefix.is_flannel() && self.prefix.get(node, "kube-subnet-manager") != Some("true") {
            return None;
        }
        if let Some(other) = self.prefix.get(node, "backend-type").filter(|kind| *kind != "vxlan") {
            let reason = format!("{} is {}, not vxlan", self.prefix.key("backend-type"), shorten(other));
            self.refuse(node, reason);
            return None;
        }
        let told = self.refused.len();
        let underlays = Family::BOTH.map(|family| self.peer_underlay(node, family));
        if self.refused.len() > told && underlays.iter().all(Option::is_none) {
            // It cannot be reached, and why is said: that it then has no address at all is no news.
            return None;
        }
        let cidrs = self.believe_cidrs(node);
        let paths = match cidrs.as_slice() {
            [] => Vec::new(),
            cidrs if self.prefix.is_flannel() => self.paths_by_family(own, node, underlays, cidrs),
            cidrs => self.one_path(own, node, underlays, cidrs.to_vec()),
        };
        self.release(node, underlays, &cidrs, &paths);
        (!paths.is_empty()).then(|| Peer { name: node.name.clone(), paths })
    }

    /// Takes back the claims of a node that came to nothing: they must not cost another its place.
    fn release(
        &mut self,
        node: &NodeObject,
        underlays: [Option<IpAddr>; 2],
        cidrs: &[IpNet],
        paths: &[PeerPath],
    ) {
        let mut lose =
            |range| self.lost.push(LostClaim { node: node.name.as_str().into(), holder: None, range });
        for cidr in cidrs.iter().filter(|cidr| !paths.iter().any(|path| path.pod_cidrs.contains(cidr))) {
            self.claims.cidrs.remove(&key(cidr.network()));
            lose((key(cidr.network()), key(cidr.broadcast())));
        }
        if paths.is_empty() {
            for address in underlays.into_iter().flatten() {
                self.claims.underlays.remove(&key(address));
                lose((key(address), key(address)));
            }
        }
    }

    /// The address to send to, unless it contradicts what is believed already.
    fn peer_underlay(&mut self, node: &NodeObject, family: Family) -> Option<IpAddr> {
        let address = match public_address(&self.prefix, node, family) {
            Ok(address) => address?,
            Err(problem) => {
                self.refuse(node, problem);
                return None;
            }
        };
        let claim = (key(address), key(address));
        if let Some(holder) = self.claims.underlays.get(&key(address)).cloned() {
            let reason = format!("address {address} is that of {}", self.called(&holder));
            self.refuse_conflict(node, reason, holder, claim);
            return None;
        }
        if let Some((cidr, holder)) = self.cidr_over(address) {
            let reason = format!("address {address} lies in pod CIDR {cidr} of {}", self.called(&holder));
            self.refuse_conflict(node, reason, holder, claim);
            return None;
        }
        self.look_among_the_lost(claim);
        self.claims.underlays.insert(key(address), node.name.as_str().into());
        Some(address)
    }

    /// One path for everything, over the first IP version that both ends have.
    fn one_path(
        &mut self,
        own: &Own,
        node: &NodeObject,
        underlays: [Option<IpAddr>; 2],
        pod_cidrs: Vec<IpNet>,
    ) -> Vec<PeerPath> {
        let both = Family::BOTH
            .into_iter()
            .zip(underlays)
            .find_map(|(family, underlay)| underlay.filter(|_| own_has(own, family)));
        let Some(underlay) = both else {
            let have = if underlays.iter().any(Option::is_some) { "of our IP version" } else { "at all" };
            self.refuse(node, format!("has no usable address {have}: neither InternalIP nor annotation"));
            return Vec::new();
        };
        match self.mac(node, Family::V4) {
            Ok(mac) => vec![PeerPath { underlay, mac, pod_cidrs }],
            Err(problem) => {
                self.refuse(node, problem);
                Vec::new()
            }
        }
    }

    /// IPv4 over IPv4 and IPv6 over IPv6, each with a VTEP of its own, as flannel has it.
    fn paths_by_family(
        &mut self,
        own: &Own,
        node: &NodeObject,
        underlays: [Option<IpAddr>; 2],
        cidrs: &[IpNet],
    ) -> Vec<PeerPath> {
        let mut paths = Vec::new();
        for (family, underlay) in Family::BOTH.into_iter().zip(underlays) {
            let pod_cidrs: Vec<IpNet> =
                cidrs.iter().copied().filter(|cidr| Family::of(cidr.addr()) == family).collect();
            if pod_cidrs.is_empty() {
                continue;
            }
            let Some(underlay) = underlay.filter(|_| own_has(own, family)) else {
                let list = join(&pod_cidrs);
                self.refuse(
                    node,
                    format!("pod CIDR {list} has no way: not both ends have an address for it"),
                );
                continue;
            };
            match self.mac(node, family) {
                Ok(mac) => paths.push(PeerPath { underlay, mac, pod_cidrs }),
                Err(problem) => self.refuse(node, problem),
            }
        }
        paths
    }

    /// The MAC that a peer announces (with flannel's prefix it must), or the one of its name.
    fn mac(&self, node: &NodeObject, family: Family) -> Result<MacAddr, String> {
        let data = backend_data(&self.prefix, node, family)?;
        let flannel = self.prefix.is_flannel();
        if data.is_none() && flannel {
            return Err(format!("has no backend data for {family:?}, so its VTEP's MAC is unknown"));
        }
        let data = data.unwrap_or_default();
        let ours = self.config.vni;
        // Go reads an absent number as 0.
        if let Some(vni) = data.vni.or(flannel.then_some(0)).filter(|vni| *vni != ours) {
            return Err(format!("its VNI {vni} is not ours ({ours})"));
        }
        match data.mac {
            Some(mac) => Ok(mac),
            None if flannel => Err(format!("its backend data for {family:?} has no VtepMAC")),
            None => Ok(vtep_mac(&node.name)),
        }
    }

    /// This node's CIDRs that are sound and contradict nothing believed before, IPv4 first.
    fn believe_cidrs(&mut self, node: &NodeObject) -> Vec<IpNet> {
        let mut believed = Vec::new();
        let texts = pod_cidrs(&self.prefix, node);
        if texts.is_empty() {
            self.refuse(node, "has no pod CIDR yet".into());
        }
        for text in texts {
            match self.judge_cidr(text) {
                Ok(cidr) if believed.contains(&cidr) => {}
                Ok(cidr) => {
                    let claim = (key(cidr.network()), key(cidr.broadcast()));
                    match self.contradiction(cidr, claim) {
                        Some((reason, holder)) => self.refuse_conflict(node, reason, holder, claim),
                        None => {
                            self.look_among_the_lost(claim);
                            let (first, (_, end)) = claim;
                            self.claims.cidrs.insert(first, (end, cidr, node.name.as_str().into()));
                            believed.push(cidr);
                        }
                    }
                }
                Err(reason) => self.refuse(node, reason),
            }
        }
        believed.sort_by_key(|cidr| cidr.addr().is_ipv6());
        believed
    }

    fn judge_cidr(&self, text: &str) -> Result<IpNet, String> {
        let cidr: IpNet = text.parse().map_err(|_| format!("pod CIDR {} is not a CIDR", shorten(text)))?;
        let network = cidr.trunc();
        if network != cidr {
            return Err(format!("pod CIDR {cidr} has host bits set ({network} is the network)"));
        }
        // A single node with more than 2^24 IPv4 or 2^112 IPv6 addresses is a mistake or an attack: half
        // the Internet is as bad as a default route.
        let widest = if cidr.addr().is_ipv4() { 8 } else { 16 };
        if cidr.prefix_len() < widest {
            return Err(format!("pod CIDR {cidr} is too wide for one node (at least /{widest})"));
        }
        let special = [
            ("0.0.0.0/8", "this network"),
            ("127.0.0.0/8", "loopback"),
            ("169.254.0.0/16", "link-local"),
            ("224.0.0.0/3", "multicast and reserved"),
            ("::/16", "loopback and IPv4-mapped"),
            ("fe80::/10", "link-local"),
            ("ff00::/8", "multicast"),
        ];
        for (range, what) in special {
            if range.parse::<IpNet>().is_ok_and(|range| range.contains(&cidr) || cidr.contains(&range)) {
                return Err(format!("pod CIDR {cidr} lies in {range} ({what})"));
            }
        }
        Ok(cidr)
    }

    /// What believed fact this CIDR contradicts, in words, and who claims that.
    fn contradiction(&self, cidr: IpNet, (first, last): (Key, Key)) -> Option<(String, Box<str>)> {
        // Believed ranges are disjoint, so only the last one that begins at or before our end can overlap.
        if let Some((_, (end, other, holder))) = self.claims.cidrs.range(..=last).next_back()
            && key(other.network()).0 == first.0
            && *end >= first.1
        {
            let reason = format!("pod CIDR {cidr} overlaps {other} of {}", self.called(holder));
            return Some((reason, holder.clone()));
        }
        let (address, holder) = self.claims.underlays.range(first..=last).next()?;
        let address = address_of(*address);
        let reason = format!("pod CIDR {cidr} covers {address}, the address of {}", self.called(holder));
        Some((reason, holder.clone()))
    }

    /// The believed CIDR that covers this address.
    fn cidr_over(&self, address: IpAddr) -> Option<(IpNet, Box<str>)> {
        let (_, (_, cidr, holder)) = self.claims.cidrs.range(..=key(address)).next_back()?;
        cidr.contains(&address).then(|| (*cidr, holder.clone()))
    }

    fn called(&self, node: &str) -> String {
        if node == self.config.node_name { format!("this node ({node})") } else { format!("node {node}") }
    }

    fn refuse(&mut self, node: &NodeObject, reason: String) {
        self.refused.push(Refusal { node: node.name.clone(), reason, is_conflict: false });
    }

    fn refuse_conflict(&mut self, node: &NodeObject, reason: String, holder: Box<str>, range: (Key, Key)) {
        self.refused.push(Refusal { node: node.name.clone(), reason, is_conflict: true });
        self.lost.push(LostClaim { node: node.name.as_str().into(), holder: Some(holder), range });
    }

    fn look_among_the_lost(&mut self, (first, last): (Key, Key)) {
        let meets = |lost: &LostClaim| lost.range.0 <= last && first <= lost.range.1;
        self.meets_lost |= self.others_lost.iter().any(meets);
    }
}

fn own_has(own: &Own, family: Family) -> bool {
    match family {
        Family::V4 => own.underlay_v4.is_some(),
        Family::V6 => own.underlay_v6.is_some(),
    }
}

fn only_v4(address: Option<IpAddr>) -> Option<Ipv4Addr> {
    match address {
        Some(IpAddr::V4(v4)) => Some(v4),
        _ => None,
    }
}

fn only_v6(address: Option<IpAddr>) -> Option<Ipv6Addr> {
    match address {
        Some(IpAddr::V6(v6)) => Some(v6),
        _ => None,
    }
}

fn join(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
