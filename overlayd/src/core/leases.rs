//! Pod addresses. The kernel is the store: leases are the aliases of our veths, our host routes, and
//! allocations in flight.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use wire::ipc::Attachment;
use wire::tag::Alias;

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
        /// The full CIDR.
        cidr: IpNet,
        /// How many addresses it could give.
        usable: u128,
    },
}

/// The lease book.
#[derive(Clone, Debug)]
pub struct Leases {}

impl Leases {
    /// An empty book over our pod CIDRs. `seed` places the cursor, so that restarts do not reuse the same addresses first.
    #[must_use]
    pub fn new(pod_cidrs: &[IpNet], seed: u64) -> Self {
        let _ = (pod_cidrs, seed);
        todo!()
    }

    /// Replaces what is known of the kernel: our veths, and every address that a host route of any owner holds.
    /// `now` is time since an arbitrary epoch. Allocations in flight that show as a veth become leases.
    pub fn observe(&mut self, veths: &[ObservedVeth], routed: &[IpAddr], now: Duration) {
        let _ = (veths, routed, now);
        todo!()
    }

    /// One address per family for this attachment; the same again if it already has them.
    ///
    /// # Errors
    /// If a CIDR is full; nothing is taken then.
    pub fn allocate(&mut self, attachment: &Attachment, now: Duration) -> Result<Vec<IpAddr>, LeaseError> {
        let _ = (attachment, now);
        todo!()
    }

    /// The kernel said `EEXIST` for these: gives others, and keeps off the taken ones until the next observation.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn taken(
        &mut self,
        attachment: &Attachment,
        addresses: &[IpAddr],
        now: Duration,
    ) -> Result<Vec<IpAddr>, LeaseError> {
        let _ = (attachment, addresses, now);
        todo!()
    }

    /// Ends an allocation in flight. An existing veth's lease ends with the veth.
    pub fn release(&mut self, attachment: &Attachment) {
        let _ = attachment;
        todo!()
    }
}
