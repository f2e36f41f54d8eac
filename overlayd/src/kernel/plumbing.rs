//! Which veths the plugin may still be working on. Pure: time is an argument.
//!
//! The plugin sets the alias first, then the link's sysctls, brings it up, and adds neighbours and host routes. It takes a
//! route that we were quicker to add for its own, but a link that we brought up before its sysctls are set would
//! make itself addresses. So only what was seen whole, or had ample time, is mended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::core::leases::{IN_FLIGHT_LIMIT, ObservedVeth};

/// A veth with an alias this old is not being plumbed any more: between alias and host routes lie milliseconds.
pub const PLUMBING_LIMIT: Duration = Duration::from_secs(2);

/// What is remembered of veths, by index and name (an index may be used again).
#[derive(Debug, Default)]
pub(super) struct Plumbing {
    seen: BTreeMap<(u32, String), Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Duration,
    whole: bool,
}

/// The verdict on what is there now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ages {
    /// Nobody works on these any more.
    pub(super) settled: BTreeSet<u32>,
    /// These were left behind without an alias.
    pub(super) orphans: BTreeSet<u32>,
}

impl Plumbing {
    /// Takes in what a read shows: the veths, and which host address is routed to which link.
    pub(super) fn observe(
        &mut self,
        veths: &[ObservedVeth],
        routed: &BTreeSet<(IpAddr, u32)>,
        now: Duration,
    ) -> Ages {
        let mut seen = BTreeMap::new();
        let mut ages = Ages::default();
        for veth in veths {
            let key = (veth.index, veth.name.clone());
            let before = self.seen.get(&key).copied().unwrap_or(Seen { since: now, whole: false });
            let addresses = veth.alias.as_ref().map(|alias| alias.addresses.as_slice()).unwrap_or_default();
            let whole = !addresses.is_empty()
                && addresses.iter().all(|address| routed.contains(&(*address, veth.index)));
            let current = Seen { since: before.since, whole: before.whole || whole };
            let age = now.saturating_sub(current.since);
            if veth.alias.is_some() && (current.whole || age >= PLUMBING_LIMIT) {
                ages.settled.insert(veth.index);
            }
            if veth.alias.is_none() && age >= IN_FLIGHT_LIMIT {
                ages.orphans.insert(veth.index);
            }
            seen.insert(key, current);
        }
        self.seen = seen;
        ages
    }
}

#[cfg(test)]
mod tests {
    use wire::tag::Alias;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 5));

    fn veth(aliased: bool) -> ObservedVeth {
        let alias = Alias {
            network_hash: "0123456789abcdef".to_owned(),
            container: "c".to_owned(),
            ifname: "eth0".to_owned(),
            addresses: vec![ADDRESS],
        };
        let (name, alias) = ("ovp000000000001".to_owned(), aliased.then_some(alias));
        ObservedVeth { name, index: 7, alias, pod_mac: None, mtu: 1450, up: true }
    }

    #[test]
    fn a_veth_without_its_route_settles_only_after_ample_time() {
        let (mut plumbing, none) = (Plumbing::default(), BTreeSet::new());
        assert!(plumbing.observe(&[veth(true)], &none, Duration::from_secs(1)).settled.is_empty());
        assert!(plumbing.observe(&[veth(true)], &none, Duration::from_secs(2)).settled.is_empty());
        assert!(plumbing.observe(&[veth(true)], &none, Duration::from_secs(3)).settled.contains(&7));
    }

    #[test]
    fn a_veth_once_seen_whole_is_settled_at_once_and_stays_so() {
        let (mut plumbing, whole) = (Plumbing::default(), BTreeSet::from([(ADDRESS, 7)]));
        assert!(plumbing.observe(&[veth(true)], &whole, Duration::from_secs(1)).settled.contains(&7));
        assert!(
            plumbing.observe(&[veth(true)], &BTreeSet::new(), Duration::from_secs(2)).settled.contains(&7)
        );
        assert!(plumbing.observe(&[], &BTreeSet::new(), Duration::from_secs(3)).settled.is_empty());
        assert!(plumbing.observe(&[veth(true)], &BTreeSet::new(), Duration::from_secs(4)).settled.is_empty());
    }

    #[test]
    fn a_veth_without_alias_is_an_orphan_after_a_minute() {
        let (mut plumbing, none) = (Plumbing::default(), BTreeSet::new());
        assert_eq!(plumbing.observe(&[veth(false)], &none, Duration::from_secs(5)), Ages::default());
        assert_eq!(plumbing.observe(&[veth(false)], &none, Duration::from_secs(64)), Ages::default());
        assert!(plumbing.observe(&[veth(false)], &none, Duration::from_secs(65)).orphans.contains(&7));
        assert!(plumbing.observe(&[veth(true)], &none, Duration::from_secs(66)).orphans.is_empty());
    }
}
