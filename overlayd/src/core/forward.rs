//! The verdict on each packet: encapsulation on egress, the checks and decapsulation on ingress.
//!
//! **Egress.** A frame from the TUN device is one IP packet, perhaps a super-packet. Its inner destination names the
//! path; it is cut up straight into a buffer of equal datagrams, which is what one `UDP_SEGMENT` send wants. Several
//! buffers are open, one per peer and source port, so that flows that take turns do not spoil one another's batches. A
//! flow always has one peer and one port, so its order is kept. Where the uplink can cut up a TCP super-packet below the tunnel's
//! headers, it is left as it is ([`Egress::whole`]).
//!
//! **Ingress.** A datagram is checked from the outside in; the first check that fails names the reason. What
//! passes goes through [`Coalescer`](wire::offload::Coalescer) to the TUN device.
//!
//! **ECN** follows RFC 6040 in normal mode: the outer header copies the inner field, and decapsulation combines
//! both (section 4.2). DSCP stays inside.
//!
//! **The tunnel inside the tunnel.** A packet to the tunnel's own UDP port at a node, rather than at a pod, would go from
//! the TUN device to our own socket, past the check of the outer source, or round in circles. It is dropped in
//! both directions. Between pods it is their own business: a pod may run a VXLAN of its own.

mod egress;
mod ingress;
mod reason;

use std::net::IpAddr;

use wire::packet::{Inner, UDP};

pub use self::egress::{Datagrams, Egress, SuperPacket};
pub use self::ingress::{Ingress, IngressMessage};
pub use self::reason::DropReason;

/// Source ports that egress spreads flows over.
pub const SOURCE_PORTS: usize = 16;

/// Most datagrams that any kernel takes in one `UDP_SEGMENT` send (`UDP_MAX_SEGMENTS`, include/linux/udp.h).
pub const SEGMENTS_MAX: usize = 128;

/// Most datagrams in one batch unless told otherwise: `UDP_MAX_SEGMENTS` of kernels before 6.9.
pub const SEGMENTS_DEFAULT: usize = 64;

/// Most bytes in one batch: the largest UDP payload over IPv4. IPv6 would take 20 more.
pub const BATCH_BYTES: usize = 65_507;

/// UDP port of the tunnel unless told otherwise (Linux's default, `vxlan_port` in drivers/net/vxlan).
const TUNNEL_PORT: u16 = 8472;

/// ECN codepoints (RFC 3168, section 5).
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Turns a frame that the TUN device refuses as a super-packet into finished plain packets, each with an empty
/// virtio-net header. A frame that cannot be read gives nothing.
pub fn split(frame: &[u8], write: &mut impl FnMut(&[u8])) {
    let _ = wire::offload::split(frame, write);
}

#[inline]
fn is_to_port(inner: &Inner, port: u16) -> bool {
    inner.protocol == UDP && inner.ports.is_some_and(|(_, destination)| destination == port)
}

#[inline]
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests;
