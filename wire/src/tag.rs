//! What the CNI plugin and the daemon must agree on to recognise their own kernel objects.

use std::net::IpAddr;

use crate::ipc::Attachment;

/// Name prefix of the host end of every pod's veth pair.
pub const VETH_PREFIX: &str = "ovp";

/// Device group (`IFLA_GROUP`) of the host end of every pod's veth pair: "ovld" in ASCII.
pub const VETH_GROUP: u32 = 0x6f76_6c64;

/// `rtm_protocol` of every route that is ours. No entry of iproute2's `rt_protos` has this number.
pub const ROUTE_PROTOCOL: u8 = 111;

/// Metric of the host routes to pods. One for all, so that a second route to the same address is `EEXIST`.
pub const POD_ROUTE_METRIC: u32 = 1;

/// The gateway that IPv4 pods see: link-local, on no wire, answered by a permanent neighbour entry.
pub const GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);

/// The gateway that IPv6 pods see.
pub const GATEWAY_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Name of the host end of this attachment's veth pair: prefix and 12 hex digits of SHA-256 over
/// network, container and interface name. Fits `IFNAMSIZ` (15 bytes).
#[must_use]
pub fn veth_name(attachment: &Attachment) -> String {
    let _ = attachment;
    todo!()
}

/// What stands in the alias (`IFLA_IFALIAS`) of a host veth: the lease itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// 16 hex digits of SHA-256 of the CNI network's name.
    pub network_hash: String,
    /// Container id.
    pub container: String,
    /// Interface name inside the pod.
    pub ifname: String,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

impl Alias {
    /// The alias of an attachment that holds these addresses.
    #[must_use]
    pub fn new(attachment: &Attachment, addresses: &[IpAddr]) -> Self {
        let _ = (attachment, addresses);
        todo!()
    }

    /// The text for the kernel, at most 255 bytes (`IFALIASZ` less the terminator).
    #[must_use]
    pub fn emit(&self) -> String {
        todo!()
    }

    /// Reads a text back; `None` if it is not exactly ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let _ = text;
        todo!()
    }
}
