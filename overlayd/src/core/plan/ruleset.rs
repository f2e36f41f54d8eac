//! Firewall rules as values: what we want and what a dump of the kernel gives are the same types, so that
//! a rule or an element that somebody deleted shows as a difference.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Name of our table, in the `inet` family.
pub const TABLE: &str = "overlayd";

/// Comment on the rules that we insert into other people's chains: the tag that makes them ours.
pub const FORWARD_TAG: &str = "overlayd forward";

/// An address family of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Consecutive addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nets: Vec<IpNet> = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                ipnet::Ipv4Subnets::new(first, last, 0).map(IpNet::V4).take(2).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                ipnet::Ipv6Subnets::new(first, last, 0).map(IpNet::V6).take(2).collect()
            }
            _ => Vec::new(),
        };
        match nets.as_slice() {
            [net] => write!(f, "{net}"),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// The addresses of one family in these networks, as the fewest ranges in ascending order: neither overlapping nor
/// adjacent, as interval sets demand.
#[must_use]
pub fn ranges<'a>(family: Family, nets: impl IntoIterator<Item = &'a IpNet>) -> Vec<Range> {
    let nets = nets.into_iter().filter(|net| Family::of(net.addr()) == family);
    merge(family, nets.map(|net| (number(net.network()), number(net.broadcast()))).collect())
}

/// The addresses of one family in either of these lists, in the same form.
#[must_use]
pub fn union(family: Family, one: &[Range], other: &[Range]) -> Vec<Range> {
    let both = one.iter().chain(other).filter(|range| Family::of(range.first) == family);
    merge(family, both.map(|range| (number(range.first), number(range.last))).collect())
}

fn merge(family: Family, mut spans: Vec<(u128, u128)>) -> Vec<Range> {
    spans.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match merged.last_mut() {
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
        .into_iter()
        .map(|(first, last)| Range { first: address(family, first), last: address(family, last) })
        .collect()
}

/// Whether one of these ranges, ascending and disjoint, holds the address.
#[must_use]
pub fn covers(ranges: &[Range], address: IpAddr) -> bool {
    let after = ranges.partition_point(|range| range.first <= address);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|range| address <= range.last)
}

/// Those of `ranges` that are not in `list`; both ascend.
fn missing_from(list: &[Range], ranges: &[Range]) -> Vec<Range> {
    ranges.iter().filter(|range| list.binary_search(range).is_err()).copied().collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

/// A named set of addresses with the interval flag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set {
    /// Name.
    pub name: String,
    /// What kind of address it holds.
    pub family: Family,
    /// Its elements, ascending, disjoint and not adjacent.
    pub ranges: Vec<Range>,
}

/// What a set of ours loses and gains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementChange {
    /// Name of the set.
    pub set: String,
    /// Elements that it has and loses.
    pub remove: Vec<Range>,
    /// Elements that it gains.
    pub add: Vec<Range>,
}

/// Where a chain is hooked in. `priority` is that of `linux/netfilter_ipv4.h`, enum `nf_ip_hook_priorities`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// "nat" or "filter".
    pub kind: String,
    /// Hook number (`NF_INET_PRE_ROUTING` 0, `LOCAL_IN` 1, `FORWARD` 2, `LOCAL_OUT` 3, `POST_ROUTING` 4).
    pub hook: u32,
    /// Priority within the hook.
    pub priority: i32,
    /// Whether packets that no rule decides on are dropped.
    pub policy_drop: bool,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What operators read.
    pub comment: String,
    /// Matches, then statements.
    pub parts: Vec<Part>,
}

/// The vocabulary of our rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The packet is of this family.
    Family(Family),
    /// The transport protocol is this.
    Protocol(u8),
    /// At least one of these bits is set in the packet's mark.
    MarkBits(u32),
    /// It came in by this device.
    InDevice(Device),
    /// It goes out by this device.
    OutDevice(Device),
    /// Its source is this address.
    Source(IpAddr),
    /// Its destination is this address.
    Destination(IpAddr),
    /// Its source is in this set, or is not.
    SourceIn(Membership),
    /// Its destination is in this set, or is not.
    DestinationIn(Membership),
    /// Its transport destination port is this.
    DestinationPort(u16),
    /// Count it.
    Counter,
    /// Let it pass this chain.
    Accept,
    /// Drop it.
    Drop,
    /// No more rules of this chain.
    Return,
    /// Leave it out of connection tracking.
    Notrack,
    /// Give it the address of the device it leaves by.
    Masquerade {
        /// Draw the port at random for each connection.
        fully_random: bool,
    },
    /// Anything else: a rule with it is not one of ours.
    Foreign(String),
}

/// How a device is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// Exactly so.
    Named(String),
    /// All that begin so.
    Prefixed(String),
}

/// A lookup in a set of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Name of the set.
    pub set: String,
    /// Family of its addresses.
    pub family: Family,
    /// Whether the address must be in it (or must not).
    pub inside: bool,
}

/// Our table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets by name.
    pub sets: Vec<Set>,
    /// Chains by name.
    pub chains: Vec<Chain>,
}

impl Ruleset {
    /// The ranges of a set, none if there is no such set.
    #[must_use]
    pub fn ranges(&self, name: &str) -> &[Range] {
        self.sets.iter().find(|set| set.name == name).map_or(&[], |set| &set.ranges)
    }

    /// What the sets of a ruleset of the same shape must lose and gain to hold what those of `wanted` do.
    #[must_use]
    pub fn element_changes(&self, wanted: &Self) -> Vec<ElementChange> {
        let differ = wanted.sets.iter().filter(|set| self.ranges(&set.name) != set.ranges);
        differ
            .map(|set| {
                let have = self.ranges(&set.name);
                ElementChange {
                    set: set.name.clone(),
                    remove: missing_from(&set.ranges, have),
                    add: missing_from(have, &set.ranges),
                }
            })
            .collect()
    }

    /// Makes the change. Whether there is such a set with what it loses.
    pub(in crate::core) fn take_in(&mut self, change: &ElementChange) -> bool {
        let Some(set) = self.sets.iter_mut().find(|set| set.name == change.set) else { return false };
        let before = set.ranges.len();
        set.ranges.retain(|range| change.remove.binary_search(range).is_err());
        let removed = before - set.ranges.len();
        set.ranges.extend(&change.add);
        set.ranges.sort_unstable();
        removed == change.remove.len()
    }

    /// Whether both have the same chains and the same sets, whatever the sets hold.
    #[must_use]
    pub fn same_shape(&self, other: &Self) -> bool {
        let shape = |ruleset: &Self| -> Vec<(String, Family)> {
            ruleset.sets.iter().map(|set| (set.name.clone(), set.family)).collect()
        };
        self.chains == other.chains && shape(self) == shape(other)
    }
}

/// Family of a netfilter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableFamily {
    /// `ip`.
    Ip,
    /// `ip6`.
    Ip6,
    /// `inet`: both.
    Inet,
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        })
    }
}

/// The name of somebody else's chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainName {
    /// Family of the table.
    pub family: TableFamily,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

/// Somebody else's base chain on the forward hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardChain {
    /// Which.
    pub name: ChainName,
    /// Whether it drops what no rule of it decides on.
    pub policy_drop: bool,
    /// Our tagged rules in it, with the kernel's handles.
    pub ours: Vec<(u64, Rule)>,
    /// Rules without our tag that use nothing but our vocabulary: the operator may have written what we ask for.
    pub by_hand: Vec<Rule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn adjacent_and_overlapping_networks_become_one_range() {
        let all = nets(&["10.0.2.0/24", "10.0.1.0/24", "10.0.1.128/25", "fd00::/64", "10.0.4.0/24"]);
        let found = ranges(Family::V4, &all);
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.1.0-10.0.2.255", "10.0.4.0/24"]);
        assert_eq!(ranges(Family::V6, &all).len(), 1);
    }

    #[test]
    fn the_whole_address_space_is_one_range() {
        let all = nets(&["0.0.0.0/0", "::/0", "255.255.255.255/32", "ffff::/16"]);
        assert_eq!(ranges(Family::V4, &all).len(), 1);
        assert_eq!(ranges(Family::V6, &all).len(), 1);
    }

    #[test]
    fn covers_knows_both_ends_and_the_gaps() {
        let found = ranges(Family::V4, &nets(&["10.0.1.0/24", "10.0.3.0/24"]));
        for (text, inside) in [
            ("10.0.0.255", false),
            ("10.0.1.0", true),
            ("10.0.1.255", true),
            ("10.0.2.0", false),
            ("10.0.3.7", true),
            ("10.0.4.0", false),
            ("fd00::1", false),
        ] {
            assert_eq!(covers(&found, text.parse().unwrap()), inside, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_range_list_holds_exactly_the_addresses_of_its_networks(
            pairs in proptest::collection::vec((0u32..64, 26u8..=32), 0..12), probe in 0u32..80,
        ) {
            let nets: Vec<IpNet> = pairs
                .iter()
                .map(|(low, len)| IpNet::new(Ipv4Addr::from_bits(0x0a00_0000 | low).into(), *len).unwrap().trunc())
                .collect();
            let probe = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | probe));
            let found = ranges(Family::V4, &nets);
            proptest::prop_assert_eq!(covers(&found, probe), nets.iter().any(|net| net.contains(&probe)));
            for pair in found.windows(2) {
                proptest::prop_assert!(number(pair[0].last) + 1 < number(pair[1].first));
            }
        }
    }
}
