//! The laws of planning, checked against a model of the kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use wire::tag::Alias;

use super::*;
use crate::core::cluster::{Cluster, Own, Peer};
use crate::core::config::Config;
use crate::core::desired::{Inputs, desired, tests as sample};

/// Makes the change that the kernel would make, and refuses what it would refuse.
fn apply(state: &mut Actual, op: &Op) {
    let device = |state: &mut Actual, link: u32, set: &dyn Fn(&mut Device)| {
        let device = state.device.as_mut().filter(|device| device.index == link).expect("a device");
        set(device);
    };
    match op {
        Op::SetSysctl { key, value } => {
            state.sysctls.insert(key.clone(), value.clone()).expect("a sysctl that exists");
        }
        Op::SetMtu { link, mtu } => device(state, *link, &|device| device.mtu = *mtu),
        Op::SetQueueLength { link, packets } => {
            device(state, *link, &|device| device.tx_queue_len = *packets);
        }
        Op::SetUp { link } => match state.veths.iter_mut().find(|veth| veth.index == *link) {
            Some(veth) => veth.up = true,
            None => device(state, *link, &|device| device.up = true),
        },
        Op::AddAddress { link, net } if state.veths.iter().any(|veth| veth.index == *link) => {
            assert_eq!(*net, IpNet::from(IpAddr::V6(tag::GATEWAY_V6)));
            assert!(state.gateways.insert(*link), "EEXIST");
        }
        Op::SetNeighbour(neighbour) => {
            state.neighbours.insert(*neighbour);
        }
        Op::AddAddress { net, .. } => assert!(state.device_addresses.insert(*net), "EEXIST"),
        Op::DeleteAddress { net, .. } => assert!(state.device_addresses.remove(net), "EADDRNOTAVAIL"),
        Op::AddRoute(route) => {
            let taken =
                |key| state.foreign_routes.iter().any(|other| (other.destination, other.metric) == key);
            assert!(!taken(route.key()), "EEXIST");
            assert!(!state.routes.iter().any(|other| other.key() == route.key()), "EEXIST");
            state.routes.insert(route.clone());
        }
        Op::ReplaceRoute(route) => {
            let before = state.routes.len();
            state.routes.retain(|other| other.key() != route.key());
            assert_eq!(before, state.routes.len() + 1, "replaces a route of ours");
            state.routes.insert(route.clone());
        }
        Op::DeleteRoute(route) => assert!(state.routes.remove(route), "ESRCH"),
        Op::ReplaceTable(table) => state.table = Some(table.clone()),
        Op::ChangeElements(changes) => {
            let table = state.table.as_mut().expect("a table");
            for ElementChange { set, remove, add } in changes {
                let set = table.sets.iter_mut().find(|old| old.name == *set).expect("a set");
                let mut ranges: BTreeSet<Range> = set.ranges.iter().copied().collect();
                assert!(remove.iter().all(|range| ranges.remove(range)), "ENOENT");
                assert!(add.iter().all(|range| ranges.insert(*range)), "EEXIST");
                set.ranges = ranges.into_iter().collect();
            }
        }
        Op::DeleteTable => state.table = None,
        Op::OpenUplinks(table) => {
            let tap = state.tap.as_mut().expect("ENODEV");
            assert_eq!(tap.name, table.device);
            tap.up = true;
            state.uplink_table = Some(table.clone());
        }
        Op::ForgetBareFlows { .. } => {}
        Op::InsertForwardRules { chain, rules } => {
            let chain = state.forward_chains.iter_mut().find(|found| found.name == *chain).expect("a chain");
            let fresh: Vec<(u64, Rule)> = (1000..).zip(rules.iter().cloned()).collect();
            chain.ours.splice(0..0, fresh);
        }
        Op::DeleteForwardRule { chain, handle } => {
            let chain = state.forward_chains.iter_mut().find(|found| found.name == *chain).expect("a chain");
            chain.ours.retain(|(found, _)| found != handle);
        }
        Op::DeleteLink { link, .. } => {
            state.veths.retain(|veth| veth.index != *link);
            state.orphans.remove(link);
            state.neighbours.retain(|neighbour| neighbour.link != *link);
            state.gateways.remove(link);
            state.routes.retain(|route| route.via != Via::Link(*link));
            if state.device.as_ref().is_some_and(|device| device.index == *link) {
                state.device = None;
                state.device_addresses.clear();
            }
        }
    }
}

/// The same, and what is believed to follow from it must be what is there then.
fn apply_and_follow(state: &mut Actual, op: &Op) {
    let mut believed = state.clone();
    let follows = believed.take_in(op);
    apply(state, op);
    assert!(!follows || believed == *state, "{op:?}");
}

fn deletes(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteAddress { .. }
            | Op::DeleteRoute(_)
            | Op::DeleteForwardRule { .. }
            | Op::DeleteLink { .. }
            | Op::DeleteTable
    )
}

#[derive(Clone, Debug)]
struct World {
    config: Config,
    own: Own,
    cluster: Cluster,
    path_mtus: BTreeMap<IpAddr, u32>,
}

impl World {
    fn want(&self, actual: &Actual) -> Desired {
        let Self { config, own, cluster, path_mtus } = self;
        desired(Inputs { config, own, cluster, path_mtus, actual })
    }
}

fn any_world() -> impl Strategy<Value = World> {
    let peers = proptest::collection::btree_map(2u8..30, (any::<bool>(), any::<bool>()), 0..6);
    let cidrs = prop_oneof![
        Just(vec!["10.244.1.0/24"]),
        Just(vec!["fd00:1::/64"]),
        Just(vec!["10.244.1.0/24", "fd00:1::/64"]),
    ];
    (peers, cidrs, any::<bool>(), proptest::option::of(1280u32..1600), any::<bool>()).prop_map(
        |(peers, cidrs, forward_accept, path, wide)| {
            let peers: Vec<Peer> = peers
                .into_iter()
                .map(|(at, (v6_underlay, dual))| {
                    let underlay =
                        if v6_underlay { format!("2001:db8::{at}") } else { format!("192.0.2.{at}") };
                    let cidrs = [format!("10.244.{at}.0/24"), format!("fd00:{at}::/64")];
                    let cidrs: Vec<&str> =
                        cidrs.iter().map(String::as_str).take(1 + usize::from(dual)).collect();
                    sample::peer(&format!("n{at}"), &underlay, &cidrs)
                })
                .collect();
            let path_mtus = peers.iter().zip(path).map(|(peer, mtu)| (peer.paths[0].underlay, mtu)).collect();
            let cluster_cidrs = if wide { vec!["10.244.0.0/16".parse().unwrap()] } else { Vec::new() };
            let config = Config { forward_accept, cluster_cidrs, ..sample::config() };
            World { config, own: sample::own(&cidrs), cluster: sample::cluster(peers), path_mtus }
        },
    )
}

fn any_route() -> impl Strategy<Value = Route> {
    let via = prop_oneof![Just(Via::Link(3)), Just(Via::Unreachable), Just(Via::Link(7))];
    let metric = prop_oneof![Just(0), Just(1), Just(1024), Just(crate::core::desired::UNREACHABLE_METRIC)];
    (0u8..30, any::<bool>(), metric, via, proptest::option::of(1200u32..1500)).prop_map(
        |(at, v6, metric, via, mtu)| {
            let destination = if v6 { format!("fd00:{at}::/64") } else { format!("10.244.{at}.0/24") };
            Route { destination: destination.parse().unwrap(), metric, via, source: None, mtu }
        },
    )
}

fn any_veth() -> impl Strategy<Value = (ObservedVeth, bool)> {
    (proptest::option::of(2u8..250), any::<bool>(), any::<bool>()).prop_map(|(pod, up, aged)| {
        let alias = pod.map(|pod| Alias {
            network_hash: "0123456789abcdef".to_owned(),
            container: "c".to_owned(),
            ifname: "eth0".to_owned(),
            addresses: vec![
                IpAddr::from([10, 244, 1, pod]),
                IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, u16::from(pod)]),
            ],
        });
        (ObservedVeth { name: String::new(), index: 0, alias, pod_mac: None, mtu: 1450, up }, aged)
    })
}

/// Any state that hands of people and half-done work may leave behind.
fn any_actual() -> impl Strategy<Value = Actual> {
    let routes = proptest::collection::vec(any_route(), 0..12);
    let foreign = proptest::collection::vec(any_route(), 0..4);
    let veths = proptest::collection::vec(any_veth(), 0..5);
    let chains = proptest::collection::vec((any::<bool>(), 0usize..4), 0..3);
    let strict = proptest::collection::vec(0u8..3, 3);
    (routes, foreign, veths, chains, strict, any::<[bool; 4]>(), any::<[bool; 4]>()).prop_map(
        |(
            routes,
            foreign,
            veths,
            chains,
            strict,
            [device, addresses, table, advertised],
            [tap, up, gso, stale],
        )| {
            let mut actual = sample::machine();
            let by_key: BTreeMap<_, _> = routes.into_iter().map(|route| (route.key(), route)).collect();
            for (at, (veth, aged)) in (7..).zip(veths) {
                let veth = ObservedVeth { index: at, name: format!("ovp{at:012x}"), ..veth };
                if aged {
                    let list = if veth.alias.is_some() { &mut actual.settled } else { &mut actual.orphans };
                    list.insert(at);
                }
                actual.veths.push(veth);
            }
            actual.foreign_routes = foreign
                .into_iter()
                .filter(|route| !by_key.contains_key(&route.key()))
                .map(|Route { destination, metric, .. }| ForeignRoute {
                    destination,
                    metric,
                    link: None,
                    gateway: false,
                })
                .collect();
            actual.routes = by_key.into_values().collect();
            if addresses {
                actual.device_addresses =
                    ["10.244.1.0/32", "10.9.9.9/32", "fe80::1/64"].map(|net| net.parse().unwrap()).into();
            }
            if !device {
                actual.device = None;
                actual.device_addresses.clear();
                actual.routes.retain(|route| route.via != Via::Link(3));
            }
            actual.table = table.then(Ruleset::default);
            actual.foreign_links[0].tunnel_gso = gso;
            if tap {
                let name = crate::core::desired::uplink::tap_name("ovl0");
                actual.tap = Some(Device { index: 4, name, mtu: 1500, tx_queue_len: 1000, up });
            }
            actual.uplink_table = stale.then(UplinkTable::default);
            for (at, (policy_drop, ours)) in chains.into_iter().enumerate() {
                let name = ChainName {
                    family: ruleset::TableFamily::Ip,
                    table: "filter".to_owned(),
                    chain: format!("F{at}"),
                };
                let ours = (0..ours as u64).map(|handle| (handle, Rule::default())).collect();
                actual.forward_chains.push(ForwardChain { name, policy_drop, ours, by_hand: Vec::new() });
            }
            let keys =
                ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/ovl0/rp_filter"];
            for (key, value) in keys.into_iter().zip(strict) {
                actual.sysctls.insert(key.to_owned(), value.to_string());
            }
            actual.sysctls.insert("net/ipv4/conf/all/rp_filter".to_owned(), "1".to_owned());
            if advertised {
                actual.advertised_defaults.insert("eth0".to_owned());
                actual.sysctls.insert("net/ipv6/conf/eth0/accept_ra".to_owned(), "1".to_owned());
            }
            actual
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn applying_the_plan_gives_the_wish_and_then_nothing_is_left_to_do(world in any_world(), have in any_actual()) {
        let want = world.want(&have);
        let mut state = have.clone();
        for op in plan(&want, &have) {
            apply_and_follow(&mut state, &op);
        }
        prop_assert_eq!(plan(&want, &state), []);
        // The wish depends on facts, and none of them may have been changed by its fulfilment in a way that asks for more.
        prop_assert_eq!(plan(&world.want(&state), &state), []);
        let taken = |route: &Route| {
            have.foreign_routes.iter().any(|other| (other.destination, other.metric) == route.key())
        };
        for route in &want.routes {
            prop_assert!(state.routes.contains(route) || taken(route));
        }
        for route in state.routes.difference(&want.routes) {
            prop_assert!(matches!(route.via, Via::Link(link) if link != 3), "only routes to pods may stay: {route:?}");
        }
        prop_assert_eq!(state.table.as_ref(), Some(&want.table));
        prop_assert!(want.uplink_table.is_none() || state.uplink_table == want.uplink_table);
        prop_assert!(state.neighbours.is_superset(&want.neighbours) && state.gateways.is_superset(&want.gateways));
        if let Some(device) = &state.device {
            prop_assert_eq!((device.mtu, device.tx_queue_len, device.up), (want.mtu.unwrap(), want.queue_length, true));
            prop_assert_eq!(&state.device_addresses, &want.addresses);
        }
    }

    #[test]
    fn creations_come_before_deletions_and_foreign_objects_stay(world in any_world(), have in any_actual()) {
        let ops = plan(&world.want(&have), &have);
        let first = ops.iter().position(deletes).unwrap_or(ops.len());
        prop_assert!(ops[first..].iter().all(deletes));
        let mut state = have.clone();
        for op in &ops {
            apply(&mut state, op);
        }
        prop_assert_eq!(state.foreign_links, have.foreign_links);
        prop_assert_eq!(state.foreign_routes, have.foreign_routes);
    }

    #[test]
    fn what_a_cache_says_takes_nothing_from_other_nodes(world in any_world(), known in any_world(), have in any_actual()) {
        let mut state = have.clone();
        for op in plan(&world.want(&have), &have) {
            apply(&mut state, &op);
        }
        let known = World { own: world.own.clone(), config: world.config.clone(), ..known };
        let before = state.clone();
        let want = known.want(&state).keeping(&state);
        for op in plan(&want, &state) {
            prop_assert!(!matches!(op, Op::DeleteRoute(_) | Op::DeleteAddress { .. }), "{op:?}");
            apply(&mut state, &op);
        }
        prop_assert_eq!(plan(&want, &state), []);
        let keys = |state: &Actual| state.routes.iter().map(Route::key).collect::<BTreeSet<_>>();
        prop_assert!(keys(&state).is_superset(&keys(&before)));
        for set in &before.table.as_ref().unwrap().sets {
            for range in &set.ranges {
                let after = state.table.as_ref().unwrap().ranges(&set.name);
                prop_assert!(after.iter().any(|wide| wide.first <= range.first && range.last <= wide.last));
            }
        }
    }

    #[test]
    fn cleanup_leaves_nothing_of_ours_but_the_veths(world in any_world(), have in any_actual()) {
        let mut state = have.clone();
        for op in plan(&world.want(&have), &have) {
            apply(&mut state, &op);
        }
        let veths = state.veths.clone();
        for op in cleanup_plan(&state) {
            apply(&mut state, &op);
        }
        prop_assert_eq!(&state.veths, &veths);
        prop_assert_eq!(cleanup_plan(&state), []);
        for op in cleanup_veths_plan(&state) {
            apply(&mut state, &op);
        }
        prop_assert!(state.veths.is_empty() && state.table.is_none() && state.device.is_none());

        prop_assert!(state.routes.is_empty() && state.forward_chains.iter().all(|chain| chain.ours.is_empty()));
    }

    #[test]
    fn a_foreign_route_for_a_peer_is_named_with_its_remedy(world in any_world()) {
        let mut have = sample::machine();
        let Some(cidr) = world.want(&have).routes.iter().find(|route| route.via == Via::Link(3)).map(|route| route.destination)
        else { return Ok(()) };
        have.foreign_routes.push(ForeignRoute { destination: cidr, metric: 0, link: Some("flannel.1".to_owned()), gateway: false });
        let found = conflicts(&world.want(&have), &have);
        let remedy = format!("route del {cidr} dev flannel.1 metric 0");
        prop_assert!(found.iter().any(|conflict| conflict.remedy.ends_with(&remedy)));
    }
}

fn world() -> World {
    World {
        config: sample::config(),
        own: sample::own(&["10.244.1.0/24"]),
        cluster: sample::cluster(vec![sample::peer("b", "192.0.2.2", &["10.244.2.0/24"])]),
        path_mtus: BTreeMap::new(),
    }
}

fn settled_state(world: &World) -> Actual {
    let mut state = sample::machine();
    for op in plan(&world.want(&state), &state) {
        apply(&mut state, &op);
    }
    state
}

#[test]
fn a_deleted_rule_is_repaired_and_bare_flows_are_forgotten() {
    let world = world();
    let mut state = settled_state(&world);
    state.table.as_mut().unwrap().chains[0].rules.pop();
    let ops = plan(&world.want(&state), &state);
    assert!(matches!(ops.as_slice(), [Op::ReplaceTable(_), Op::ForgetBareFlows { .. }]), "{ops:?}");
}

#[test]
fn a_new_peer_changes_elements_only() {
    let mut world = world();
    let state = settled_state(&world);
    world.cluster.peers.push(sample::peer("c", "192.0.2.3", &["10.244.3.0/24"]));
    let ops = plan(&world.want(&state), &state);
    let changed = |op: &Op| match op {
        Op::ChangeElements(changes) => changes.iter().map(|change| change.set.clone()).collect(),
        _ => Vec::new(),
    };
    assert_eq!(ops.iter().flat_map(changed).collect::<Vec<_>>(), ["cluster4", "nodes4"]);
    assert!(!ops.iter().any(|op| matches!(op, Op::ReplaceTable(_) | Op::ForgetBareFlows { .. })), "{ops:?}");
    let mut state = state;
    assert!(ops.iter().all(|op| state.take_in(op)), "what peers are made of needs no new read: {ops:?}");
    assert_eq!(plan(&world.want(&state), &state), []);
}

proptest! {
    #[test]
    fn peers_that_come_change_and_go_need_no_new_read(one in any_world(), other in any_world()) {
        let other = World { config: one.config.clone(), own: one.own.clone(), ..other };
        let mut state = settled_state(&one);
        for world in [&other, &one] {
            for op in plan(&world.want(&state), &state) {
                let mut there = state.clone();
                apply(&mut there, &op);
                prop_assert!(state.take_in(&op), "{op:?}");
                prop_assert_eq!(&state, &there);
            }
            prop_assert_eq!(plan(&world.want(&state), &state), []);
        }
    }
}

#[test]
fn a_leftover_vxlan_device_and_its_address_are_named() {
    let world = world();
    let mut state = settled_state(&world);
    state.foreign_links.push(ForeignLink {
        index: 9,
        name: "flannel.1".to_owned(),
        kind: "vxlan".to_owned(),
        up: true,
        addresses: vec!["10.244.1.0/32".parse().unwrap()],
        vxlan_port: Some(8472),
        vxlan_vni: Some(1),
        ..ForeignLink::default()
    });
    let remedies: Vec<String> =
        conflicts(&world.want(&state), &state).into_iter().map(|found| found.remedy).collect();
    assert_eq!(remedies, ["ip link del flannel.1", "ip addr del 10.244.1.0/32 dev flannel.1"]);
}

#[test]
fn a_dropping_forward_chain_is_named_until_its_owner_accepts_pods() {
    let mut world = world();
    let mut state = settled_state(&world);
    let name = ChainName {
        family: ruleset::TableFamily::Ip,
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
    };
    state.forward_chains.push(ForwardChain {
        name,
        policy_drop: true,
        ours: Vec::new(),
        by_hand: Vec::new(),
    });
    let want = world.want(&state);
    let found = conflicts(&want, &state);
    assert!(found[0].remedy.starts_with("iptables -I FORWARD -i ovp+ -j ACCEPT && "), "{found:?}");
    assert_eq!(plan(&want, &state), []);
    let by_hand =
        want.forward_rules.iter().map(|rule| Rule { comment: String::new(), ..rule.clone() }).collect();
    state.forward_chains[0].by_hand = by_hand;
    assert_eq!(conflicts(&want, &state), []);
    world.config.forward_accept = true;
    assert!(
        matches!(plan(&world.want(&state), &state).as_slice(), [Op::InsertForwardRules { rules, .. }] if rules.len() == 4)
    );
}
