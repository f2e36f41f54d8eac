//! The immutable peer table that workers read: inner destination to peer, outer source to peer.
//!
//! Destinations are found by longest prefix: one hash map per prefix length in use, longest first. A cluster
//! cuts its pod CIDRs in one or two sizes, so that a lookup is one or two probes whatever the number of peers.
//! Everything that encapsulation needs hangs on the entry found: the outer destination, the ready header
//! of either family, the counters.

mod counters;
mod direct;
mod prefixes;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use wire::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EncapHeader, MacAddr};

pub(super) use self::counters::Lane;
pub use self::counters::{CounterBook, PeerCounters, PeerTraffic, Traffic};
pub use self::direct::Direct;
use self::prefixes::{Map, Prefixes, repoint};
use super::cluster::{Own, Peer, PeerChange};

/// The table.
#[derive(Clone, Debug)]
pub struct Table {
    own: Own,
    vni: u32,
    direct: Direct,
    paths: Vec<Path>,
    destinations_v4: Prefixes<u32>,
    destinations_v6: Prefixes<u128>,
    sources_v4: Map<u32, u32>,
    sources_v6: Map<u128, u32>,
}

/// One way to one peer.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// Outer destination.
    pub(super) underlay: IpAddr,
    /// What precedes an inner IPv4 packet.
    pub(super) header_v4: EncapHeader,
    /// What precedes an inner IPv6 packet.
    pub(super) header_v6: EncapHeader,
    /// Whether super-packets to it may leave whole.
    pub(super) whole: bool,
    /// Inner sources accepted from it.
    pub(super) pod_cidrs: Arc<[IpNet]>,
    pub(super) counters: Arc<PeerCounters>,
}

impl Path {
    /// Whether this inner address lies behind this path.
    #[inline]
    pub(super) fn owns(&self, address: IpAddr) -> bool {
        self.pod_cidrs.iter().any(|cidr| cidr.contains(&address))
    }

    /// Whether this is a tunnel address of the peer: the network address of one of its CIDRs.
    #[inline]
    pub(super) fn is_tunnel_address(&self, address: IpAddr) -> bool {
        self.pod_cidrs.iter().any(|cidr| cidr.network() == address)
    }
}

impl Table {
    /// Builds a table for `workers` workers. Counters of peers that are gone are dropped from the book.
    ///
    /// Where two paths claim the same CIDR or underlay address, the first keeps it.
    #[must_use]
    pub fn build(own: &Own, peers: &[Peer], vni: u32, workers: usize, counters: &mut CounterBook) -> Self {
        let mut table = Self {
            own: own.clone(),
            vni,
            direct: Direct::default(),
            paths: Vec::with_capacity(peers.len()),
            destinations_v4: Prefixes::default(),
            destinations_v6: Prefixes::default(),
            sources_v4: Map::default(),
            sources_v6: Map::default(),
        };
        let mut book = CounterBook::default();
        for peer in peers {
            let counters = counters.counters(&peer.name, workers);
            book.peers.insert(peer.name.clone(), Arc::clone(&counters));
            table.add(peer, &counters);
        }
        *counters = book;
        table
    }

    /// This table after these changes: what [`Self::build`] makes of the peers there are then, at the cost of a copy and of those
    /// that changed.
    #[must_use]
    pub fn revised(&self, changes: &[PeerChange], workers: usize, counters: &mut CounterBook) -> Self {
        let mut table = self.clone();
        for peer in changes.iter().filter_map(|change| change.before.as_ref()) {
            peer.paths.iter().for_each(|path| table.remove_path(path.underlay));
        }
        for PeerChange { before, after } in changes {
            match (before, after) {
                (_, Some(peer)) => table.add(peer, &counters.counters(&peer.name, workers)),
                (Some(gone), None) => _ = counters.peers.remove(&gone.name),
                (None, None) => {}
            }
        }
        table
    }

    /// This table with super-packets to these underlay addresses leaving whole, and to no others (at first to none).
    #[must_use]
    pub fn with_direct(mut self, direct: Direct) -> Self {
        for path in &mut self.paths {
            path.whole = direct.reaches(path.underlay);
        }
        self.direct = direct;
        self
    }

    /// Where super-packets leave whole.
    #[must_use]
    pub fn direct(&self) -> &Direct {
        &self.direct
    }

    fn add(&mut self, peer: &Peer, counters: &Arc<PeerCounters>) {
        for path in &peer.paths {
            self.add_path(path.underlay, path.mac, &path.pod_cidrs, Arc::clone(counters));
        }
    }

    /// Takes the path to this underlay address out; the last one takes its place.
    fn remove_path(&mut self, underlay: IpAddr) {
        let index = match underlay {
            IpAddr::V4(v4) => self.sources_v4.get(&v4.to_bits()),
            IpAddr::V6(v6) => self.sources_v6.get(&v6.to_bits()),
        };
        let Some(index) = index.copied() else { return };
        let gone = self.paths.swap_remove(index as usize);
        self.repoint(&gone, index, None);
        if let Some(moved) = self.paths.get(index as usize).cloned() {
            self.repoint(&moved, self.paths.len() as u32, Some(index));
        }
    }

    /// Makes what leads to this path, which stood at `from`, lead to `to`, or nowhere.
    fn repoint(&mut self, path: &Path, from: u32, to: Option<u32>) {
        for cidr in path.pod_cidrs.iter() {
            match cidr {
                IpNet::V4(net) => {
                    self.destinations_v4.repoint(net.network().to_bits(), net.prefix_len(), from, to);
                }
                IpNet::V6(net) => {
                    self.destinations_v6.repoint(net.network().to_bits(), net.prefix_len(), from, to);
                }
            }
        }
        match path.underlay {
            IpAddr::V4(v4) => repoint(&mut self.sources_v4, v4.to_bits(), from, to),
            IpAddr::V6(v6) => repoint(&mut self.sources_v6, v6.to_bits(), from, to),
        }
    }

    fn add_path(&mut self, underlay: IpAddr, mac: MacAddr, cidrs: &[IpNet], counters: Arc<PeerCounters>) {
        let index = self.paths.len() as u32;
        for cidr in cidrs {
            match cidr.trunc() {
                IpNet::V4(net) => {
                    self.destinations_v4.insert(net.network().to_bits(), net.prefix_len(), index);
                }
                IpNet::V6(net) => {
                    self.destinations_v6.insert(net.network().to_bits(), net.prefix_len(), index);
                }
            }
        }
        match underlay {
            IpAddr::V4(v4) => _ = self.sources_v4.entry(v4.to_bits()).or_insert(index),
            IpAddr::V6(v6) => _ = self.sources_v6.entry(v6.to_bits()).or_insert(index),
        }
        self.paths.push(Path {
            underlay,
            header_v4: EncapHeader::new(self.vni, mac, self.own.mac, ETHERTYPE_IPV4),
            header_v6: EncapHeader::new(self.vni, mac, self.own.mac, ETHERTYPE_IPV6),
            whole: self.direct.reaches(underlay),
            pod_cidrs: cidrs.iter().map(IpNet::trunc).collect(),
            counters,
        });
    }

    /// VXLAN network identifier.
    #[inline]
    pub(super) fn vni(&self) -> u32 {
        self.vni
    }

    /// MAC of our VTEP.
    #[inline]
    pub(super) fn mac(&self) -> MacAddr {
        self.own.mac
    }

    /// The path whose CIDR contains this inner destination most specifically.
    #[inline]
    pub(super) fn to(&self, destination: IpAddr) -> Option<&Path> {
        let index = match destination {
            IpAddr::V4(v4) => self.destinations_v4.longest(v4.to_bits()),
            IpAddr::V6(v6) => self.destinations_v6.longest(v6.to_bits()),
        };
        self.paths.get(index? as usize)
    }

    /// The path whose underlay address is this outer source.
    #[inline]
    pub(super) fn from(&self, source: IpAddr) -> Option<&Path> {
        let index = match source {
            IpAddr::V4(v4) => self.sources_v4.get(&v4.to_bits()),
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                // What a dual-stack socket reports for an IPv4 source.
                Some(v4) => self.sources_v4.get(&v4.to_bits()),
                None => self.sources_v6.get(&v6.to_bits()),
            },
        };
        self.paths.get(*index? as usize)
    }

    /// The underlay address of the peer whose CIDR contains this inner destination most specifically.
    #[must_use]
    pub fn underlay_of(&self, destination: IpAddr) -> Option<IpAddr> {
        self.to(destination).map(|path| path.underlay)
    }

    /// Whether an inner address is one of ours.
    #[inline]
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.own.pod_cidrs.iter().any(|cidr| cidr.contains(&address))
    }

    /// Whether an inner address is one of our tunnel addresses.
    #[inline]
    pub(super) fn is_own_tunnel_address(&self, address: IpAddr) -> bool {
        self.own.pod_cidrs.iter().any(|cidr| cidr.network() == address)
    }

    /// Whether an address is our underlay address.
    #[inline]
    pub(super) fn is_own_underlay(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.own.underlay_v4 == Some(v4),
            IpAddr::V6(v6) => self.own.underlay_v6 == Some(v6),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::cluster::PeerPath;

    fn own() -> Own {
        Own {
            name: "self".into(),
            pod_cidrs: vec![net("10.244.0.0/24"), net("fd00::/64")],
            underlay_v4: "192.0.2.1".parse().ok(),
            underlay_v6: None,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn peer(name: &str, underlay: &str, cidrs: &[&str]) -> Peer {
        let path = PeerPath {
            underlay: ip(underlay),
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            pod_cidrs: cidrs.iter().map(|cidr| net(cidr)).collect(),
        };
        Peer { name: name.into(), paths: vec![path] }
    }

    fn build(peers: &[Peer]) -> Table {
        Table::build(&own(), peers, 1, 2, &mut CounterBook::default())
    }

    #[test]
    fn an_empty_table_knows_nobody() {
        let table = build(&[]);
        assert_eq!(table.underlay_of(ip("10.244.1.1")), None);
        assert!(table.from(ip("192.0.2.2")).is_none());
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order() {
        let wide = peer("wide", "192.0.2.2", &["10.0.0.0/8", "::/0"]);
        let narrow = peer("narrow", "192.0.2.3", &["10.244.1.0/24", "fd00:1::/64"]);
        for peers in [[wide.clone(), narrow.clone()], [narrow, wide]] {
            let table = build(&peers);
            assert_eq!(table.underlay_of(ip("10.244.1.1")), Some(ip("192.0.2.3")));
            assert_eq!(table.underlay_of(ip("10.244.2.1")), Some(ip("192.0.2.2")));
            assert_eq!(table.underlay_of(ip("11.0.0.1")), None);
            assert_eq!(table.underlay_of(ip("fd00:1::5")), Some(ip("192.0.2.3")));
            assert_eq!(table.underlay_of(ip("fd00:2::5")), Some(ip("192.0.2.2")));
        }
    }

    #[test]
    fn an_outer_source_is_found_exactly_and_also_as_a_mapped_address() {
        let table =
            build(&[peer("a", "192.0.2.2", &["10.244.1.0/24"]), peer("b", "2001:db8::2", &["fd00:1::/64"])]);
        assert_eq!(table.from(ip("192.0.2.2")).map(|path| path.underlay), Some(ip("192.0.2.2")));
        assert_eq!(table.from(ip("::ffff:192.0.2.2")).map(|path| path.underlay), Some(ip("192.0.2.2")));
        assert_eq!(table.from(ip("2001:db8::2")).map(|path| path.underlay), Some(ip("2001:db8::2")));
        assert!(table.from(ip("192.0.2.3")).is_none());
        assert!(table.from(ip("2001:db8::3")).is_none());
    }

    #[test]
    fn the_first_of_two_claims_stands() {
        let table =
            build(&[peer("a", "192.0.2.2", &["10.244.1.0/24"]), peer("b", "192.0.2.3", &["10.244.1.0/24"])]);
        assert_eq!(table.underlay_of(ip("10.244.1.1")), Some(ip("192.0.2.2")));
    }

    #[test]
    fn counters_survive_a_swap_and_go_with_their_peer() {
        let mut book = CounterBook::default();
        let (a, b) = (peer("a", "192.0.2.2", &["10.244.1.0/24"]), peer("b", "192.0.2.3", &["10.244.2.0/24"]));
        let first = Table::build(&own(), &[a.clone(), b], 1, 2, &mut book);
        let counters = &first.from(ip("192.0.2.2")).expect("known").counters;
        counters.tx(0).expect("worker 0").add(2, 300, 40);
        counters.tx(1).expect("worker 1").add(1, 50, 30);
        counters.rx(1).expect("worker 1").add(5, 600, 0);
        let second = Table::build(&own(), std::slice::from_ref(&a), 1, 4, &mut book);
        assert_eq!(book.peers.keys().collect::<Vec<_>>(), ["a"]);
        let expected = PeerTraffic {
            tx: Traffic { packets: 3, bytes: 350, last_ms: Some(40) },
            rx: Traffic { packets: 5, bytes: 600, last_ms: Some(0) },
        };
        assert_eq!(book.peers["a"].sum(), expected);
        let path = second.from(ip("192.0.2.2")).expect("known");
        assert!(path.counters.tx(3).is_some(), "there is room for more workers");
        let third = Table::build(&own(), &[a], 1, 4, &mut book);
        assert!(Arc::ptr_eq(&path.counters, &third.from(ip("192.0.2.2")).expect("known").counters));
    }

    #[test]
    fn silent_peers_have_no_time() {
        assert_eq!(PeerCounters::new(2).sum(), PeerTraffic::default());
    }

    /// One of 12 peers, the same place in the address plan for the same name and variant.
    fn variant(name: u8, variant: u8) -> Peer {
        let (four, six) = (format!("192.0.{variant}.{name}"), format!("2001:db8:{variant}::{name}"));
        let cidrs =
            [format!("10.{variant}.{name}.0/{}", 24 + variant), format!("fd00:{variant}:0:{name}::/64")];
        let mut peer = peer(&format!("n{name}"), &four, &[&cidrs[0], &cidrs[1]]);
        if variant == 2 {
            // One way for each family, as with flannel's prefix.
            let moved = peer.paths[0].pod_cidrs.pop().expect("two CIDRs");
            let underlay = ip(&six);
            peer.paths.push(PeerPath { underlay, pod_cidrs: vec![moved], ..peer.paths[0].clone() });
        }
        peer
    }

    /// All that can be asked of a table about these peers.
    fn answers(table: &Table, peers: &[Peer]) -> Vec<Option<(IpAddr, Vec<IpNet>)>> {
        let path = |path: Option<&Path>| path.map(|path| (path.underlay, path.pod_cidrs.to_vec()));
        let addresses = peers
            .iter()
            .flat_map(|peer| &peer.paths)
            .flat_map(|path| path.pod_cidrs.iter().map(IpNet::network).chain([path.underlay]));
        addresses.flat_map(|address| [path(table.to(address)), path(table.from(address))]).collect()
    }

    proptest! {
        #[test]
        fn a_table_that_is_revised_answers_like_one_made_anew(
            steps in proptest::collection::vec(
                proptest::collection::btree_map(0_u8..12, proptest::option::weighted(0.7, 0_u8..4), 1..5), 1..12),
        ) {
            let everyone: Vec<Peer> =
                (0..12).flat_map(|name| (0..4).map(move |which| variant(name, which))).collect();
            let (mut one_book, mut other_book) = (CounterBook::default(), CounterBook::default());
            let mut present: std::collections::BTreeMap<u8, Peer> = std::collections::BTreeMap::new();
            let mut table = Table::build(&own(), &[], 1, 2, &mut one_book);
            for step in steps {
                let changes: Vec<PeerChange> = step
                    .into_iter()
                    .map(|(name, which)| {
                        let after = which.map(|which| variant(name, which));
                        let before = match after.clone() {
                            Some(peer) => present.insert(name, peer),
                            None => present.remove(&name),
                        };
                        PeerChange { before, after }
                    })
                    .collect();
                table = table.revised(&changes, 2, &mut one_book);
                let peers: Vec<Peer> = present.values().cloned().collect();
                let anew = Table::build(&own(), &peers, 1, 2, &mut other_book);
                prop_assert_eq!(answers(&table, &everyone), answers(&anew, &everyone));
                prop_assert!(one_book.peers.keys().eq(other_book.peers.keys()));
                for path in &table.paths {
                    prop_assert!(one_book.peers.values().any(|counters| Arc::ptr_eq(counters, &path.counters)));
                }
            }
        }

        #[test]
        fn lookup_is_the_linear_scan(
            prefixes in proptest::collection::vec((any::<u32>(), 0_u8..=32), 0..40),
            prefixes_v6 in proptest::collection::vec((any::<u128>(), 0_u8..=128), 0..40),
            near in proptest::collection::vec((any::<prop::sample::Index>(), any::<u32>(), 0_u32..=32), 40),
        ) {
            let mut cidrs: Vec<IpNet> = Vec::new();
            for (bits, length) in &prefixes {
                cidrs.push(ipnet::Ipv4Net::new_assert((*bits).into(), *length).trunc().into());
            }
            for (bits, length) in &prefixes_v6 {
                cidrs.push(ipnet::Ipv6Net::new_assert((*bits).into(), *length).trunc().into());
            }
            cidrs.sort();
            cidrs.dedup();
            prop_assume!(!cidrs.is_empty());
            let underlay = |at: usize| IpAddr::from([192, 0, (at >> 8) as u8, at as u8]);
            let peers: Vec<Peer> = cidrs
                .iter()
                .enumerate()
                .map(|(at, cidr)| peer(&format!("n{at}"), &underlay(at).to_string(), &[&cidr.to_string()]))
                .collect();
            let table = build(&peers);
            for (which, noise, shift) in near {
                // An address in or near one of the prefixes.
                let noise = noise.checked_shr(shift).unwrap_or(0);
                let address: IpAddr = match cidrs[which.index(cidrs.len())].network() {
                    IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() ^ noise).into(),
                    IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() ^ u128::from(noise) << (shift * 3)).into(),
                };
                let expected = cidrs
                    .iter()
                    .enumerate()
                    .filter(|(_, cidr)| cidr.contains(&address))
                    .max_by_key(|(_, cidr)| cidr.prefix_len())
                    .map(|(at, _)| underlay(at));
                prop_assert_eq!(table.underlay_of(address), expected);
            }
        }
    }
}
