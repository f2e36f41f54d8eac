//! A TCP super-packet that is encapsulated whole: what goes in front of it on a TAP device whose kernel then lets
//! the network card, or the software behind it, cut it up below the tunnel's headers.

use std::net::IpAddr;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::checksum::{Sum, pseudo_header};
use super::segment::{OffloadError, UDP_LEN, transport_header_len};
use crate::packet::{
    ENCAP_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EncapHeader, GsoKind, Inner, TCP, UDP, VNET_LEN, VirtioNetHdr,
};

/// Bytes of `struct virtio_net_hdr_v1_hash_tunnel` (include/uapi/linux/virtio_net.h, Linux 6.17): [`VirtioNetHdr`],
/// buffers (2), a hash that we leave out (8), offset of the outer transport (2), offset of the inner network header (2).
pub const TUNNEL_VNET_LEN: usize = VNET_LEN + 14;

/// `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`: the outer UDP checksum is to be finished too.
const FLAG_OUTER_CSUM: u8 = 8;

/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4` and `_IPV6`: the outer header's family.
const GSO_TUNNEL_V4: u8 = 0x20;
const GSO_TUNNEL_V6: u8 = 0x40;

/// Bytes of an Ethernet header.
const ETHERNET_LEN: usize = 14;

/// Bytes of an IPv4 header without options, and of an IPv6 header.
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;

/// Hops that the outer packet may take, after the one that forwarding from the TAP device takes off: the kernel's default
/// (`IPDEFTTL`, include/uapi/linux/ip.h).
const HOPS: u8 = 64 + 1;

/// Don't fragment (RFC 791, section 3.1).
const DONT_FRAGMENT: u8 = 0x40;

const MAX_LEN: usize = TUNNEL_VNET_LEN + ETHERNET_LEN + V6_LEN + UDP_LEN + ENCAP_LEN;

/// The outer addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Our own underlay address.
    pub source: IpAddr,
    /// The peer's.
    pub destination: IpAddr,
    /// Source and destination port.
    pub ports: (u16, u16),
    /// ECN bits.
    pub ecn: u8,
}

/// Everything in front of the inner packet: virtio-net header with tunnel offsets, Ethernet (whose addresses mean nothing:
/// the frame is sent on by its IP header), IP, UDP, VXLAN and inner Ethernet.
#[derive(Clone, Copy, Debug)]
pub struct TunnelHeader {
    bytes: [u8; MAX_LEN],
    length: usize,
}

impl TunnelHeader {
    /// Builds it for a super-packet with this virtio-net header.
    ///
    /// # Errors
    /// If it is not a TCP super-packet with a partial checksum, if both outer addresses are not of one family, or if the outer
    /// packet would be longer than an IP header can say.
    pub fn new(
        outer: &Outer,
        encap: &EncapHeader,
        vnet: &VirtioNetHdr,
        packet: &[u8],
        inner: &Inner,
    ) -> Result<Self, OffloadError> {
        let is_tcp = matches!(vnet.kind(), Some(GsoKind::Tcp4 | GsoKind::Tcp6)) && inner.protocol == TCP;
        if !is_tcp || !vnet.needs_csum() || outer.source.is_ipv4() != outer.destination.is_ipv4() {
            return Err(OffloadError::Kind);
        }
        let tcp = packet.get(inner.transport..inner.length).ok_or(OffloadError::Kind)?;
        let tcp_len = transport_header_len(TCP, tcp).ok_or(OffloadError::Kind)?;
        let datagram = UDP_LEN + ENCAP_LEN + inner.length;
        let mut header = Self { bytes: [0; MAX_LEN], length: 0 };
        let (ip_len, gso_tunnel) = match outer.source {
            IpAddr::V4(_) => (V4_LEN, GSO_TUNNEL_V4),
            IpAddr::V6(_) => (V6_LEN, GSO_TUNNEL_V6),
        };
        // Counted from the frame's start, behind the virtio-net header.
        let outer_transport = ETHERNET_LEN + ip_len;
        let inner_network = outer_transport + UDP_LEN + ENCAP_LEN;
        let inner_transport = inner_network + inner.transport;
        let vnet = VirtioNetHdr {
            flags: VirtioNetHdr::NEEDS_CSUM | FLAG_OUTER_CSUM,
            gso_type: vnet.gso_type | gso_tunnel,
            hdr_len: U16::new((inner_transport + tcp_len) as u16),
            gso_size: vnet.gso_size,
            csum_start: U16::new(inner_transport as u16),
            csum_offset: vnet.csum_offset,
        };
        header.push(vnet.as_bytes());
        header.push(&[0; 10]);
        header.push(&(outer_transport as u16).to_le_bytes());
        header.push(&(inner_network as u16).to_le_bytes());
        header.push(&[0; 12]);
        header.push_ip(outer, datagram)?;
        let datagram_len = u16::try_from(datagram).map_err(|_| OffloadError::Kind)?;
        header.push(&outer.ports.0.to_be_bytes());
        header.push(&outer.ports.1.to_be_bytes());
        header.push(&datagram_len.to_be_bytes());
        header.push(&pseudo_header(outer.source, outer.destination, UDP, datagram).fold().to_be_bytes());
        header.push(&encap.0);
        Ok(header)
    }

    /// The bytes; the inner packet follows.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// EtherType and IP header.
    fn push_ip(&mut self, outer: &Outer, datagram: usize) -> Result<(), OffloadError> {
        let length = |bytes: usize| u16::try_from(bytes).map_err(|_| OffloadError::Kind);
        match (outer.source, outer.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = [0; V4_LEN];
                (ip[0], ip[1]) = (0x45, outer.ecn & 3);
                ip[2..4].copy_from_slice(&length(V4_LEN + datagram)?.to_be_bytes());
                (ip[6], ip[8], ip[9]) = (DONT_FRAGMENT, HOPS, UDP);
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..].copy_from_slice(&destination.octets());
                let checksum = Sum::default().bytes(&ip).checksum();
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                self.push(&ETHERTYPE_IPV4.to_be_bytes());
                self.push(&ip);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = [0; V6_LEN];
                (ip[0], ip[1]) = (0x60, (outer.ecn & 3) << 4);
                ip[4..6].copy_from_slice(&length(datagram)?.to_be_bytes());
                (ip[6], ip[7]) = (UDP, HOPS);
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..].copy_from_slice(&destination.octets());
                self.push(&ETHERTYPE_IPV6.to_be_bytes());
                self.push(&ip);
            }
            _ => return Err(OffloadError::Kind),
        }
        Ok(())
    }

    fn push(&mut self, part: &[u8]) {
        // All parts together fit: MAX_LEN is their sum.
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::super::sample::Sample;
    use super::*;
    use crate::packet::{Encap, MacAddr};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    fn outer(v6: bool, ecn: u8) -> Outer {
        let pair: [IpAddr; 2] = if v6 {
            [[0xfd; 16].into(), [0xfc; 16].into()]
        } else {
            [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()]
        };
        Outer { source: pair[0], destination: pair[1], ports: (40_000, 8472), ecn }
    }

    /// The whole frame, or why there is none.
    fn frame(outer: &Outer, sample: &Sample) -> Result<Vec<u8>, OffloadError> {
        let frame = sample.frame();
        let (vnet, packet) = VirtioNetHdr::split(&frame).expect("a header");
        let inner = Inner::parse(packet).expect("sound");
        let encap =
            EncapHeader::new(1, MAC, MAC, if inner.is_v4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 });
        let header = TunnelHeader::new(outer, &encap, &vnet, packet, &inner)?;
        Ok([header.as_bytes(), packet].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_parser_finds_every_header_where_the_offsets_say(sample in Sample::any(), v6: bool, ecn in 0u8..4) {
            let sample = Sample { udp: false, ..sample };
            let outer = outer(v6, ecn);
            let whole = frame(&outer, &sample).expect("a TCP super-packet");
            let (vnet, ethernet) = whole.split_at(TUNNEL_VNET_LEN);
            let at = |place: usize| usize::from(u16::from_le_bytes([vnet[place], vnet[place + 1]]));
            let (hdr_len, csum_start, outer_transport, inner_network) = (at(2), at(6), at(20), at(22));

            let sliced = SlicedPacket::from_ethernet(ethernet).expect("Ethernet");
            match sliced.net.expect("IP") {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                    prop_assert_eq!((IpAddr::from(header.source), IpAddr::from(header.destination)), (outer.source, outer.destination));
                    prop_assert!(header.dont_fragment && header.ecn.value() == ecn);
                    prop_assert_eq!(usize::from(header.total_len), ethernet.len() - ETHERNET_LEN);
                }
                NetSlice::Ipv6(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!((IpAddr::from(header.source), IpAddr::from(header.destination)), (outer.source, outer.destination));
                    prop_assert_eq!(header.traffic_class & 3, ecn);
                    prop_assert_eq!(usize::from(header.payload_length), ethernet.len() - ETHERNET_LEN - V6_LEN);
                }
                other => prop_assert!(false, "{other:?}"),
            }
            let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
            prop_assert_eq!((udp.source_port(), udp.destination_port()), outer.ports);
            let partial = pseudo_header(outer.source, outer.destination, UDP, ethernet.len() - outer_transport).fold();
            prop_assert_eq!(udp.checksum(), partial);
            prop_assert_eq!(udp.slice(), &ethernet[outer_transport..]);

            let inside = Encap::parse(udp.payload()).expect("VXLAN").payload;
            prop_assert_eq!(inside, &ethernet[inner_network..]);
            let inner = Inner::parse(inside).expect("sound");
            prop_assert_eq!(csum_start, inner_network + inner.transport);
            prop_assert_eq!(hdr_len, ethernet.len() - sample.payload.len());
            prop_assert_eq!(at(4), usize::from(sample.size));
        }
    }

    #[test]
    fn what_cannot_go_whole_is_refused() {
        let sample = Sample::tcp(&[1; 3000], 1400);
        assert!(frame(&outer(false, 0), &sample).is_ok());
        let udp = Sample { udp: true, ..sample.clone() };
        assert_eq!(frame(&outer(false, 0), &udp), Err(OffloadError::Kind));
        let mixed = Outer { source: outer(true, 0).source, ..outer(false, 0) };
        assert_eq!(frame(&mixed, &sample), Err(OffloadError::Kind));
        // The longest that fits behind 20 + 8 + 22 outer bytes, with headers of its own.
        let longest = 65_535 - 50 - (sample.packet().len() - sample.payload.len());
        assert!(frame(&outer(false, 0), &Sample::tcp(&vec![1; longest], 1400)).is_ok());
        let over = Sample::tcp(&vec![1; longest + 1], 1400);
        assert_eq!(frame(&outer(false, 0), &over), Err(OffloadError::Kind));
    }
}
