//! The laws of leases: who holds what, and what comes free when.

use proptest::prelude::*;

use super::*;

const T0: Duration = Duration::ZERO;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn attachment(number: u32) -> Attachment {
    Attachment { network: "net".into(), container: format!("c{number}"), ifname: "eth0".into() }
}

fn veth(attachment: &Attachment, addresses: &[IpAddr]) -> ObservedVeth {
    let alias = Some(Alias::new(attachment, addresses));
    ObservedVeth { name: veth_name(attachment), index: 1, alias, pod_mac: None, mtu: 1450, up: true }
}

fn book(cidrs: &[&str], seed: u64) -> Leases {
    Leases::new(&cidrs.iter().map(|cidr| net(cidr)).collect::<Vec<_>>(), seed)
}

#[test]
fn both_families_are_given_ipv4_first() {
    let mut leases = book(&["fd00:1::/64", "10.1.2.0/24"], 7);
    let addresses = leases.allocate(&attachment(1), T0).unwrap();
    assert_eq!(addresses.len(), 2);
    assert!(net("10.1.2.0/24").contains(&addresses[0]) && net("fd00:1::/64").contains(&addresses[1]));
}

#[test]
fn the_second_cidr_of_a_family_serves_when_the_first_is_full() {
    let mut leases = book(&["10.1.0.0/30", "10.2.0.0/30"], 0);
    let given: Vec<IpAddr> = (0..4).map(|n| leases.allocate(&attachment(n), T0).unwrap()[0]).collect();
    assert_eq!(given.iter().filter(|a| net("10.1.0.0/30").contains(*a)).count(), 2);
    let full = leases.allocate(&attachment(4), T0);
    assert_eq!(full, Err(LeaseError::Exhausted { cidr: net("10.2.0.0/30"), usable: 2 }));
}

#[test]
fn tiny_cidrs_give_what_they_can() {
    for (cidr, usable) in [
        ("10.0.0.0/32", 0),
        ("10.0.0.0/31", 0),
        ("10.0.0.0/30", 2),
        ("fd00::/128", 0),
        ("fd00::/127", 1),
        ("fd00::/126", 3),
    ] {
        let mut leases = book(&[cidr], 3);
        for n in 0..usable {
            assert!(leases.allocate(&attachment(n), T0).is_ok(), "{cidr}");
        }
        let full = leases.allocate(&attachment(usable), T0);
        assert_eq!(full, Err(LeaseError::Exhausted { cidr: net(cidr), usable: usable.into() }));
    }
}

#[test]
fn without_a_cidr_nothing_is_given() {
    assert_eq!(book(&[], 0).allocate(&attachment(1), T0), Err(LeaseError::NoCidr));
}

#[test]
fn when_one_family_is_full_the_other_is_not_taken_either() {
    let mut leases = book(&["10.1.0.0/24", "fd00::/127"], 0);
    leases.allocate(&attachment(1), T0).unwrap();
    let before = leases.clone();
    assert!(leases.allocate(&attachment(2), T0).is_err());
    assert_eq!(format!("{leases:?}"), format!("{before:?}"));
}

#[test]
fn a_freed_address_is_the_last_to_be_given_again() {
    let mut leases = book(&["10.1.0.0/24"], 99);
    let first = leases.allocate(&attachment(0), T0).unwrap()[0];
    leases.release(&attachment(0));
    for n in 1..254 {
        assert_ne!(leases.allocate(&attachment(n), T0).unwrap()[0], first, "allocation {n}");
    }
    assert_eq!(leases.allocate(&attachment(254), T0).unwrap()[0], first);
}

#[test]
fn seeds_start_at_different_places() {
    let starts: BTreeSet<IpAddr> =
        (0..50).map(|seed| book(&["10.1.0.0/16"], seed).allocate(&attachment(0), T0).unwrap()[0]).collect();
    assert!(starts.len() > 40, "{}", starts.len());
}

#[test]
fn an_allocation_without_a_veth_expires() {
    let mut leases = book(&["10.1.0.0/30"], 0);
    let a = leases.allocate(&attachment(1), T0).unwrap();
    leases.allocate(&attachment(2), T0 + Duration::from_secs(1)).unwrap();
    let just_before = IN_FLIGHT_LIMIT - Duration::from_millis(1);
    assert!(leases.allocate(&attachment(3), just_before).is_err());
    assert_eq!(leases.allocate(&attachment(3), IN_FLIGHT_LIMIT), Ok(a));
}

#[test]
fn asking_again_starts_the_time_anew() {
    let mut leases = book(&["10.1.0.0/24"], 0);
    let a = leases.allocate(&attachment(1), T0).unwrap();
    assert_eq!(leases.allocate(&attachment(1), IN_FLIGHT_LIMIT / 2).unwrap(), a);
    assert_eq!(leases.allocate(&attachment(1), IN_FLIGHT_LIMIT).unwrap(), a);
}

#[test]
fn a_veth_ends_the_flight_and_its_end_ends_the_lease() {
    let mut leases = book(&["10.1.0.0/24"], 0);
    let a = leases.allocate(&attachment(1), T0).unwrap();
    leases.observe(&[veth(&attachment(1), &a)], &a, T0);
    assert_eq!(leases.in_flight().count(), 0);
    assert_eq!(leases.attached().map(|lease| lease.veth).collect::<Vec<_>>(), [veth_name(&attachment(1))]);
    assert_eq!(leases.addresses_of(&attachment(1)), Some(a.as_slice()));
    // Released, but the veth was there when we last looked.
    leases.release(&attachment(1));
    assert_eq!(leases.addresses_of(&attachment(1)), Some(a.as_slice()));
    leases.observe(&[], &[], T0);
    assert_eq!(leases.addresses_of(&attachment(1)), None);
}

#[test]
fn a_veth_without_an_alias_leaves_the_flight_in_the_air() {
    let mut leases = book(&["10.1.0.0/24"], 0);
    let a = leases.allocate(&attachment(1), T0).unwrap();
    let bare = ObservedVeth { alias: None, ..veth(&attachment(1), &a) };
    leases.observe(&[bare], &[], T0);
    assert_eq!(leases.in_flight().collect::<Vec<_>>(), [(&attachment(1), a.as_slice())]);
}

#[test]
fn an_existing_veth_is_given_its_addresses_again() {
    let mut leases = book(&["10.1.0.0/24"], 0);
    let a = [ip("10.1.0.77")];
    leases.observe(&[veth(&attachment(1), &a)], &a, T0);
    assert_eq!(leases.allocate(&attachment(1), T0).unwrap(), a);
}

#[test]
fn taken_gives_others_and_keeps_what_was_good() {
    let mut leases = book(&["10.1.0.0/29", "fd00::/64"], 0);
    let first = leases.allocate(&attachment(1), T0).unwrap();
    let mut bad = vec![first[0]];
    for _ in 0..5 {
        let next = leases.taken(&attachment(1), &[bad[bad.len() - 1]], T0).unwrap();
        assert_eq!(next[1], first[1]);
        assert!(!bad.contains(&next[0]));
        bad.push(next[0]);
    }
    assert!(leases.taken(&attachment(1), &[bad[5]], T0).is_err());
    assert_eq!(leases.in_flight().count(), 0);
    // Observing shows that nobody has them after all.
    leases.observe(&[], &[], T0);
    assert!(leases.allocate(&attachment(1), T0).is_ok());
}

#[test]
fn taken_moves_even_an_attachment_whose_veth_shows() {
    let mut leases = book(&["10.1.0.0/24"], 0);
    let a = [ip("10.1.0.77")];
    leases.observe(&[veth(&attachment(1), &a)], &a, T0);
    let other = leases.taken(&attachment(1), &a, T0).unwrap();
    assert_ne!(other, a);
    assert_eq!(leases.allocate(&attachment(1), T0).unwrap(), other);
}

#[test]
fn an_address_can_be_asked_for_and_the_other_family_is_given() {
    let mut leases = book(&["10.1.0.0/24", "fd00::/64"], 0);
    let given = leases.allocate_these(&attachment(1), &[ip("10.1.0.77")], T0).unwrap();
    assert_eq!(given[0], ip("10.1.0.77"));
    assert!(given.len() == 2 && net("fd00::/64").contains(&given[1]));
    assert_eq!(leases.allocate(&attachment(1), T0).unwrap(), given);
    assert_eq!(leases.allocate_these(&attachment(1), &[ip("10.1.0.77")], T0).unwrap()[0], given[0]);
    let in_use = Err(LeaseError::InUse { address: ip("10.1.0.77") });
    assert_eq!(leases.allocate_these(&attachment(2), &[ip("10.1.0.77")], T0), in_use);
    leases.release(&attachment(1));
    assert!(leases.allocate_these(&attachment(2), &[ip("10.1.0.77")], T0).is_ok());
}

#[test]
fn what_pods_cannot_have_cannot_be_asked_for() {
    let mut leases = book(&["10.1.0.0/24", "fd00::/64"], 0);
    for address in ["10.1.0.0", "10.1.0.255", "10.1.1.1", "0.0.0.1", "fd00::", "fd00:0:0:1::1", "::1"] {
        let refused = leases.allocate_these(&attachment(1), &[ip(address)], T0).unwrap_err();
        assert!(matches!(refused, LeaseError::Foreign { .. }), "{address}: {refused}");
    }
    let two = [ip("10.1.0.1"), ip("10.1.0.2")];
    assert_eq!(leases.allocate_these(&attachment(1), &two, T0), Err(LeaseError::Shape));
    assert_eq!(leases.allocate_these(&attachment(1), &[], T0), Err(LeaseError::Shape));
    assert_eq!(leases.in_flight().count(), 0);
}

#[test]
fn an_adopted_address_is_given_to_nobody_else() {
    let mut leases = book(&["10.1.0.0/30"], 0);
    assert_eq!(leases.adopt(&attachment(1), &[ip("10.1.0.2")], T0).unwrap(), [ip("10.1.0.2")]);
    assert_eq!(leases.adopt(&attachment(2), &[ip("192.0.2.1")], T0).unwrap(), [ip("192.0.2.1")]);
    assert!(leases.adopt(&attachment(3), &[ip("192.0.2.1")], T0).is_err());
    assert_eq!(leases.allocate(&attachment(4), T0).unwrap(), [ip("10.1.0.1")]);
    assert!(leases.allocate(&attachment(5), T0).is_err());
}

#[test]
fn room_is_told_without_taking_any() {
    let mut leases = book(&["10.1.0.0/30"], 0);
    for n in 0..2 {
        assert_eq!(leases.has_room(T0), Ok(()));
        leases.allocate(&attachment(n), T0).unwrap();
    }
    assert!(matches!(leases.has_room(T0), Err(LeaseError::Exhausted { .. })));
    assert_eq!(leases.has_room(IN_FLIGHT_LIMIT), Ok(()));
    assert_eq!(book(&[], 0).has_room(T0), Err(LeaseError::NoCidr));
}

#[test]
fn host_routes_of_others_are_avoided() {
    let mut leases = book(&["10.1.0.0/30"], 0);
    leases.observe(&[], &[ip("10.1.0.1")], T0);
    assert_eq!(leases.allocate(&attachment(1), T0).unwrap(), [ip("10.1.0.2")]);
}

#[test]
fn leases_outside_our_cidrs_stay_and_two_claims_are_told() {
    let mut leases = book(&["10.1.0.0/24"], 0);
    let far = [ip("192.168.0.9")];
    leases.observe(&[veth(&attachment(1), &far), veth(&attachment(2), &far)], &[], T0);
    assert_eq!(leases.attached().count(), 2);
    let mut veths = vec![veth_name(&attachment(1)), veth_name(&attachment(2))];
    veths.sort();
    assert_eq!(leases.conflicts(), [LeaseConflict { address: far[0], veths }]);
    assert!(leases.allocate(&attachment(3), T0).is_ok());
}

#[test]
fn a_large_ipv6_cidr_with_many_leases_is_quick() {
    let mut leases = book(&["2001:db8::/32"], u64::MAX);
    let given: BTreeSet<IpAddr> = (0..500).map(|n| leases.allocate(&attachment(n), T0).unwrap()[0]).collect();
    assert_eq!(given.len(), 500);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u32),
    Release(u32),
    Taken(u32),
    /// The plugin makes the veth of what it was given.
    Plumb(u32),
    Unplumb(u32),
    Observe,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..12_u32;
    let step = prop_oneof![
        4 => who.clone().prop_map(Step::Allocate),
        1 => who.clone().prop_map(Step::Release),
        1 => who.clone().prop_map(Step::Taken),
        3 => who.clone().prop_map(Step::Plumb),
        2 => who.prop_map(Step::Unplumb),
        3 => Just(Step::Observe),
        1 => (1..70_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The model is the kernel: veths with exclusive routes. The plugin plumbs only what it was given and
    /// is within its own limit of time.
    #[test]
    fn no_address_ever_has_two_owners(steps in steps(), seed in any::<u64>()) {
        let mut leases = book(&["10.1.0.0/28", "fd00::/64"], seed);
        let mut kernel: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        let mut given: BTreeMap<u32, (Vec<IpAddr>, Duration)> = BTreeMap::new();
        let mut now = T0;
        for step in steps {
            let answer = match step {
                Step::Allocate(n) => Some((n, leases.allocate(&attachment(n), now))),
                Step::Taken(n) => {
                    let before = leases.addresses_of(&attachment(n)).unwrap_or_default().to_vec();
                    let answer = leases.taken(&attachment(n), &before, now);
                    if let Ok(after) = &answer {
                        prop_assert!(after.iter().all(|address| !before.contains(address)));
                    }
                    given.remove(&n);
                    Some((n, answer))
                }
                Step::Release(n) => {
                    leases.release(&attachment(n));
                    given.remove(&n);
                    None
                }
                Step::Plumb(n) => {
                    if let Some((addresses, since)) = given.remove(&n)
                        && now < since + Duration::from_secs(20) && !kernel.contains_key(&n) {
                            let in_use = kernel.values().flatten().any(|a| addresses.contains(a));
                            prop_assert!(!in_use, "{addresses:?} given twice");
                            kernel.insert(n, addresses);
                        }
                    None
                }
                Step::Unplumb(n) => {
                    // The plugin's DEL: the veth, then a word to the daemon.
                    kernel.remove(&n);
                    given.remove(&n);
                    leases.release(&attachment(n));
                    None
                }
                Step::Observe => {
                    let veths: Vec<_> = kernel.iter().map(|(n, a)| veth(&attachment(*n), a)).collect();
                    let routed: Vec<_> = kernel.values().flatten().copied().collect();
                    leases.observe(&veths, &routed, now);
                    prop_assert!(leases.conflicts().is_empty());
                    None
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    // The control loop observes at least as often as flights expire.
                    let veths: Vec<_> = kernel.iter().map(|(n, a)| veth(&attachment(*n), a)).collect();
                    let routed: Vec<_> = kernel.values().flatten().copied().collect();
                    leases.observe(&veths, &routed, now);
                    None
                }
            };
            if let Some((n, Ok(addresses))) = answer {
                prop_assert_eq!(addresses.len(), 2);
                prop_assert!(addresses[0] != ip("10.1.0.0") && addresses[0] != ip("10.1.0.15"));
                prop_assert!(net("10.1.0.0/28").contains(&addresses[0]));
                prop_assert!(addresses[1] != ip("fd00::") && net("fd00::/64").contains(&addresses[1]));
                prop_assert_eq!(leases.clone().allocate(&attachment(n), now), Ok(addresses.clone()));
                given.insert(n, (addresses, now));
            }
            let mut seen = BTreeSet::new();
            for (_, addresses) in leases.in_flight() {
                prop_assert!(addresses.iter().all(|address| seen.insert(*address)));
            }
        }
    }
}

#[test]
fn an_allocation_whose_veth_went_unseen_ends_soon() {
    let mut leases = Leases::new(&["10.0.0.0/30".parse().unwrap()], 1);
    let (one, other) = (attachment(1), attachment(2));
    let begin = Duration::from_secs(100);
    let held = leases.allocate(&one, begin).unwrap();
    leases.allocate(&other, begin).unwrap();
    leases.veth_gone(&veth_name(&one), begin);
    // A plugin that asks again holds it again.
    assert_eq!(leases.allocate(&one, begin), Ok(held.clone()));
    leases.veth_gone(&veth_name(&one), begin);
    let later = begin + GONE_LIMIT;
    assert_eq!(leases.allocate(&attachment(3), later), Ok(held));
    assert!(leases.allocate(&attachment(4), later).is_err(), "the other one is still in flight");
}
