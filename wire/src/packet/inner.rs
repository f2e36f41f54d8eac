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
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(Malformed::NotIp),
        }
    }

    #[inline]
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

    #[inline]
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
    #[inline]
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// The two ECN bits (RFC 3168, section 5).
    #[must_use]
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.tos & 3
    }
}

impl Fragment {
    #[inline]
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
    #[inline]
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

#[inline]
fn ports(packet: &[u8], transport: usize, protocol: u8, fragment: Fragment) -> Option<(u16, u16)> {
    if !matches!(protocol, TCP | UDP | SCTP) || fragment == Fragment::Later {
        return None;
    }
    let &[a, b, c, d] = packet.get(transport..)?.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[inline]
fn v6(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = bytes.try_into().unwrap_or_default();
    IpAddr::V6(Ipv6Addr::from(octets))
}
