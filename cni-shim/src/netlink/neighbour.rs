//! Neighbour entries.

use std::net::IpAddr;

use wire::packet::MacAddr;

use super::{Netlink, NetlinkError};

/// A neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// Interface index.
    pub link: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: MacAddr,
    /// Whether the entry is permanent.
    pub permanent: bool,
}

impl Netlink {
    /// Adds or replaces a permanent neighbour entry.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_permanent_neighbour(
        &mut self,
        link: u32,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let _ = (link, address, mac);
        todo!()
    }

    /// All neighbour entries with a link-layer address, both families.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        todo!()
    }
}
