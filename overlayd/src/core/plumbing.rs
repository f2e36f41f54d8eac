//! Tells veths whose plumbing is over from those that the plugin is still at.
//!
//! The plugin makes the veth, then its alias, then its host routes, each exclusively. If the daemon "restored" a route in
//! the middle of that, the plugin would find its address taken; if it removed a veth that has no alias yet, the pod's birth
//! would fail. The kernel does not tell how old a link is, so the time of the first sight stands for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;

use super::leases::ObservedVeth;
use super::plan::{Actual, Via};

/// Age at which plumbing must be over: the plugin gives up after 20 s.
const PLUMBING_LIMIT: Duration = Duration::from_secs(30);

/// Age at which a veth of ours without alias is what a killed plugin left.
const ORPHAN_AGE: Duration = Duration::from_secs(60);

/// Our veths as seen so far, by index and name: an index is used again sooner than both.
#[derive(Clone, Debug, Default)]
pub struct Plumbing {
    seen: BTreeMap<(u32, String), Sight>,
}

#[derive(Clone, Copy, Debug)]
struct Sight {
    first: Duration,
    settled: bool,
}

impl Plumbing {
    /// Fills [`Actual::settled`] and [`Actual::orphans`] of an observation made at `now` (time since an arbitrary epoch).
    pub fn observe(&mut self, actual: &mut Actual, now: Duration) {
        let routed: BTreeSet<(IpNet, Via)> =
            actual.routes.iter().map(|route| (route.destination, route.via)).collect();
        let mut seen = BTreeMap::new();
        for veth in &actual.veths {
            let key = (veth.index, veth.name.clone());
            let before = self.seen.get(&key).copied();
            let mut sight = before.unwrap_or(Sight { first: now, settled: false });
            let age = now.saturating_sub(sight.first);
            if veth.alias.is_none() {
                if age >= ORPHAN_AGE {
                    actual.orphans.insert(veth.index);
                }
            } else {
                sight.settled |= age >= PLUMBING_LIMIT || has_its_routes(veth, &routed);
                if sight.settled {
                    actual.settled.insert(veth.index);
                }
            }
            seen.insert(key, sight);
        }
        self.seen = seen;
    }
}

fn has_its_routes(veth: &ObservedVeth, routed: &BTreeSet<(IpNet, Via)>) -> bool {
    let addresses = veth.alias.iter().flat_map(|alias| &alias.addresses);
    addresses.into_iter().all(|address| routed.contains(&(IpNet::from(*address), Via::Link(veth.index))))
}

#[cfg(test)]
mod tests {
    use super::super::plan::Route;
    use super::*;
    use wire::tag::Alias;

    const ADDRESS: &str = "10.1.0.2";

    fn veth(alias: bool) -> ObservedVeth {
        let alias = alias.then(|| Alias {
            network_hash: "0123456789abcdef".to_owned(),
            container: "c1".to_owned(),
            ifname: "eth0".to_owned(),
            addresses: vec![ADDRESS.parse().unwrap()],
        });
        ObservedVeth { name: "ovp0".to_owned(), index: 7, alias, mtu: 1450, up: true }
    }

    fn observe(plumbing: &mut Plumbing, veth: ObservedVeth, routed: bool, seconds: u64) -> Actual {
        let mut actual = Actual { veths: vec![veth], ..Actual::default() };
        if routed {
            let destination = format!("{ADDRESS}/32").parse().unwrap();
            actual.routes.insert(Route {
                destination,
                metric: 1,
                via: Via::Link(7),
                source: None,
                mtu: None,
            });
        }
        plumbing.observe(&mut actual, Duration::from_secs(seconds));
        actual
    }

    #[test]
    fn a_veth_with_alias_and_route_is_settled_and_stays_so_without_its_route() {
        let mut plumbing = Plumbing::default();
        assert!(observe(&mut plumbing, veth(true), true, 0).settled.contains(&7));
        assert!(observe(&mut plumbing, veth(true), false, 1).settled.contains(&7));
    }

    #[test]
    fn a_veth_without_route_is_left_to_the_plugin_for_a_while() {
        let mut plumbing = Plumbing::default();
        assert!(observe(&mut plumbing, veth(true), false, 0).settled.is_empty());
        assert!(observe(&mut plumbing, veth(true), false, 29).settled.is_empty());
        assert!(observe(&mut plumbing, veth(true), false, 30).settled.contains(&7));
    }

    #[test]
    fn a_veth_without_alias_is_an_orphan_after_a_minute() {
        let mut plumbing = Plumbing::default();
        assert!(observe(&mut plumbing, veth(false), false, 100).orphans.is_empty());
        assert!(observe(&mut plumbing, veth(false), false, 159).orphans.is_empty());
        assert!(observe(&mut plumbing, veth(false), false, 160).orphans.contains(&7));
    }

    #[test]
    fn an_index_used_again_starts_anew() {
        let mut plumbing = Plumbing::default();
        observe(&mut plumbing, veth(false), false, 0);
        let other = ObservedVeth { name: "ovp1".to_owned(), ..veth(false) };
        assert!(observe(&mut plumbing, other, false, 60).orphans.is_empty());
    }
}
