//! Formats of the packets that cross the TUN device and the underlay.
//!
//! A frame of the TUN device is a [`VirtioNetHdr`] and an IP packet; a datagram of the underlay is an
//! [`EncapHeader`] (VXLAN and inner Ethernet) and an IP packet. [`Inner`] is the checked description of that
//! IP packet. Parsers refuse with a reason and never panic; emitters are total.

mod ether;
mod flow;
mod inner;
mod virtio;
mod vxlan;

pub use ether::MacAddr;
pub use flow::mix;
pub use inner::{Fragment, Inner, Malformed, TCP, UDP};
pub use virtio::{GsoKind, VNET_LEN, VirtioNetHdr};
pub use vxlan::{ENCAP_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Encap, EncapError, EncapHeader, VNI_MAX};
