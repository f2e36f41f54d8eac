//! Joining segments into super-packets on their way to the TUN device.
//!
//! A few flows are open at a time. A segment that continues an open flow is appended to it, checksummed while
//! it is copied; anything else of that flow first pushes the open super-packet out, so order within a flow never
//! changes. The rules are those of the kernel's GRO (net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c) where they differ,
//! the stricter: cutting the result up again must give the packets that came.
//!
//! A packet whose checksum is wrong is handed on as it is, alone: a super-packet's checksum is made anew by
//! whoever cuts it up, which would hide the damage. Only a checksum field that holds exactly the
//! pseudo-header's sum is no damage but an offload that the sender's kernel left undone (its vxlan
//! device does so over links that pass partial checksums on): it is handed on with `NEEDS_CSUM`, and with a
//! segment size if the packet is larger than the MTU.

use std::net::IpAddr;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::candidate::{Key, Segment, set_tos, set_traffic_class};
use super::checksum::{Sum, copy_sum, pseudo_header};
use super::segment::{PSH, split};
use crate::packet::{Inner, TCP, VNET_LEN, VirtioNetHdr};

/// Flows open at a time. More than a batch of receives usually brings, few enough to look through.
const FLOWS: usize = 8;

/// Largest super-packet: an IPv4 length (an IPv6 length leaves the header out).
const PACKET_MAX: usize = 65_535;

/// Largest packet of all: IPv6.
const SINGLE_MAX: usize = 40 + 65_535;

/// Most datagrams in one UDP super-packet: `UDP_MAX_SEGMENTS` of kernels before 6.9; later ones take 128
/// (include/linux/udp.h, enforced by `virtio_net_hdr_to_skb`).
const UDP_SEGMENTS_MAX: usize = 64;

/// A packet to hand on and the one thing about it that may change.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The packet.
    pub packet: &'a [u8],
    /// Its description.
    pub inner: Inner,
    /// Type of service or traffic class that it shall leave with.
    pub tos: u8,
}

/// Super-packets in the making.
#[derive(Debug)]
pub struct Coalescer {
    flows: Vec<Flow>,
    single: Vec<u8>,
    clock: u64,
    tso: bool,
    uso: bool,
    mtu: usize,
}

impl Default for Coalescer {
    fn default() -> Self {
        Self {
            flows: (0..FLOWS).map(|_| Flow::new()).collect(),
            single: vec![0; VNET_LEN + SINGLE_MAX],
            clock: 0,
            tso: true,
            uso: true,
            mtu: 0,
        }
    }
}

impl Coalescer {
    /// Whether TCP super-packets may be handed on.
    pub fn set_tso(&mut self, on: bool) {
        self.tso = on;
    }

    /// Whether UDP super-packets may be handed on.
    pub fn set_uso(&mut self, on: bool) {
        self.uso = on;
    }

    /// MTU of the network behind the device in bytes: TCP packets that are larger get a segment size.
    /// 0, the default, means unknown: nothing is larger.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu as usize;
    }

    /// Takes one packet. `write` gets frames: virtio-net header and packet, at once or later.
    pub fn push(&mut self, delivery: &Delivery<'_>, write: &mut impl FnMut(&[u8])) {
        let inner = &delivery.inner;
        let Some(packet) = delivery.packet.get(..inner.length) else { return };
        let Some(segment) = Segment::of(packet, delivery) else {
            self.flush_pair(inner, write);
            return self.pass(packet, delivery, None, write);
        };
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.count > 0 && flow.key == segment.key) {
            match flow.append(&segment, packet) {
                Appended::Open => return,
                Appended::Full => return flow.deliver(write),
                Appended::No => flow.deliver(write),
            }
        }
        let allowed = if segment.key.protocol == TCP { self.tso } else { self.uso };
        if !allowed || !segment.may_open() || segment.oversize(self.mtu) {
            return self.pass(packet, delivery, Some(&segment), write);
        }
        self.clock += 1;
        let clock = self.clock;
        let Some(flow) =
            self.flows.iter_mut().min_by_key(|flow| if flow.count == 0 { 0 } else { flow.opened })
        else {
            return;
        };
        flow.deliver(write);
        if !flow.open(&segment, packet, clock) {
            self.pass(packet, delivery, Some(&segment), write);
        }
    }

    /// Takes one packet that lies behind [`VNET_LEN`] bytes of room. If its sender left a TCP super-packet to be cut up and
    /// checksummed, it is handed on where it lies; anything else is taken as by [`Self::push`].
    pub fn push_in_place(&mut self, place: &mut [u8], inner: Inner, tos: u8, write: &mut impl FnMut(&[u8])) {
        let Some((room, packet)) = place.split_at_mut_checked(VNET_LEN) else { return };
        let delivery = Delivery { packet, inner, tos };
        let Some((key, vnet)) = self.left_undone(&delivery) else { return self.push(&delivery, write) };
        for flow in self.flows.iter_mut().filter(|flow| flow.count > 0 && flow.key == key) {
            flow.deliver(write);
        }
        set_tos(packet, inner.tos, tos);
        room.copy_from_slice(vnet.as_bytes());
        write(&place[..VNET_LEN + inner.length]);
    }

    /// How many packets this one stands for, and their bytes: a TCP packet larger than the MTU will be cut up.
    #[must_use]
    #[inline]
    pub fn stands_for(&self, packet: &[u8], inner: &Inner) -> (u64, u64) {
        let one = (1, inner.length as u64);
        if self.mtu == 0 || inner.length <= self.mtu {
            return one;
        }
        let Some(packet) = packet.get(..inner.length) else { return one };
        let delivery = Delivery { packet, inner: *inner, tos: inner.tos };
        let segment = Segment::of(packet, &delivery).filter(|segment| segment.oversize(self.mtu));
        segment.map_or(one, |Segment { headers, payload, .. }| {
            let count = payload.div_ceil(self.mtu - headers);
            (count as u64, (payload + count * headers) as u64)
        })
    }

    /// The flow of a super-packet whose sender left everything to be done, and the header that says so.
    fn left_undone(&self, delivery: &Delivery<'_>) -> Option<(Key, VirtioNetHdr)> {
        if delivery.inner.length <= self.mtu {
            return None;
        }
        let packet = delivery.packet.get(..delivery.inner.length)?;
        let segment = Segment::of(packet, delivery)?;
        // One whose true checksum happens to be the same loses nothing: the kernel makes it anew.
        let undone = self.tso && segment.oversize(self.mtu) && segment.is_partial(packet);
        undone.then(|| (segment.key, segment.left_to_kernel(self.mtu)))
    }

    /// Hands on whatever is open.
    pub fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
        for flow in &mut self.flows {
            flow.deliver(write);
        }
    }

    /// Hands on what is open between these two hosts: a fragment or an unknown packet may belong to any flow of theirs.
    fn flush_pair(&mut self, inner: &Inner, write: &mut impl FnMut(&[u8])) {
        for flow in &mut self.flows {
            if flow.count > 0 && flow.key.source == inner.source && flow.key.destination == inner.destination
            {
                flow.deliver(write);
            }
        }
    }

    /// Hands on one packet alone.
    fn pass(
        &mut self,
        packet: &[u8],
        delivery: &Delivery<'_>,
        segment: Option<&Segment>,
        write: &mut impl FnMut(&[u8]),
    ) {
        let frame = &mut self.single[..VNET_LEN + packet.len()];
        let (vnet, copy) = frame.split_at_mut(VNET_LEN);
        let repair = match segment {
            None => {
                copy.copy_from_slice(packet);
                None
            }
            Some(segment) => {
                let worth_it = match segment.copy(packet, copy).is_valid() {
                    true => segment.oversize(self.mtu),
                    false => segment.is_partial(packet),
                };
                worth_it.then(|| segment.left_to_kernel(self.mtu))
            }
        };
        set_tos(copy, delivery.inner.tos, delivery.tos);
        vnet.copy_from_slice(repair.unwrap_or_default().as_bytes());
        let (Some(repair), Some(segment)) = (repair, segment) else { return write(frame) };
        segment.make_partial(copy);
        if repair.gso_type == VirtioNetHdr::GSO_NONE || self.tso {
            return write(frame);
        }
        // The frame was just made from a checked packet, so cutting it up cannot fail.
        let _ = split(frame, write);
    }
}

enum Appended {
    Open,
    Full,
    No,
}

/// One super-packet in the making.
#[derive(Debug)]
struct Flow {
    /// Virtio-net header and packet.
    frame: Vec<u8>,
    /// Bytes of the packet.
    length: usize,
    /// Segments in it; 0 = not in use.
    count: usize,
    /// When it was opened.
    opened: u64,
    key: Key,
    transport: usize,
    headers: usize,
    /// Payload bytes of each segment but the last.
    size: usize,
    next_sequence: u32,
}

impl Flow {
    fn new() -> Self {
        let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        Self {
            frame: vec![0; VNET_LEN + PACKET_MAX],
            length: 0,
            count: 0,
            opened: 0,
            key: Key { ports: (0, 0), protocol: 0, source: nowhere, destination: nowhere },
            transport: 0,
            headers: 0,
            size: 0,
            next_sequence: 0,
        }
    }

    /// Starts a super-packet with a segment, unless one of its checksums is wrong or missing.
    fn open(&mut self, segment: &Segment, packet: &[u8], clock: u64) -> bool {
        if !segment.has_checksums(packet) {
            return false;
        }
        let Some(copy) = self.frame.get_mut(VNET_LEN..VNET_LEN + packet.len()) else { return false };
        if !segment.copy(packet, copy).is_valid() {
            return false;
        }
        set_tos(copy, segment.tos.0, segment.tos.1);
        self.length = packet.len();
        self.count = 1;
        self.opened = clock;
        self.key = segment.key;
        self.transport = segment.transport;
        self.headers = segment.headers;
        self.size = segment.payload;
        self.next_sequence = segment.tcp.map_or(0, |tcp| tcp.sequence.wrapping_add(segment.payload as u32));
        true
    }

    /// Appends a segment of this flow if it continues what is there exactly.
    fn append(&mut self, segment: &Segment, packet: &[u8]) -> Appended {
        let length = self.length + segment.payload;
        if length > PACKET_MAX
            || segment.payload == 0
            || segment.payload > self.size
            || !self.continues(segment, packet)
        {
            return Appended::No;
        }
        let (headers, payload) = packet.split_at(segment.headers);
        let Some(copy) = self.frame.get_mut(VNET_LEN + self.length..VNET_LEN + length) else {
            return Appended::No;
        };
        let sum = copy_sum(payload, copy)
            .plus(segment.pseudo(packet.len() - segment.transport))
            .bytes(&headers[segment.transport..]);
        if !sum.is_valid() {
            return Appended::No;
        }
        self.length = length;
        self.count += 1;
        let mut last = segment.payload < self.size || length + self.size > PACKET_MAX;
        if let Some(tcp) = segment.tcp {
            self.next_sequence = self.next_sequence.wrapping_add(segment.payload as u32);
            if tcp.flags & PSH != 0 {
                self.frame[VNET_LEN + self.transport + 13] |= PSH as u8;
                last = true;
            }
        } else {
            last |= self.count == UDP_SEGMENTS_MAX;
        }
        if last { Appended::Full } else { Appended::Open }
    }

    /// Whether headers differ from the first segment's only as those of the next segment would.
    fn continues(&self, segment: &Segment, packet: &[u8]) -> bool {
        if segment.headers != self.headers || !segment.plain || !segment.has_checksums(packet) {
            return false;
        }
        let first = &self.frame[VNET_LEN..VNET_LEN + self.headers];
        let (first_ip, first_l4) = first.split_at(self.transport);
        let (ip, rest) = packet.split_at(self.transport);
        let same_ip = if segment.v4 {
            self.continues_v4(first_ip, ip, segment.tos.1)
        } else {
            continues_v6(first_ip, ip, segment.tos)
        };
        let Some(tcp) = segment.tcp else { return same_ip };
        let l4 = &rest[..segment.headers - segment.transport];
        let first_flags = u16::from_be_bytes([first_l4[12], first_l4[13]]);
        same_ip
            && tcp.sequence == self.next_sequence
            && (tcp.flags & !PSH) == first_flags
            && l4[8..12] == first_l4[8..12]
            && l4[14..16] == first_l4[14..16]
            && l4[18..] == first_l4[18..]
    }

    fn continues_v4(&self, first: &[u8], ip: &[u8], tos: u8) -> bool {
        let (Some(first), Some(ip)) = (first.first_chunk::<20>(), ip.first_chunk::<20>()) else {
            return false;
        };
        let expected = u16::from_be_bytes([first[4], first[5]]).wrapping_add(self.count as u16);
        let dont_fragment = ip[6] & 0x40 != 0;
        // The identification of a packet that cannot be fragmented means nothing (RFC 6864, section 4.1).
        let same_id = dont_fragment || u16::from_be_bytes([ip[4], ip[5]]) == expected;
        same_id && tos == first[1] && ip[6..9] == first[6..9]
    }

    /// Hands on what is here, if anything.
    fn deliver(&mut self, write: &mut impl FnMut(&[u8])) {
        if self.count == 0 {
            return;
        }
        let mut vnet = VirtioNetHdr::default();
        if self.count > 1 {
            vnet = self.seal();
        }
        self.count = 0;
        self.frame[..VNET_LEN].copy_from_slice(vnet.as_bytes());
        write(&self.frame[..VNET_LEN + self.length]);
    }

    /// Makes the headers those of a super-packet.
    fn seal(&mut self) -> VirtioNetHdr {
        let Key { source, destination, protocol, .. } = self.key;
        let packet = &mut self.frame[VNET_LEN..VNET_LEN + self.length];
        let (ip, l4) = packet.split_at_mut(self.transport);
        let l4_len = l4.len();
        let gso_tcp = if source.is_ipv4() {
            ip[2..4].copy_from_slice(&(self.length as u16).to_be_bytes());
            ip[10..12].fill(0);
            let checksum = Sum::default().bytes(ip).checksum();
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            VirtioNetHdr::GSO_TCPV4
        } else {
            ip[4..6].copy_from_slice(&((self.length - self.transport) as u16).to_be_bytes());
            VirtioNetHdr::GSO_TCPV6
        };
        let partial = pseudo_header(source, destination, protocol, l4_len).fold().to_be_bytes();
        let (gso_type, csum_offset) = if protocol == TCP {
            l4[16..18].copy_from_slice(&partial);
            (gso_tcp, 16)
        } else {
            l4[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
            l4[6..8].copy_from_slice(&partial);
            (VirtioNetHdr::GSO_UDP_L4, 6)
        };
        VirtioNetHdr {
            flags: VirtioNetHdr::NEEDS_CSUM,
            gso_type,
            hdr_len: U16::new(self.headers as u16),
            gso_size: U16::new(self.size as u16),
            csum_start: U16::new(self.transport as u16),
            csum_offset: U16::new(csum_offset),
        }
    }
}

/// IPv6: version, traffic class, flow label, next header and hop limit.
fn continues_v6(first: &[u8], ip: &[u8], (old, new): (u8, u8)) -> bool {
    let (Some(first), Some(ip)) = (first.first_chunk::<8>(), ip.first_chunk::<8>()) else { return false };
    let mut start = [ip[0], ip[1], ip[2], ip[3]];
    set_traffic_class(&mut start, old, new);
    start == first[..4] && ip[6..8] == first[6..8]
}

#[cfg(test)]
mod tests;
