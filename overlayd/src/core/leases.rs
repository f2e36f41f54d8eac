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

/// How long an allocation is kept in flight when its veth has gone. The news of it may be of an earlier veth of the
/// attachment, whose new one is made within some milliseconds.
pub const GONE_LIMIT: Duration = Duration::from_secs(1);

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

    /// The veth of this name was deleted, perhaps before any observation showed it: an allocation in flight for it ends
    /// soon. Should a slow plugin still make its veth then, the kernel lets it have the address only if nobody has.
    pub fn veth_gone(&mut self, name: &str, now: Duration) {
        for (attachment, flight) in &mut self.in_flight {
            if veth_name(attachment) == name {
                flight.deadline = flight.deadline.min(now.saturating_add(GONE_LIMIT));
            }
        }
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

    /// Ends the allocations in flight whose time is over. Every call that gives addresses does so first.
    pub fn expire(&mut self, now: Duration) {
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
mod tests;
