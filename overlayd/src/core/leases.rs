//! Pod addresses. The kernel is the store: leases are the aliases of our veths, our host routes, and
//! allocations in flight.
//!
//! An address is free if no veth's alias holds it, no host route leads to it, nothing in flight has it and
//! nobody said a moment ago that it is taken. Everything but the allocations in flight is replaced by each
//! observation of the kernel, so a lease ends exactly when its veth is gone. An address that two still
//! come to hold by a race costs nothing: the plugin creates host routes exclusively and asks again.
//!
//! A cursor walks each CIDR round and round from a random place, so an address that was just freed is the
//! last to be given again: old connections and caches elsewhere have time to forget it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use wire::ipc::Attachment;
use wire::packet::MacAddr;
use wire::tag::{Alias, veth_name};

/// How long an allocation may stay without a veth: longer than the plugin's own limit of 20 s.
pub const IN_FLIGHT_LIMIT: Duration = Duration::from_secs(60);

/// One veth of ours as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedVeth {
    /// Name of the host end.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Its alias, if it has one that parses.
    pub alias: Option<Alias>,
    /// MAC of the pod's end, if the runtime asked for one of its own.
    pub pod_mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether the host end is up.
    pub up: bool,
}

/// Why no address can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// All addresses of this CIDR are in use.
    #[error("all {usable} addresses of {cidr} are in use")]
    Exhausted {
        /// The full CIDR: the last one tried, if the family has several.
        cidr: IpNet,
        /// How many addresses it could give.
        usable: u128,
    },
    /// There is no pod CIDR to take addresses from.
    #[error("this node has no pod CIDR")]
    NoCidr,
    /// An address that was asked for is not one that pods of this node can have.
    #[error("{address} is not an address of this node's pods ({cidrs})")]
    Foreign {
        /// The address.
        address: IpAddr,
        /// Our pod CIDRs, in words.
        cidrs: String,
    },
    /// An address that was asked for belongs to somebody.
    #[error("{address} is in use")]
    InUse {
        /// The address.
        address: IpAddr,
    },
    /// Two addresses of one family, or none.
    #[error("want one address, or one of each family")]
    Shape,
}

/// A lease whose veth exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedLease<'a> {
    /// Name of the host veth.
    pub veth: &'a str,
    /// Who holds which addresses.
    pub alias: &'a Alias,
}

/// One address in the aliases of several veths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseConflict {
    /// The address.
    pub address: IpAddr,
    /// Names of the host veths.
    pub veths: Vec<String>,
}

/// The lease book.
#[derive(Clone, Debug)]
pub struct Leases {
    pools: Vec<Pool>,
    /// By name of the host veth.
    attached: BTreeMap<String, Alias>,
    in_flight: BTreeMap<Attachment, InFlight>,
    /// Every address that the last observation shows in use: in an alias or by a host route.
    observed: BTreeSet<IpAddr>,
    /// Said to be taken since the last observation.
    barred: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug)]
struct InFlight {
    addresses: Vec<IpAddr>,
    deadline: Duration,
}

impl Leases {
    /// An empty book over our pod CIDRs. `seed` places the cursor, so that restarts do not reuse the same addresses first.
    #[must_use]
    pub fn new(pod_cidrs: &[IpNet], seed: u64) -> Self {
        let mut pools: Vec<Pool> = pod_cidrs.iter().map(|cidr| Pool::new(*cidr, seed)).collect();
        pools.sort_by_key(Pool::is_v6);
        Self {
            pools,
            attached: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            observed: BTreeSet::new(),
            barred: BTreeSet::new(),
        }
    }

    /// Replaces what is known of the kernel: our veths, and every address that a host route of any owner holds.
    /// `now` is time since an arbitrary epoch. Allocations in flight that show as a veth become leases.
    pub fn observe(&mut self, veths: &[ObservedVeth], routed: &[IpAddr], now: Duration) {
        self.attached = veths
            .iter()
            .filter_map(|veth| veth.alias.clone().map(|alias| (veth.name.clone(), alias)))
            .collect();
        let held = self.attached.values().flat_map(|alias| &alias.addresses);
        self.observed = held.chain(routed).copied().collect();
        self.barred.clear();
        let attached = &self.attached;
        self.in_flight.retain(|attachment, flight| {
            let shown = attached.get(&veth_name(attachment));
            now < flight.deadline && shown.is_none_or(|alias| alias.addresses != flight.addresses)
        });
    }

    /// One address per family for this attachment; the same again if it already has them.
    ///
    /// # Errors
    /// If a CIDR is full; nothing is taken then.
    pub fn allocate(&mut self, attachment: &Attachment, now: Duration) -> Result<Vec<IpAddr>, LeaseError> {
        self.expire(now);
        let addresses = match self.addresses_of(attachment) {
            Some(addresses) => addresses.to_vec(),
            None => self.pick(&[])?,
        };
        self.launch(attachment, addresses, now)
    }

    /// These addresses of ours for this attachment, and any of each other family that we have.
    ///
    /// # Errors
    /// If one is not ours to give or in use, or another family is full; nothing is taken then.
    pub fn allocate_these(
        &mut self,
        attachment: &Attachment,
        wanted: &[IpAddr],
        now: Duration,
    ) -> Result<Vec<IpAddr>, LeaseError> {
        let is_ours = |address: IpAddr| self.pools.iter().any(|pool| pool.has(address));
        if let Some(address) = wanted.iter().copied().find(|address| !is_ours(*address)) {
            let cidrs: Vec<String> = self.pools.iter().map(|pool| pool.cidr.to_string()).collect();
            return Err(LeaseError::Foreign { address, cidrs: cidrs.join(", ") });
        }
        self.claim(attachment, wanted, now)?;
        let addresses = self.pick(wanted)?;
        self.launch(attachment, addresses, now)
    }

    /// Books addresses that somebody else gave to this attachment: nobody gets them from us then.
    ///
    /// # Errors
    /// If one is in use; nothing is booked then.
    pub fn adopt(
        &mut self,
        attachment: &Attachment,
        given: &[IpAddr],
        now: Duration,
    ) -> Result<Vec<IpAddr>, LeaseError> {
        self.claim(attachment, given, now)?;
        let mut addresses = given.to_vec();
        addresses.sort_by_key(IpAddr::is_ipv6);
        self.launch(attachment, addresses, now)
    }

    /// Whether another attachment could have addresses now.
    ///
    /// # Errors
    /// Why not.
    pub fn has_room(&mut self, now: Duration) -> Result<(), LeaseError> {
        self.expire(now);
        self.choose(&[]).map(drop)
    }

    /// Whether this attachment alone may have these addresses, of which no two share a family.
    fn claim(&mut self, attachment: &Attachment, wanted: &[IpAddr], now: Duration) -> Result<(), LeaseError> {
        self.expire(now);
        let families: BTreeSet<bool> = wanted.iter().map(IpAddr::is_ipv6).collect();
        if wanted.is_empty() || families.len() != wanted.len() {
            return Err(LeaseError::Shape);
        }
        let own = self.addresses_of(attachment).unwrap_or_default();
        let taken = wanted.iter().find(|address| !own.contains(address) && !self.is_free(**address));
        taken.map_or(Ok(()), |address| Err(LeaseError::InUse { address: *address }))
    }

    fn is_free(&self, address: IpAddr) -> bool {
        !self.observed.contains(&address)
            && !self.barred.contains(&address)
            && !self.in_flight.values().any(|flight| flight.addresses.contains(&address))
    }

    /// The kernel said `EEXIST` for these: gives others, and keeps off the taken ones until the next observation.
    /// What the attachment has and was not taken, it keeps.
    ///
    /// # Errors
    /// See [`LeaseError`]. The attachment then holds nothing in flight any more.
    pub fn taken(
        &mut self,
        attachment: &Attachment,
        addresses: &[IpAddr],
        now: Duration,
    ) -> Result<Vec<IpAddr>, LeaseError> {
        self.expire(now);
        self.barred.extend(addresses);
        let mut kept = self.addresses_of(attachment).unwrap_or_default().to_vec();
        kept.retain(|address| !addresses.contains(address));
        self.in_flight.remove(attachment);
        let addresses = self.pick(&kept)?;
        self.launch(attachment, addresses, now)
    }

    /// Ends an allocation in flight. An existing veth's lease ends with the veth: when the next observation
    /// does not show it, not before, because the kernel may still have its routes.
    pub fn release(&mut self, attachment: &Attachment) {
        self.in_flight.remove(attachment);
    }

    /// What this attachment holds, in flight or by its veth.
    #[must_use]
    pub fn addresses_of(&self, attachment: &Attachment) -> Option<&[IpAddr]> {
        if let Some(flight) = self.in_flight.get(attachment) {
            return Some(&flight.addresses);
        }
        let alias = self.attached.get(&veth_name(attachment))?;
        let ours = alias.container == attachment.container && alias.ifname == attachment.ifname;
        ours.then_some(&alias.addresses)
    }

    /// Leases whose veth exists, by name of the veth.
    pub fn attached(&self) -> impl Iterator<Item = AttachedLease<'_>> {
        self.attached.iter().map(|(veth, alias)| AttachedLease { veth, alias })
    }

    /// Allocations that no observation has shown as a veth since they were given, and their addresses.
    pub fn in_flight(&self) -> impl Iterator<Item = (&Attachment, &[IpAddr])> {
        self.in_flight.iter().map(|(attachment, flight)| (attachment, flight.addresses.as_slice()))
    }

    /// Addresses that several of our veths claim: at most one of them can have the route.
    #[must_use]
    pub fn conflicts(&self) -> Vec<LeaseConflict> {
        let mut claims: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for (veth, alias) in &self.attached {
            for address in &alias.addresses {
                claims.entry(*address).or_default().push(veth.clone());
            }
        }
        let several = claims.into_iter().filter(|(_, veths)| veths.len() > 1);
        several.map(|(address, veths)| LeaseConflict { address, veths }).collect()
    }

    fn expire(&mut self, now: Duration) {
        self.in_flight.retain(|_, flight| now < flight.deadline);
    }

    fn launch(
        &mut self,
        attachment: &Attachment,
        addresses: Vec<IpAddr>,
        now: Duration,
    ) -> Result<Vec<IpAddr>, LeaseError> {
        let flight = InFlight { addresses: addresses.clone(), deadline: now.saturating_add(IN_FLIGHT_LIMIT) };
        self.in_flight.insert(attachment.clone(), flight);
        Ok(addresses)
    }

    /// One address per family, `kept` ones first. Cursors move only if every family has one.
    fn pick(&mut self, kept: &[IpAddr]) -> Result<Vec<IpAddr>, LeaseError> {
        let (addresses, moves) = self.choose(kept)?;
        for (index, offset) in moves {
            if let Some(pool) = self.pools.get_mut(index) {
                pool.cursor = (offset + 1) % pool.usable;
            }
        }
        Ok(addresses)
    }

    /// What [`pick`](Self::pick) gives, and the pools and offsets that it comes from.
    fn choose(&self, kept: &[IpAddr]) -> Result<(Vec<IpAddr>, Vec<Move>), LeaseError> {
        if self.pools.is_empty() {
            return Err(LeaseError::NoCidr);
        }
        let flying: BTreeSet<IpAddr> =
            self.in_flight.values().flat_map(|flight| flight.addresses.iter().copied()).collect();
        let is_free = |address: IpAddr| {
            !self.observed.contains(&address) && !self.barred.contains(&address) && !flying.contains(&address)
        };
        let mut addresses = Vec::new();
        let mut moves = Vec::new();
        for v6 in [false, true] {
            if let Some(address) = kept.iter().find(|address| address.is_ipv6() == v6) {
                addresses.push(*address);
                continue;
            }
            let family = || self.pools.iter().enumerate().filter(|(_, pool)| pool.is_v6() == v6);
            let Some((_, last)) = family().next_back() else { continue };
            let found = family().find_map(|(index, pool)| pool.next(is_free).map(|offset| (index, offset)));
            let Some((index, offset)) = found else {
                return Err(LeaseError::Exhausted { cidr: last.cidr, usable: last.usable });
            };
            moves.push((index, offset));
            addresses.extend(self.pools.get(index).map(|pool| pool.address(offset)));
        }
        Ok((addresses, moves))
    }
}

/// Which pool gives, and the offset that it gives.
type Move = (usize, u128);

/// The addresses of one CIDR that pods can have, by offset from the first of them.
#[derive(Clone, Debug)]
struct Pool {
    cidr: IpNet,
    first: u128,
    usable: u128,
    cursor: u128,
}

impl Pool {
    /// The network address is the tunnel's (and the subnet-router anycast address of IPv6, RFC 4291,
    /// section 2.6.1), the last one of IPv4 the broadcast address. So IPv4's /31 and /32 and IPv6's /128
    /// give none.
    fn new(cidr: IpNet, seed: u64) -> Self {
        let network = bits(cidr.network());
        let last = bits(cidr.broadcast());
        let reserved_at_end = u128::from(cidr.addr().is_ipv4());
        // Not last - network + 1 - ...: a /0 of IPv6 would overflow.
        let usable = (last - network).saturating_sub(reserved_at_end);
        let cursor = if usable == 0 { 0 } else { scatter(seed, network) % usable };
        Self { cidr, first: network.saturating_add(1), usable, cursor }
    }

    fn is_v6(&self) -> bool {
        self.cidr.addr().is_ipv6()
    }

    fn has(&self, address: IpAddr) -> bool {
        let offset = bits(address).checked_sub(self.first);
        address.is_ipv6() == self.is_v6() && offset.is_some_and(|offset| offset < self.usable)
    }

    fn address(&self, offset: u128) -> IpAddr {
        let bits = self.first.saturating_add(offset);
        match u32::try_from(bits) {
            Ok(v4) if !self.is_v6() => Ipv4Addr::from_bits(v4).into(),
            _ => Ipv6Addr::from_bits(bits).into(),
        }
    }

    /// Offset of the first free address from the cursor on, round once. Ends after as many steps as there
    /// are addresses in use, so a large CIDR costs no more than a small one.
    fn next(&self, is_free: impl Fn(IpAddr) -> bool) -> Option<u128> {
        let offsets = (self.cursor..self.usable).chain(0..self.cursor);
        offsets.into_iter().find(|offset| is_free(self.address(*offset)))
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// A place that differs with the seed and the CIDR: the finisher of SplitMix64 (Steele et al. 2014).
fn scatter(seed: u64, network: u128) -> u128 {
    #[expect(clippy::cast_possible_truncation, reason = "both halves are folded in")]
    let mut mixed = seed ^ (network as u64) ^ ((network >> 64) as u64);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).into()
}

#[cfg(test)]
mod tests {
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
        let starts: BTreeSet<IpAddr> = (0..50)
            .map(|seed| book(&["10.1.0.0/16"], seed).allocate(&attachment(0), T0).unwrap()[0])
            .collect();
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
        assert_eq!(
            leases.attached().map(|lease| lease.veth).collect::<Vec<_>>(),
            [veth_name(&attachment(1))]
        );
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
        let given: BTreeSet<IpAddr> =
            (0..500).map(|n| leases.allocate(&attachment(n), T0).unwrap()[0]).collect();
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
}
