//! Links: read, veth creation, the few attributes that we set.

use std::os::fd::BorrowedFd;

use wire::packet::MacAddr;

use super::{Netlink, NetlinkError};

/// A network device as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `IFLA_INFO_KIND` ("veth", "tun", "vxlan", ...); empty for physical devices and loopback.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether `IFF_UP` is set.
    pub up: bool,
    /// Whether `IFF_LOOPBACK` is set.
    pub loopback: bool,
    /// Link-layer address, if it has an Ethernet one.
    pub mac: Option<MacAddr>,
    /// Device group.
    pub group: u32,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    /// `IFLA_TXQLEN` in packets.
    pub tx_queue_len: u32,
    /// UDP port, if it is a vxlan device.
    pub vxlan_port: Option<u16>,
    /// VNI, if it is a vxlan device.
    pub vxlan_vni: Option<u32>,
}

/// A veth pair to create, the peer straight in another namespace.
#[derive(Clone, Debug)]
pub struct VethSpec<'a> {
    /// Name of the host end.
    pub host_name: &'a str,
    /// MAC of the host end (in the creating message: udev rewrites kernel-chosen ones).
    pub host_mac: MacAddr,
    /// Device group of the host end.
    pub group: u32,
    /// Name of the pod end.
    pub pod_name: &'a str,
    /// MAC of the pod end.
    pub pod_mac: MacAddr,
    /// Namespace of the pod end.
    pub pod_netns: BorrowedFd<'a>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

impl Netlink {
    /// All links of the namespace.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        todo!()
    }

    /// One link by name, or `None`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let _ = name;
        todo!()
    }

    /// Creates a veth pair; both ends are down afterwards.
    ///
    /// # Errors
    /// `EEXIST` if either name is taken.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<(), NetlinkError> {
        let _ = spec;
        todo!()
    }

    /// Sets `IFLA_IFALIAS`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_alias(&mut self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let _ = (index, alias);
        todo!()
    }

    /// Sets or clears `IFF_UP`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let _ = (index, up);
        todo!()
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let _ = (index, mtu);
        todo!()
    }

    /// Sets the transmit queue's length in packets.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_tx_queue_len(&mut self, index: u32, packets: u32) -> Result<(), NetlinkError> {
        let _ = (index, packets);
        todo!()
    }

    /// Deletes a link.
    ///
    /// # Errors
    /// `ENODEV` if it is gone.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let _ = index;
        todo!()
    }
}
