//! What Nodes claim, in the order of addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::annotations::Family;

/// A claim that is not believed, though there is such a CIDR or address.
#[derive(Clone, Debug)]
pub(super) struct LostClaim {
    pub(super) node: Box<str>,
    /// Whose claim it contradicts; `None` if it came to nothing by what else its node says.
    pub(super) holder: Option<Box<str>>,
    /// First and last address claimed.
    pub(super) range: (Key, Key),
}

/// What is believed of whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// Believed CIDRs, disjoint: family and first address to last address, CIDR and node.
    pub(super) cidrs: BTreeMap<Key, (u128, IpNet, Box<str>)>,
    /// Believed underlay addresses and their nodes.
    pub(super) underlays: BTreeMap<Key, Box<str>>,
}

/// An address, so that all of one family are consecutive.
pub(super) type Key = (Family, u128);

/// The address as a key.
pub(super) fn key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(v4) => (Family::V4, v4.to_bits().into()),
        IpAddr::V6(v6) => (Family::V6, v6.to_bits()),
    }
}

/// The key as an address.
pub(super) fn address_of((family, bits): Key) -> IpAddr {
    match (family, u32::try_from(bits)) {
        (Family::V4, Ok(bits)) => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}
