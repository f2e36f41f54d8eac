//! The immutable peer table that workers read: inner destination to peer, outer source to peer.
//!
//! Destinations are found by longest prefix: one hash map per prefix length in use, longest first. A cluster
//! cuts its pod CIDRs in one or two sizes, so that a lookup is one or two probes whatever the number of peers.
//! Everything that encapsulation needs hangs on the entry found: the outer destination, the ready header
//! of either family, the counters.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use wire::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EncapHeader, MacAddr, mix};

use super::cluster::{Own, Peer};

/// Totals of one direction of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Inner packets (segments of a super-packet count each).
    pub packets: u64,
    /// Inner bytes.
    pub bytes: u64,
    /// When the last one passed, in milliseconds since the datapath's epoch.
    pub last_ms: Option<u64>,
}

/// Both directions of one peer, summed over the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Towards the peer.
    pub tx: Traffic,
    /// From the peer.
    pub rx: Traffic,
}

/// Counters of one peer: one cache line per worker and direction.
#[derive(Debug)]
pub struct PeerCounters {
    workers: Box<[Lanes]>,
}

/// Both directions as one worker saw them.
#[derive(Debug, Default)]
struct Lanes {
    tx: Lane,
    rx: Lane,
}

/// One direction as one worker saw it. Only that worker writes, so a load and a store make an addition.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Lane {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Time of the last packet plus one; 0 = none yet.
    last_ms: AtomicU64,
}

impl Lane {
    #[inline]
    pub(super) fn add(&self, packets: u64, bytes: u64, now_ms: u64) {
        let (p, b) = (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        self.packets.store(p.wrapping_add(packets), Ordering::Relaxed);
        self.bytes.store(b.wrapping_add(bytes), Ordering::Relaxed);
        self.last_ms.store(now_ms.saturating_add(1), Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            last_ms: self.last_ms.load(Ordering::Relaxed).checked_sub(1),
        }
    }

    fn start_from(&self, total: Traffic) {
        self.packets.store(total.packets, Ordering::Relaxed);
        self.bytes.store(total.bytes, Ordering::Relaxed);
        self.last_ms.store(total.last_ms.map_or(0, |ms| ms.saturating_add(1)), Ordering::Relaxed);
    }
}

impl PeerCounters {
    /// Zeroed counters for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers.max(1)).map(|_| Lanes::default()).collect() }
    }

    /// Sums over the workers.
    #[must_use]
    pub fn sum(&self) -> PeerTraffic {
        self.workers.iter().fold(PeerTraffic::default(), |total, lanes| PeerTraffic {
            tx: total.tx.plus(lanes.tx.read()),
            rx: total.rx.plus(lanes.rx.read()),
        })
    }

    /// The same totals with room for more workers.
    fn widened(&self, workers: usize) -> Self {
        let wider = Self::new(workers);
        let total = self.sum();
        if let Some(lanes) = wider.workers.first() {
            lanes.tx.start_from(total.tx);
            lanes.rx.start_from(total.rx);
        }
        wider
    }

    #[inline]
    pub(super) fn tx(&self, worker: usize) -> Option<&Lane> {
        self.workers.get(worker).map(|lanes| &lanes.tx)
    }

    #[inline]
    pub(super) fn rx(&self, worker: usize) -> Option<&Lane> {
        self.workers.get(worker).map(|lanes| &lanes.rx)
    }
}

impl Traffic {
    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
            last_ms: self.last_ms.max(other.last_ms),
        }
    }
}

/// Counters by peer name: they survive table swaps. Owned by `control`.
#[derive(Debug, Default)]
pub struct CounterBook {
    /// By peer name.
    pub peers: BTreeMap<String, Arc<PeerCounters>>,
}

impl CounterBook {
    /// The counters of this peer, with room for this many workers.
    fn counters(&mut self, name: &str, workers: usize) -> Arc<PeerCounters> {
        match self.peers.get_mut(name) {
            Some(counters) => {
                if counters.workers.len() < workers {
                    *counters = Arc::new(counters.widened(workers));
                }
                Arc::clone(counters)
            }
            None => {
                let counters = Arc::new(PeerCounters::new(workers));
                self.peers.insert(name.to_owned(), Arc::clone(&counters));
                counters
            }
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Table {
    own: Own,
    peers: Vec<Peer>,
    vni: u32,
    paths: Vec<Path>,
    destinations_v4: Prefixes<u32>,
    destinations_v6: Prefixes<u128>,
    sources_v4: Map<u32, u32>,
    sources_v6: Map<u128, u32>,
}

/// One way to one peer.
#[derive(Debug)]
pub(super) struct Path {
    /// Outer destination.
    pub(super) underlay: IpAddr,
    /// What precedes an inner IPv4 packet.
    pub(super) header_v4: EncapHeader,
    /// What precedes an inner IPv6 packet.
    pub(super) header_v6: EncapHeader,
    /// Inner sources accepted from it.
    pub(super) pod_cidrs: Box<[IpNet]>,
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
            peers: peers.to_vec(),
            vni,
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
            for path in &peer.paths {
                table.add_path(path.underlay, path.mac, &path.pod_cidrs, Arc::clone(&counters));
            }
        }
        *counters = book;
        table
    }

    /// Whether both tables forward alike (counters aside).
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.own == other.own && self.vni == other.vni && self.peers == other.peers
    }

    fn add_path(&mut self, underlay: IpAddr, mac: MacAddr, cidrs: &[IpNet], counters: Arc<PeerCounters>) {
        let index = self.paths.len() as u32;
        for cidr in cidrs {
            match cidr.trunc() {
                IpNet::V4(net) => {
                    self.destinations_v4.insert(net.network().to_bits(), net.prefix_len(), index)
                }
                IpNet::V6(net) => {
                    self.destinations_v6.insert(net.network().to_bits(), net.prefix_len(), index)
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

type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// Prefixes of one family: a map per length, longest first.
#[derive(Debug)]
struct Prefixes<A> {
    lengths: Vec<(u8, A, Map<A, u32>)>,
}

impl<A> Default for Prefixes<A> {
    fn default() -> Self {
        Self { lengths: Vec::new() }
    }
}

impl<A: Address> Prefixes<A> {
    fn insert(&mut self, network: A, length: u8, index: u32) {
        let at = match self.lengths.binary_search_by(|(have, _, _)| length.cmp(have)) {
            Ok(at) => at,
            Err(at) => {
                self.lengths.insert(at, (length, A::mask(length), Map::default()));
                at
            }
        };
        self.lengths[at].2.entry(network).or_insert(index);
    }

    #[inline]
    fn longest(&self, address: A) -> Option<u32> {
        self.lengths.iter().find_map(|(_, mask, map)| map.get(&address.and(*mask))).copied()
    }
}

/// An address as a number.
trait Address: Copy + Eq + Hash {
    /// The netmask of this many bits.
    fn mask(length: u8) -> Self;
    fn and(self, mask: Self) -> Self;
}

impl Address for u32 {
    fn mask(length: u8) -> Self {
        Self::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        self & mask
    }
}

impl Address for u128 {
    fn mask(length: u8) -> Self {
        Self::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        self & mask
    }
}

/// A fast hash of addresses. Keys come from Node objects, not from packets: packets are only looked up.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.0 = mix(self.0, u64::from(value));
    }

    #[inline]
    fn write_u128(&mut self, value: u128) {
        self.0 = mix(mix(self.0, value as u64), (value >> 64) as u64);
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
    fn tables_are_the_same_if_they_forward_alike() {
        let peers = [peer("a", "192.0.2.2", &["10.244.1.0/24"])];
        let table = build(&peers);
        assert!(table.same_as(&build(&peers)));
        assert!(!table.same_as(&build(&[])));
        assert!(!table.same_as(&build(&[peer("a", "192.0.2.3", &["10.244.1.0/24"])])));
        assert!(!table.same_as(&build(&[peer("a", "192.0.2.2", &["10.244.2.0/24"])])));
        assert!(!table.same_as(&Table::build(&own(), &peers, 2, 2, &mut CounterBook::default())));
        let other_mac = Own { mac: MacAddr([2; 6]), ..own() };
        assert!(!table.same_as(&Table::build(&other_mac, &peers, 1, 2, &mut CounterBook::default())));
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

    proptest! {
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
