//! The inner IP packet: where its parts are, checked once so that nothing later can run over its end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;

/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// IP protocol number of SCTP: its ports stand where those of UDP do (RFC 9260, section 3.1).
const SCTP: u8 = 132;

/// IPv6 extension headers followed before the search for the transport is given up. Real packets have at most three.
const EXTENSIONS_MAX: usize = 8;

/// Where the parts of one IP packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Bytes of the packet by its own header; what follows is padding.
    pub length: usize,
    /// Offset of the transport header. At most `length`.
    pub transport: usize,
    /// Protocol of what stands at `transport`.
    pub protocol: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Neither IPv4 options nor IPv6 extension headers.
    pub plain: bool,
    /// Type of service (IPv4) or traffic class (IPv6).
    pub tos: u8,
    /// Source and destination port as they stand in the packet, if it is TCP, UDP or SCTP and they are in it (a later fragment has none).
    pub ports: Option<(u16, u16)>,
}

/// Whether a packet is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not a fragment.
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// A later fragment.
    Later,
}

/// Why bytes are not an IP packet that can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The version is neither 4 nor 6.
    #[error("not an IP packet")]
    NotIp,
    /// The headers claim more bytes than there are, or less than they need.
    #[error("IP lengths contradict each other")]
    Lengths,
}

impl Inner {
    /// Reads the headers. Bytes behind the packet's own length are allowed (Ethernet padding).
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(Malformed::NotIp),
        }
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, Malformed> {
        let header = packet.first_chunk::<20>().ok_or(Malformed::Lengths)?;
        let transport = usize::from(header[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if transport < 20 || length < transport || length > packet.len() {
            return Err(Malformed::Lengths);
        }
        let offset = u16::from_be_bytes([header[6], header[7]]);
        let fragment = Fragment::of(offset & 0x1fff != 0, offset & 0x2000 != 0);
        let protocol = header[9];
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
            destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
            length,
            transport,
            protocol,
            fragment,
            plain: transport == 20,
            tos: header[1],
            ports: ports(&packet[..length], transport, protocol, fragment),
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, Malformed> {
        let header = packet.first_chunk::<40>().ok_or(Malformed::Lengths)?;
        let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > packet.len() {
            return Err(Malformed::Lengths);
        }
        let (_, addresses) = header.split_at(8);
        let (source, destination) = addresses.split_at(16);
        let chain = Chain::follow(&packet[..length], header[6]);
        Ok(Self {
            source: v6(source),
            destination: v6(destination),
            length,
            transport: chain.transport,
            protocol: chain.protocol,
            fragment: chain.fragment,
            plain: chain.transport == 40,
            tos: header[0] << 4 | header[1] >> 4,
            ports: ports(&packet[..length], chain.transport, chain.protocol, chain.fragment),
        })
    }

    /// Whether the inner packet is IPv4.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// The two ECN bits (RFC 3168, section 5).
    #[must_use]
    pub fn ecn(&self) -> u8 {
        self.tos & 3
    }
}

impl Fragment {
    fn of(later: bool, more: bool) -> Self {
        match (later, more) {
            (true, _) => Self::Later,
            (false, true) => Self::First,
            (false, false) => Self::Whole,
        }
    }
}

/// The end of a chain of IPv6 extension headers.
struct Chain {
    transport: usize,
    protocol: u8,
    fragment: Fragment,
}

impl Chain {
    /// Follows extension headers (RFC 8200, section 4) while they lie wholly in the packet. A chain that breaks
    /// off ends at the header that cannot be read: the receiving host judges that, not the tunnel.
    fn follow(packet: &[u8], first: u8) -> Self {
        let mut chain = Self { transport: 40, protocol: first, fragment: Fragment::Whole };
        for _ in 0..EXTENSIONS_MAX {
            let Some(header) = packet.get(chain.transport..).and_then(|rest| rest.first_chunk::<8>()) else {
                return chain;
            };
            let length = match chain.protocol {
                // Hop-by-hop options, routing, destination options, mobility, HIP, shim6.
                0 | 43 | 60 | 135 | 139 | 140 => (usize::from(header[1]) + 1) * 8,
                // Authentication header: counted in 4-byte units (RFC 4302, section 2.2).
                51 => (usize::from(header[1]) + 2) * 4,
                44 => {
                    let offset = u16::from_be_bytes([header[2], header[3]]);
                    // An atomic fragment (RFC 6946) still counts as one: it must not be coalesced.
                    chain.fragment = if offset & 0xfff8 != 0 { Fragment::Later } else { Fragment::First };
                    8
                }
                _ => return chain,
            };
            if chain.transport + length > packet.len() {
                return chain;
            }
            chain.transport += length;
            chain.protocol = header[0];
            if chain.fragment == Fragment::Later {
                return chain;
            }
        }
        chain
    }
}

fn ports(packet: &[u8], transport: usize, protocol: u8, fragment: Fragment) -> Option<(u16, u16)> {
    if !matches!(protocol, TCP | UDP | SCTP) || fragment == Fragment::Later {
        return None;
    }
    let &[a, b, c, d] = packet.get(transport..)?.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn v6(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = bytes.try_into().unwrap_or_default();
    IpAddr::V6(Ipv6Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, l4: &[u8]) -> Vec<u8> {
        let [a, b] = (20 + l4.len() as u16).to_be_bytes();
        let mut packet = vec![0x45, 0xb9, a, b, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend(l4);
        packet
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let [a, b] = (rest.len() as u16).to_be_bytes();
        let mut packet = vec![0x6b, 0x91, 0x23, 0x45, a, b, next, 64];
        packet.extend([0xfd; 16]);
        packet.extend([0xfc; 16]);
        packet.extend(rest);
        packet
    }

    #[test]
    fn parts_of_ipv4_are_found() {
        let mut packet = v4(UDP, &[0, 7, 1, 0, 0, 8, 0, 0]);
        packet.extend([0; 18]); // Ethernet padding.
        let inner = Inner::parse(&packet).expect("sound");
        assert_eq!(
            inner,
            Inner {
                source: "10.0.0.1".parse().expect("address"),
                destination: "10.0.0.2".parse().expect("address"),
                length: 28,
                transport: 20,
                protocol: UDP,
                fragment: Fragment::Whole,
                plain: true,
                tos: 0xb9,
                ports: Some((7, 256)),
            }
        );
        assert_eq!(inner.ecn(), 1);
    }

    #[test]
    fn fragments_are_told_apart() {
        let fragment = |field: u16| {
            let mut packet = v4(UDP, &[0, 7, 1, 0, 0, 8, 0, 0]);
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            let inner = Inner::parse(&packet).expect("sound");
            (inner.fragment, inner.ports)
        };
        assert_eq!(fragment(0x4000), (Fragment::Whole, Some((7, 256))));
        assert_eq!(fragment(0x2000), (Fragment::First, Some((7, 256))));
        assert_eq!(fragment(0x2001), (Fragment::Later, None));
        assert_eq!(fragment(0x0001), (Fragment::Later, None));
    }

    #[test]
    fn the_transport_is_found_behind_extension_headers() {
        let options = [60, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop, then destination options
        let destination = [51, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // then authentication
        let authentication = [44, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // then fragment
        let fragment = [TCP, 0, 0, 1, 0, 0, 0, 9];
        let rest = [&options[..], &destination, &authentication, &fragment, &[0, 80, 1, 187]].concat();
        let inner = Inner::parse(&v6(0, &rest)).expect("sound");
        assert_eq!((inner.protocol, inner.transport), (TCP, 40 + 8 + 16 + 24 + 8));
        assert_eq!((inner.fragment, inner.ports, inner.plain), (Fragment::First, Some((80, 443)), false));
        assert_eq!(inner.tos, 0xb9);
    }

    #[test]
    fn a_later_ipv6_fragment_has_no_ports() {
        let inner = Inner::parse(&v6(44, &[UDP, 0, 0, 8, 0, 0, 0, 9, 0, 80, 1, 187])).expect("sound");
        assert_eq!((inner.protocol, inner.fragment, inner.ports), (UDP, Fragment::Later, None));
    }

    #[test]
    fn an_endless_chain_of_extension_headers_ends() {
        let rest = [0, 0, 1, 4, 0, 0, 0, 0].repeat(5000);
        let inner = Inner::parse(&v6(0, &rest)).expect("sound");
        assert_eq!((inner.protocol, inner.ports), (0, None));
    }

    #[test]
    fn lengths_that_contradict_are_malformed() {
        let good = v4(TCP, &[0; 20]);
        assert_eq!(Inner::parse(&good[..39]), Err(Malformed::Lengths));
        assert_eq!(Inner::parse(&good[..19]), Err(Malformed::Lengths));
        for (at, value) in [(0, 0x44), (0, 0x4f), (3, 19)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Inner::parse(&bad), Err(Malformed::Lengths), "byte {at} = {value}");
        }
        assert_eq!(Inner::parse(&v6(TCP, &[0; 20])[..59]), Err(Malformed::Lengths));
        assert_eq!(Inner::parse(&v6(TCP, &[])[..39]), Err(Malformed::Lengths));
    }

    #[test]
    fn other_versions_are_not_ip() {
        assert_eq!(Inner::parse(&[]), Err(Malformed::NotIp));
        assert_eq!(Inner::parse(&[0x50; 60]), Err(Malformed::NotIp));
    }

    #[test]
    fn all_fragments_of_a_packet_have_one_hash() {
        let hash = |field: u16| {
            let mut packet = v4(UDP, &[0, 7, 1, 0, 0, 8, 0, 0]);
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            Inner::parse(&packet).expect("sound").flow_hash()
        };
        assert_eq!(hash(0x2000), hash(0x0001));
        assert_eq!(hash(0x2000), hash(0x2009));
        assert_ne!(hash(0), hash(0x2000));
    }

    #[test]
    fn flows_that_differ_in_one_port_or_address_spread_evenly() {
        let spread = |packets: &mut dyn Iterator<Item = Vec<u8>>| {
            let mut slots = [0; 16];
            for packet in packets {
                slots[(Inner::parse(&packet).expect("sound").flow_hash() >> 60) as usize] += 1;
            }
            slots
        };
        let port = |n: u16| v4(TCP, &[&n.to_be_bytes()[..], &[1, 187], &[0; 16]].concat());
        let edited = |at: usize, n: u16, mut packet: Vec<u8>| {
            packet[at..at + 2].copy_from_slice(&n.to_be_bytes());
            packet
        };
        let cases: [(&str, [i32; 16]); 4] = [
            ("source port", spread(&mut (0..1600).map(|n| port(32_768 + n)))),
            ("every other source port", spread(&mut (0..1600).map(|n| port(n * 2)))),
            ("IPv4 source", spread(&mut (0..1600).map(|n| edited(14, n, port(5))))),
            ("IPv6 destination", spread(&mut (0..1600).map(|n| edited(38, n, v6(TCP, &port(5)[20..]))))),
        ];
        for (what, slots) in cases {
            assert!(slots.iter().all(|count| (60..=140).contains(count)), "{what}: {slots:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_is_parsed_lies_within_the_packet(mut packet in proptest::collection::vec(any::<u8>(), 0..200), first in prop_oneof![Just(0x45), Just(0x46), Just(0x60), any::<u8>()]) {
            if let Some(byte) = packet.first_mut() {
                *byte = first;
            }
            if let Ok(inner) = Inner::parse(&packet) {
                prop_assert!(inner.transport <= inner.length && inner.length <= packet.len());
                let _ = inner.flow_hash();
            }
        }

        /// Where etherparse finds a transport, so do we, at the same place.
        #[test]
        fn etherparse_agrees(is_v6: bool, udp: bool, extensions in proptest::collection::vec(0_u8..4, 0..3), ports: [u8; 4]) {
            let protocol = if udp { UDP } else { TCP };
            let mut l4 = vec![0; 40];
            l4[..4].copy_from_slice(&ports);
            l4[4..6].copy_from_slice(&[0, 40]);
            l4[12] = 0x50;
            let packet = if is_v6 {
                let mut rest = l4;
                let mut next = protocol;
                for length in extensions {
                    let mut header = vec![next, length];
                    header.resize(8 + 8 * usize::from(length), 0);
                    rest = [header, rest].concat();
                    next = 60;
                }
                v6(next, &rest)
            } else {
                v4(protocol, &l4)
            };
            let inner = Inner::parse(&packet).expect("sound");
            let sliced = LaxSlicedPacket::from_ip(&packet).expect("sound");
            let theirs = match sliced.transport {
                Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
                Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
                _ => None,
            };
            prop_assert_eq!(inner.ports, theirs);
            let payload = match sliced.net {
                Some(LaxNetSlice::Ipv4(ip)) => ip.payload().payload.len(),
                Some(LaxNetSlice::Ipv6(ip)) => ip.payload().payload.len(),
                _ => 0,
            };
            prop_assert_eq!(inner.length - inner.transport, payload);
        }
    }
}
