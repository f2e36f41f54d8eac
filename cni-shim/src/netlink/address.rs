//! Interface addresses.

use ipnet::IpNet;

use super::{Netlink, NetlinkError};

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Whether duplicate address detection still runs (`IFA_F_TENTATIVE`).
    pub tentative: bool,
}

impl Netlink {
    /// All addresses of the namespace, both families.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        todo!()
    }

    /// Adds an address exclusively; IPv6 without duplicate address detection (`IFA_F_NODAD`).
    ///
    /// # Errors
    /// `EEXIST` if it is there.
    pub fn add_address(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        let _ = (link, net);
        todo!()
    }

    /// Removes an address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` if it is not there.
    pub fn delete_address(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        let _ = (link, net);
        todo!()
    }
}
