//! One TCP or UDP packet as the coalescer sees it: its flow, its parts, the state of its checksums.

use std::net::IpAddr;

use zerocopy::little_endian::U16;

use super::checksum::{Sum, copy_sum, pseudo_header, update_word};
use super::coalesce::Delivery;
use super::segment::{CWR, FIN, PSH, RST, SYN, UDP_LEN, URG, transport_header_len};
use crate::packet::{Fragment, TCP, UDP, VirtioNetHdr};

/// The 5-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) ports: (u16, u16),
    pub(super) protocol: u8,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// A TCP or UDP packet that is not a fragment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) key: Key,
    pub(super) transport: usize,
    /// Bytes of all headers.
    pub(super) headers: usize,
    pub(super) payload: usize,
    pub(super) plain: bool,
    pub(super) tos: (u8, u8),
    pub(super) v4: bool,
    pub(super) tcp: Option<TcpPart>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct TcpPart {
    pub(super) sequence: u32,
    pub(super) flags: u16,
}

impl Segment {
    #[inline]
    pub(super) fn of(packet: &[u8], delivery: &Delivery<'_>) -> Option<Self> {
        let inner = &delivery.inner;
        if inner.fragment != Fragment::Whole || !matches!(inner.protocol, TCP | UDP) {
            return None;
        }
        let l4 = packet.get(inner.transport..)?;
        let headers = inner.transport + transport_header_len(inner.protocol, l4)?;
        let tcp = if inner.protocol == TCP {
            let header = l4.first_chunk::<20>()?;
            Some(TcpPart {
                sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                flags: u16::from_be_bytes([header[12], header[13]]),
            })
        } else {
            // A UDP length that is not the packet's: nothing that we could checksum or join.
            let header = l4.first_chunk::<UDP_LEN>()?;
            if usize::from(u16::from_be_bytes([header[4], header[5]])) != l4.len() {
                return None;
            }
            None
        };
        Some(Self {
            key: Key {
                ports: inner.ports?,
                protocol: inner.protocol,
                source: inner.source,
                destination: inner.destination,
            },
            transport: inner.transport,
            headers,
            payload: packet.len() - headers,
            plain: inner.plain,
            tos: (inner.tos, delivery.tos),
            v4: inner.is_v4(),
            tcp,
        })
    }

    /// Whether a super-packet may begin with it, its checksums aside.
    #[inline]
    pub(super) fn may_open(&self) -> bool {
        self.plain
            && self.payload > 0
            && self.tcp.is_none_or(|tcp| tcp.flags & (SYN | FIN | RST | URG | CWR | PSH) == 0)
    }

    #[inline]
    pub(super) fn oversize(&self, mtu: usize) -> bool {
        mtu > self.headers && self.tcp.is_some() && self.headers + self.payload > mtu
    }

    /// Whether the IPv4 header's checksum is right and a UDP checksum is there at all.
    #[inline]
    pub(super) fn has_checksums(&self, packet: &[u8]) -> bool {
        let (ip, l4) = packet.split_at(self.transport);
        let udp_zero = self.tcp.is_none() && l4[6..8] == [0, 0];
        !udp_zero && (!self.v4 || Sum::default().bytes(ip).is_valid())
    }

    /// Copies the packet and returns the sum over pseudo header and transport.
    #[inline]
    pub(super) fn copy(&self, packet: &[u8], copy: &mut [u8]) -> Sum {
        let (ip, l4) = packet.split_at(self.transport);
        let (copy_ip, copy_l4) = copy.split_at_mut(self.transport);
        copy_ip.copy_from_slice(ip);
        copy_sum(l4, copy_l4).plus(self.pseudo(l4.len()))
    }

    #[inline]
    pub(super) fn pseudo(&self, length: usize) -> Sum {
        pseudo_header(self.key.source, self.key.destination, self.key.protocol, length)
    }

    #[inline]
    fn checksum_offset(&self) -> usize {
        if self.tcp.is_some() { 16 } else { 6 }
    }

    /// Whether the checksum field holds the pseudo-header's sum and nothing else.
    #[inline]
    pub(super) fn is_partial(&self, packet: &[u8]) -> bool {
        let at = self.transport + self.checksum_offset();
        let field = packet.get(at..).and_then(<[u8]>::first_chunk).map(|field| u16::from_be_bytes(*field));
        field == Some(self.pseudo(packet.len() - self.transport).fold())
    }

    /// The header that leaves the checksum to the kernel, and the segmentation of a packet that is larger than the MTU.
    pub(super) fn left_to_kernel(&self, mtu: usize) -> VirtioNetHdr {
        let mut vnet = VirtioNetHdr {
            flags: VirtioNetHdr::NEEDS_CSUM,
            csum_start: U16::new(self.transport as u16),
            csum_offset: U16::new(self.checksum_offset() as u16),
            ..VirtioNetHdr::default()
        };
        if self.oversize(mtu) {
            vnet.gso_type = if self.v4 { VirtioNetHdr::GSO_TCPV4 } else { VirtioNetHdr::GSO_TCPV6 };
            if self.tcp.is_some_and(|tcp| tcp.flags & CWR != 0) {
                vnet.gso_type |= VirtioNetHdr::GSO_ECN;
            }
            vnet.gso_size = U16::new((mtu - self.headers) as u16);
            vnet.hdr_len = U16::new(self.headers as u16);
        }
        vnet
    }

    /// Leaves only the pseudo-header's sum in the checksum field.
    pub(super) fn make_partial(&self, packet: &mut [u8]) {
        let field = self.pseudo(packet.len() - self.transport).fold();
        let at = self.transport + self.checksum_offset();
        if let Some(place) = packet.get_mut(at..at + 2) {
            place.copy_from_slice(&field.to_be_bytes());
        }
    }
}

/// Changes type of service or traffic class in place, keeping an IPv4 header's checksum as right or wrong as it was.
pub(super) fn set_tos(packet: &mut [u8], old: u8, new: u8) {
    if old == new {
        return;
    }
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            let Some(header) = packet.first_chunk_mut::<20>() else { return };
            let before = u16::from_be_bytes([header[0], old]);
            let after = u16::from_be_bytes([header[0], new]);
            let checksum = update_word(u16::from_be_bytes([header[10], header[11]]), before, after);
            header[1] = new;
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        _ => {
            if let Some(start) = packet.first_chunk_mut::<4>() {
                set_traffic_class(start, old, new);
            }
        }
    }
}

pub(super) fn set_traffic_class(start: &mut [u8; 4], old: u8, new: u8) {
    if old != new {
        start[0] = start[0] & 0xf0 | new >> 4;
        start[1] = start[1] & 0x0f | new << 4;
    }
}
