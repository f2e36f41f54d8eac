//! The verdict on each packet: encapsulation on egress, the checks and decapsulation on ingress.
//!
//! **Egress.** A frame from the TUN device is one IP packet, perhaps a super-packet. Its inner destination names the
//! path; it is cut up straight into a buffer of equal datagrams, which is what one `UDP_SEGMENT` send wants. Several
//! buffers are open, one per peer and source port, so that flows that take turns do not spoil one another's batches. A
//! flow always has one peer and one port, so its order is kept.
//!
//! **Ingress.** A datagram is checked from the outside in; the first check that fails names the reason. What
//! passes goes through [`Coalescer`] to the TUN device.
//!
//! **ECN** follows RFC 6040 in normal mode: the outer header copies the inner field, and decapsulation combines
//! both (section 4.2). DSCP stays inside.
//!
//! **The tunnel inside the tunnel.** A packet to the tunnel's own UDP port at a node, rather than at a pod, would go from
//! the TUN device to our own socket, past the check of the outer source, or round in circles. It is dropped in
//! both directions. Between pods it is their own business: a pod may run a VXLAN of its own.

use std::net::IpAddr;

use wire::offload::{Coalescer, Delivery, OffloadError, Segments, finish};
use wire::packet::{
    ENCAP_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Encap, EncapError, EncapHeader, Inner, Malformed, UDP,
    VirtioNetHdr,
};

use super::table::{Path, Table};

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

/// Batches open at a time.
const BATCHES: usize = 8;

/// ECN codepoints (RFC 3168, section 5).
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $meaning:literal;)*) => {
        /// Why a packet was dropped. Closed: every dropped packet increments exactly one of these.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Name in metrics and status: snake_case.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// One sentence for an operator: what it means and what to look at.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Egress: no peer has this destination.
    NoPeer = "no_peer",
        "no known node owns the destination address: is its Node object there and not refused?";
    /// Egress: the frame is not an IP packet.
    EgressNotIp = "egress_not_ip",
        "the kernel routed something into the tunnel that is neither IPv4 nor IPv6";
    /// Egress: lengths or offload header contradict each other.
    EgressMalformed = "egress_malformed",
        "a packet to be sent has headers that contradict its length";
    /// Egress: the packet does not fit a datagram.
    EgressTooBig = "egress_too_big",
        "a packet to be sent does not fit a UDP datagram: the tunnel device's MTU is far too large";
    /// Egress: multicast or broadcast, which the overlay does not carry.
    EgressNotUnicast = "egress_not_unicast",
        "multicast and broadcast are not carried; a few from the node itself are normal";
    /// Egress: the destination is in our own pod CIDRs.
    EgressOwnDestination = "egress_own_destination",
        "a packet for a pod of this node came to the tunnel: the pod is gone or its route is missing";
    /// Egress: a packet of the tunnel would enter the tunnel.
    EgressVxlanInVxlan = "egress_vxlan_in_vxlan",
        "a tunnel packet was routed into the tunnel: does a pod CIDR cover the nodes' addresses?";
    /// Ingress: too short for the headers.
    Truncated = "truncated",
        "a datagram on the tunnel port is too short to be VXLAN: something else sends there";
    /// Ingress: flags or reserved bits are not those of plain VXLAN.
    BadFlags = "bad_flags",
        "a datagram on the tunnel port is not plain VXLAN: another protocol, or an extension (GBP, GPE) is on at the sender";
    /// Ingress: another VNI.
    WrongVni = "wrong_vni",
        "VXLAN with another VNI: all nodes must agree on it";
    /// Ingress: the outer source is not a peer.
    UnknownSource = "unknown_source",
        "the sender is no known node: its Node object is missing or refused, or it sends from another address than it announces";
    /// Ingress: the inner Ethernet destination is multicast or broadcast.
    InnerBroadcast = "inner_broadcast",
        "a broadcast or multicast frame (ARP, neighbour discovery): a peer floods instead of using static entries";
    /// Ingress: the inner Ethernet destination is another machine's.
    NotOurMac = "not_our_mac",
        "the inner Ethernet address is not ours: the peer holds old data of this node, and corrects itself soon";
    /// Ingress: the inner frame is not IPv4 or IPv6.
    NotIp = "not_ip",
        "the inner frame is neither IPv4 nor IPv6";
    /// Ingress: inner lengths contradict each other.
    MalformedInner = "malformed_inner",
        "the inner packet's headers contradict its length: truncated on the way or a faulty sender";
    /// Ingress: the inner source is not behind that peer.
    SpoofedSource = "spoofed_source",
        "the inner source address does not belong to the node that sent it: spoofing, or traffic that the sender failed to masquerade";
    /// Ingress: the inner destination is multicast or broadcast.
    NotUnicast = "not_unicast",
        "the inner destination is multicast or broadcast, which the overlay does not carry";
    /// Ingress: a packet of the tunnel inside the tunnel.
    VxlanInVxlan = "vxlan_in_vxlan",
        "a tunnel packet inside the tunnel, addressed to this node: a loop or an attempt to get round the source check";
    /// Ingress: the inner destination is not ours.
    NotOurs = "not_ours",
        "the inner destination is not in this node's pod CIDRs: the peer holds old data of this node";
    /// Ingress: congestion was marked on a packet that cannot carry the mark (RFC 6040, section 4.2).
    EcnNotCapable = "ecn_not_capable",
        "a router marked congestion on a tunnel packet whose inner packet cannot carry the mark: dropping is the signal";
    /// The shell received only a part of a datagram.
    ReceiveTruncated = "receive_truncated",
        "a received datagram did not fit the buffer";
    /// The socket's buffer is full.
    SendBufferFull = "send_buffer_full",
        "the uplink is slower than what is sent: the socket's buffer is full";
    /// The kernel could not send: no route, unreachable, refused.
    SendFailed = "send_failed",
        "the kernel could not send to the peer: look at the route to its underlay address and at local firewalls";
    /// The datagram exceeds the path's MTU.
    SendTooBig = "send_too_big",
        "a datagram exceeds the path's MTU and could not go out in fragments either";
    /// The TUN device could not take the packet now.
    TunFull = "tun_full",
        "the kernel had no memory or no room for a packet that arrived";
    /// The TUN device did not take the packet.
    TunWriteFailed = "tun_write_failed",
        "the tunnel device refused a packet that arrived: is it up, and has the node memory left?";
}

/// Equal datagrams (the last may be shorter) for one peer: one `UDP_SEGMENT` send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams<'a> {
    /// Underlay address of the peer.
    pub to: IpAddr,
    /// Which source port, below [`SOURCE_PORTS`].
    pub port_slot: usize,
    /// Bytes of each datagram but maybe the last.
    pub segment: usize,
    /// ECN bits of the outer header.
    pub ecn: u8,
    /// The datagrams, back to back.
    pub bytes: &'a [u8],
    /// How many there are.
    pub packets: u64,
}

/// Encapsulation state of one worker.
#[derive(Debug)]
pub struct Egress {
    worker: usize,
    port: u16,
    segments_max: usize,
    batches: Vec<Batch>,
    clock: u64,
}

impl Egress {
    /// Empty state of this worker.
    #[must_use]
    pub fn new(worker: usize) -> Self {
        Self {
            worker,
            port: TUNNEL_PORT,
            segments_max: SEGMENTS_DEFAULT,
            batches: (0..BATCHES).map(|_| Batch::new()).collect(),
            clock: 0,
        }
    }

    /// Tells the tunnel's UDP port (default 8472): packets to it do not enter the tunnel.
    pub fn set_tunnel_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Tells how many datagrams one send may hold, 1 to [`SEGMENTS_MAX`] (default [`SEGMENTS_DEFAULT`]).
    pub fn set_segments_max(&mut self, segments: usize) {
        self.segments_max = segments.clamp(1, SEGMENTS_MAX);
    }

    /// Takes one frame as read from the TUN device: virtio-net header and IP packet. `send` gets full batches;
    /// the rest stays until more comes or [`Self::flush`].
    ///
    /// # Errors
    /// Why the packet was dropped; the caller counts it.
    #[inline]
    pub fn push(
        &mut self,
        table: &Table,
        now_ms: u64,
        frame: &[u8],
        send: &mut impl FnMut(Datagrams<'_>),
    ) -> Result<(), DropReason> {
        let (vnet, packet) = VirtioNetHdr::split(frame).ok_or(DropReason::EgressMalformed)?;
        let inner = Inner::parse(packet).map_err(|error| match error {
            Malformed::NotIp => DropReason::EgressNotIp,
            Malformed::Lengths => DropReason::EgressMalformed,
        })?;
        let path = self.path(table, &inner)?;
        let header = if inner.is_v4() { &path.header_v4 } else { &path.header_v6 };
        let key = BatchKey {
            to: path.underlay,
            // The hash's highest bits are its best.
            port_slot: (inner.flow_hash() >> 60) as usize % SOURCE_PORTS,
            ecn: inner.ecn(),
        };
        let segments = Segments::new(&vnet, packet, &inner).map_err(|_| DropReason::EgressMalformed)?;
        let limit = self.segments_max;
        let (mut packets, mut bytes) = (0, 0);
        match segments {
            None => {
                let batch =
                    self.batch(&key, ENCAP_LEN + inner.length, send).ok_or(DropReason::EgressTooBig)?;
                let length = batch
                    .append(header, |out| finish(&vnet, packet, &inner, out))
                    .map_err(|_| DropReason::EgressMalformed)?;
                batch.send_if_full(limit, send);
                (packets, bytes) = (1, length as u64);
            }
            Some(segments) => {
                // The first is the longest.
                if ENCAP_LEN + segments.length(0) > BATCH_BYTES {
                    return Err(DropReason::EgressTooBig);
                }
                for index in 0..segments.count() {
                    let Some(batch) = self.batch(&key, ENCAP_LEN + segments.length(index), send) else {
                        break;
                    };
                    let emit = |out: &mut [u8]| segments.emit(index, out).ok_or(OffloadError::Kind);
                    let Ok(length) = batch.append(header, emit) else { break };
                    batch.send_if_full(limit, send);
                    packets += 1;
                    bytes += length as u64;
                }
            }
        }
        if let Some(lane) = path.counters.tx(self.worker) {
            lane.add(packets, bytes, now_ms);
        }
        Ok(())
    }

    /// Sends whatever is waiting.
    pub fn flush(&mut self, send: &mut impl FnMut(Datagrams<'_>)) {
        for batch in &mut self.batches {
            batch.send(send);
        }
    }

    #[inline]
    fn path<'t>(&self, table: &'t Table, inner: &Inner) -> Result<&'t Path, DropReason> {
        if !is_unicast(inner.destination) {
            return Err(DropReason::EgressNotUnicast);
        }
        let to_tunnel_port = is_to_port(inner, self.port);
        if to_tunnel_port && (table.is_own_underlay(inner.source) || table.from(inner.destination).is_some())
        {
            return Err(DropReason::EgressVxlanInVxlan);
        }
        if table.is_own(inner.destination) {
            return Err(DropReason::EgressOwnDestination);
        }
        let path = table.to(inner.destination).ok_or(DropReason::NoPeer)?;
        if to_tunnel_port && path.is_tunnel_address(inner.destination) {
            return Err(DropReason::EgressVxlanInVxlan);
        }
        Ok(path)
    }

    /// The batch that takes a datagram of this length; what stands in the way is sent.
    #[inline]
    fn batch(
        &mut self,
        key: &BatchKey,
        length: usize,
        send: &mut impl FnMut(Datagrams<'_>),
    ) -> Option<&mut Batch> {
        if length > BATCH_BYTES {
            return None;
        }
        let open = |batch: &Batch| {
            batch.packets > 0 && batch.key.to == key.to && batch.key.port_slot == key.port_slot
        };
        if let Some(at) = self.batches.iter().position(open) {
            let batch = &mut self.batches[at];
            if batch.key.ecn != key.ecn || length > batch.segment || batch.length + length > BATCH_BYTES {
                batch.send(send);
                batch.start(*key, length, self.clock);
            }
            return Some(batch);
        }
        self.clock += 1;
        let oldest =
            self.batches.iter_mut().min_by_key(|batch| if batch.packets == 0 { 0 } else { batch.opened })?;
        oldest.send(send);
        oldest.start(*key, length, self.clock);
        Some(oldest)
    }
}

/// What all datagrams of a batch share; size aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BatchKey {
    to: IpAddr,
    port_slot: usize,
    ecn: u8,
}

/// Datagrams waiting to be sent at once.
#[derive(Debug)]
struct Batch {
    key: BatchKey,
    segment: usize,
    bytes: Vec<u8>,
    length: usize,
    packets: usize,
    opened: u64,
}

impl Batch {
    fn new() -> Self {
        let key = BatchKey { to: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port_slot: 0, ecn: NOT_ECT };
        Self { key, segment: 0, bytes: vec![0; BATCH_BYTES], length: 0, packets: 0, opened: 0 }
    }

    fn start(&mut self, key: BatchKey, segment: usize, clock: u64) {
        self.key = key;
        self.segment = segment;
        self.opened = clock;
    }

    /// Appends a header and what `emit` writes behind it; nothing if that fails.
    #[inline]
    fn append(
        &mut self,
        header: &EncapHeader,
        emit: impl FnOnce(&mut [u8]) -> Result<usize, OffloadError>,
    ) -> Result<usize, OffloadError> {
        let free = self.bytes.get_mut(self.length..).ok_or(OffloadError::Truncated)?;
        let (head, body) = free.split_first_chunk_mut::<ENCAP_LEN>().ok_or(OffloadError::Truncated)?;
        let length = emit(body)?;
        *head = header.0;
        self.length += ENCAP_LEN + length;
        self.packets += 1;
        Ok(length)
    }

    /// Sends if nothing more fits: the last was short, or the limits are reached.
    #[inline]
    fn send_if_full(&mut self, segments_max: usize, send: &mut impl FnMut(Datagrams<'_>)) {
        let short = self.length < self.packets * self.segment;
        if short || self.packets >= segments_max || self.length + self.segment > BATCH_BYTES {
            self.send(send);
        }
    }

    #[inline]
    fn send(&mut self, send: &mut impl FnMut(Datagrams<'_>)) {
        if self.packets == 0 {
            return;
        }
        send(Datagrams {
            to: self.key.to,
            port_slot: self.key.port_slot,
            segment: self.segment,
            ecn: self.key.ecn,
            bytes: &self.bytes[..self.length],
            packets: self.packets as u64,
        });
        self.length = 0;
        self.packets = 0;
    }
}

/// Decapsulation state of one worker.
#[derive(Debug)]
pub struct Ingress {
    worker: usize,
    port: u16,
    coalescer: Coalescer,
}

impl Ingress {
    /// Empty state of this worker.
    #[must_use]
    pub fn new(worker: usize) -> Self {
        Self { worker, port: TUNNEL_PORT, coalescer: Coalescer::default() }
    }

    /// Tells the tunnel's UDP port (default 8472): packets to it do not leave the tunnel.
    pub fn set_tunnel_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Whether TCP super-packets may go to the TUN device (default yes).
    pub fn set_tso(&mut self, on: bool) {
        self.coalescer.set_tso(on);
    }

    /// Whether UDP super-packets may go to the TUN device (default yes).
    pub fn set_uso(&mut self, on: bool) {
        self.coalescer.set_uso(on);
    }

    /// Inner MTU in bytes: larger TCP packets, which a peer's kernel hands out when its link segments for it, are
    /// given a segment size. 0 (the default) means unknown.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.coalescer.set_mtu(mtu);
    }

    /// Takes one UDP payload that came from this outer source with these outer ECN bits. `write` gets frames for the
    /// TUN device, at once or later.
    ///
    /// # Errors
    /// Why the packet was dropped; the caller counts it.
    #[inline]
    pub fn push(
        &mut self,
        table: &Table,
        now_ms: u64,
        from: IpAddr,
        ecn: u8,
        datagram: &[u8],
        write: &mut impl FnMut(&[u8]),
    ) -> Result<(), DropReason> {
        let (path, inner, packet) = self.admit(table, from, datagram)?;
        let tos = combine_ecn(inner.tos, ecn).ok_or(DropReason::EcnNotCapable)?;
        if let Some(lane) = path.counters.rx(self.worker) {
            lane.add(1, inner.length as u64, now_ms);
        }
        self.coalescer.push(&Delivery { packet, inner, tos }, write);
        Ok(())
    }

    /// Hands on whatever is waiting.
    pub fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
        self.coalescer.flush(write);
    }

    /// The checks, from the outside in.
    #[inline]
    fn admit<'t, 'd>(
        &self,
        table: &'t Table,
        from: IpAddr,
        datagram: &'d [u8],
    ) -> Result<(&'t Path, Inner, &'d [u8]), DropReason> {
        let encap = Encap::parse(datagram).map_err(|error| match error {
            EncapError::Truncated => DropReason::Truncated,
            EncapError::Flags => DropReason::BadFlags,
        })?;
        if encap.vni != table.vni() {
            return Err(DropReason::WrongVni);
        }
        let path = table.from(from).ok_or(DropReason::UnknownSource)?;
        if encap.destination != table.mac() {
            let group = encap.destination.0[0] & 1 != 0;
            return Err(if group { DropReason::InnerBroadcast } else { DropReason::NotOurMac });
        }
        let version = match encap.ethertype {
            ETHERTYPE_IPV4 => 4,
            ETHERTYPE_IPV6 => 6,
            _ => return Err(DropReason::NotIp),
        };
        if encap.payload.first().is_some_and(|byte| byte >> 4 != version) {
            return Err(DropReason::MalformedInner);
        }
        let inner = Inner::parse(encap.payload).map_err(|_| DropReason::MalformedInner)?;
        if !path.owns(inner.source) {
            return Err(DropReason::SpoofedSource);
        }
        if !is_unicast(inner.destination) {
            return Err(DropReason::NotUnicast);
        }
        let own = table.is_own(inner.destination);
        let to_node = !own || table.is_own_tunnel_address(inner.destination);
        if to_node && is_to_port(&inner, self.port) {
            return Err(DropReason::VxlanInVxlan);
        }
        if !own {
            return Err(DropReason::NotOurs);
        }
        Ok((path, inner, encap.payload))
    }
}

/// Turns a frame that the TUN device refuses as a super-packet into finished plain packets, each with an empty
/// virtio-net header. A frame that cannot be read gives nothing.
pub fn split(frame: &[u8], write: &mut impl FnMut(&[u8])) {
    let _ = wire::offload::split(frame, write);
}

/// The inner type of service after decapsulation in normal mode; `None` means drop (RFC 6040, section 4.2).
#[inline]
fn combine_ecn(tos: u8, outer: u8) -> Option<u8> {
    let ecn = match (tos & 3, outer & 3) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (CE, _) | (_, CE) => CE,
        (ECT_1, _) | (ECT_0, ECT_1) => ECT_1,
        _ => ECT_0,
    };
    Some(tos & !3 | ecn)
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
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use wire::offload::{Sum, pseudo_header};
    use wire::packet::{MacAddr, VNET_LEN};

    use super::*;
    use crate::core::cluster::{Own, Peer, PeerPath};
    use crate::core::table::{CounterBook, PeerTraffic};

    const VNI: u32 = 1;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Node 1 to 9: pods in 10.244.n.0/24 and fd00:n::/64, underlay 192.0.2.n.
    fn own(n: u8) -> Own {
        Own {
            name: format!("node-{n}"),
            pod_cidrs: cidrs(n),
            underlay_v4: Some([192, 0, 2, n].into()),
            underlay_v6: None,
            mac: MacAddr([2, 0, 0, 0, 0, n]),
        }
    }

    fn cidrs(n: u8) -> Vec<ipnet::IpNet> {
        [format!("10.244.{n}.0/24"), format!("fd00:{n}::/64")]
            .map(|cidr| cidr.parse().expect("a prefix"))
            .to_vec()
    }

    fn table(n: u8) -> (Table, CounterBook) {
        let peer = |n: u8| {
            let path = PeerPath {
                underlay: [192, 0, 2, n].into(),
                mac: MacAddr([2, 0, 0, 0, 0, n]),
                pod_cidrs: cidrs(n),
            };
            Peer { name: format!("node-{n}"), paths: vec![path] }
        };
        let peers: Vec<Peer> = (1..=9).filter(|other| *other != n).map(peer).collect();
        let mut book = CounterBook::default();
        (Table::build(&own(n), &peers, VNI, 1, &mut book), book)
    }

    /// An IP packet with right header checksum; UDP or TCP with right checksum too.
    fn packet(source: &str, destination: &str, protocol: u8, l4: &[u8]) -> Vec<u8> {
        let (source, destination) = (ip(source), ip(destination));
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let [a, b] = (20 + l4.len() as u16).to_be_bytes();
                let mut header = vec![0x45, 0, a, b, 0, 1, 0x40, 0, 64, protocol, 0, 0];
                header.extend(source.octets());
                header.extend(destination.octets());
                let checksum = Sum::default().bytes(&header).checksum();
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [a, b] = (l4.len() as u16).to_be_bytes();
                let mut header = vec![0x60, 0, 0, 0, a, b, protocol, 64];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => panic!("one family"),
        };
        let start = packet.len();
        packet.extend(l4);
        let at = start + if protocol == UDP { 6 } else { 16 };
        if matches!(protocol, UDP | 6) {
            let sum = pseudo_header(source, destination, protocol, l4.len()).bytes(&packet[start..]);
            let checksum = sum.checksum();
            packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    fn udp(source: &str, destination: &str, port: u16, payload: &[u8]) -> Vec<u8> {
        udp_from(40_000, source, destination, port, payload)
    }

    fn udp_from(from: u16, source: &str, destination: &str, port: u16, payload: &[u8]) -> Vec<u8> {
        let length = 8 + payload.len() as u16;
        let mut l4: Vec<u8> = [from, port, length, 0].into_iter().flat_map(u16::to_be_bytes).collect();
        l4.extend(payload);
        packet(source, destination, UDP, &l4)
    }

    fn tcp(sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut l4 = vec![0x9c, 0x40, 0, 80];
        l4.extend(sequence.to_be_bytes());
        l4.extend([0, 0, 0, 9, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        l4.extend(payload);
        packet("10.244.1.5", "10.244.2.5", 6, &l4)
    }

    /// A TCP super-packet from node 1 to node 2 as the TUN device hands it out.
    fn tcp_super(sequence: u32, size: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = tcp(sequence, payload);
        let sum = pseudo_header(ip("10.244.1.5"), ip("10.244.2.5"), 6, packet.len() - 20).fold();
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        let [g0, g1] = size.to_le_bytes();
        [&[1, 1, 40, 0, g0, g1, 20, 0, 16, 0][..], &packet].concat()
    }

    fn frame(packet: &[u8]) -> Vec<u8> {
        [&[0; VNET_LEN], packet].concat()
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Sent {
        to: IpAddr,
        port_slot: usize,
        ecn: u8,
        datagrams: Vec<Vec<u8>>,
    }

    fn keep(sent: &mut Vec<Sent>) -> impl FnMut(Datagrams<'_>) {
        |batch| {
            let datagrams: Vec<_> = batch.bytes.chunks(batch.segment).map(<[u8]>::to_vec).collect();
            assert_eq!(datagrams.len() as u64, batch.packets);
            assert!(batch.bytes.len() <= BATCH_BYTES && datagrams.len() <= SEGMENTS_MAX);
            assert!(batch.port_slot < SOURCE_PORTS);
            sent.push(Sent { to: batch.to, port_slot: batch.port_slot, ecn: batch.ecn, datagrams });
        }
    }

    fn encap(frames: &[Vec<u8>]) -> Vec<Sent> {
        let (table, _book) = table(1);
        let mut sent = Vec::new();
        let mut egress = Egress::new(0);
        for frame in frames {
            assert_eq!(egress.push(&table, 0, frame, &mut keep(&mut sent)), Ok(()));
        }
        egress.flush(&mut keep(&mut sent));
        sent
    }

    fn refuse_egress(frame: &[u8]) -> DropReason {
        let (table, book) = table(1);
        let mut egress = Egress::new(0);
        let mut send = |_: Datagrams<'_>| panic!("a dropped packet must not be sent");
        let reason = egress.push(&table, 0, frame, &mut send).expect_err("a drop");
        egress.flush(&mut send);
        assert!(book.peers.values().all(|counters| counters.sum() == PeerTraffic::default()));
        reason
    }

    /// What node 2 makes of datagrams from node 1.
    fn decap(ecn: u8, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (table, _book) = table(2);
        let mut written = Vec::new();
        let mut ingress = Ingress::new(0);
        for datagram in datagrams {
            let mut write = |frame: &[u8]| written.push(frame.to_vec());
            assert_eq!(ingress.push(&table, 0, ip("192.0.2.1"), ecn, datagram, &mut write), Ok(()));
        }
        ingress.flush(&mut |frame| written.push(frame.to_vec()));
        written
    }

    fn refuse_ingress_from(from: &str, ecn: u8, datagram: &[u8]) -> DropReason {
        let (table, book) = table(2);
        let mut ingress = Ingress::new(0);
        let mut write = |_: &[u8]| panic!("a dropped packet must not reach the device");
        let reason = ingress.push(&table, 0, ip(from), ecn, datagram, &mut write).expect_err("a drop");
        ingress.flush(&mut write);
        assert!(book.peers.values().all(|counters| counters.sum() == PeerTraffic::default()));
        reason
    }

    fn refuse_ingress(datagram: &[u8]) -> DropReason {
        refuse_ingress_from("192.0.2.1", 0, datagram)
    }

    fn good() -> Vec<u8> {
        wrap(&udp("10.244.1.5", "10.244.2.5", 53, b"hello"))
    }

    /// A packet as node 1 would send it to node 2, whatever is in it.
    fn wrap(packet: &[u8]) -> Vec<u8> {
        let ethertype = if packet[0] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        let header = EncapHeader::new(VNI, own(2).mac, own(1).mac, ethertype);
        [&header.0[..], packet].concat()
    }

    #[test]
    fn names_are_snake_case_and_differ() {
        let names: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|c| c == b'_' || c.is_ascii_lowercase())));
        assert!(DropReason::ALL.iter().all(|reason| reason.meaning().len() > 20));
        assert!(DropReason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
    }

    #[test]
    fn a_packet_goes_to_the_peer_that_owns_its_destination() {
        for (source, destination) in
            [("10.244.1.5", "10.244.2.5"), ("fd00:1::5", "fd00:2::5"), ("10.244.1.0", "10.244.2.9")]
        {
            let packet = udp(source, destination, 53, b"hello");
            let sent = encap(&[frame(&packet)]);
            assert_eq!(sent.len(), 1);
            assert_eq!(sent[0].to, ip("192.0.2.2"));
            assert_eq!(sent[0].datagrams, [wrap(&packet)]);
            assert_eq!(decap(0, &sent[0].datagrams), [frame(&packet)]);
        }
    }

    #[test]
    fn a_super_packet_fills_one_send_and_its_rest_is_carried_on() {
        let (table, book) = table(1);
        let mut sent = Vec::new();
        let mut egress = Egress::new(0);
        let payload = vec![7; 47 * 1400];
        let frame = tcp_super(0, 1400, &payload[..46 * 1400]);
        egress.push(&table, 5, &frame, &mut keep(&mut sent)).expect("sent");
        assert_eq!(sent.iter().map(|batch| batch.datagrams.len()).collect::<Vec<_>>(), [44]);
        let next = tcp_super(46 * 1400, 1400, &payload[..3 * 1400]);
        egress.push(&table, 6, &next, &mut keep(&mut sent)).expect("sent");
        egress.flush(&mut keep(&mut sent));
        assert_eq!(sent.iter().map(|batch| batch.datagrams.len()).collect::<Vec<_>>(), [44, 5]);
        let tx = book.peers["node-2"].sum().tx;
        assert_eq!((tx.packets, tx.bytes, tx.last_ms), (49, 49 * 1440, Some(6)));
    }

    #[test]
    fn the_segment_limit_is_kept() {
        let (table, _book) = table(1);
        for limit in [1, 7, 64, 128, 500] {
            let mut sent = Vec::new();
            let mut egress = Egress::new(0);
            egress.set_segments_max(limit);
            egress.push(&table, 0, &tcp_super(0, 100, &[7; 30_000]), &mut keep(&mut sent)).expect("sent");
            egress.flush(&mut keep(&mut sent));
            let most = sent.iter().map(|batch| batch.datagrams.len()).max();
            assert_eq!(most, Some(limit.min(SEGMENTS_MAX)));
            assert_eq!(sent.iter().map(|batch| batch.datagrams.len()).sum::<usize>(), 300);
        }
    }

    #[test]
    fn a_short_datagram_ends_a_batch_and_a_longer_one_starts_another() {
        let sizes = [100, 100, 60, 100, 120, 120];
        let frames = sizes.map(|size| frame(&udp("10.244.1.5", "10.244.2.5", 53, &vec![1; size])));
        let sent = encap(&frames);
        let sizes: Vec<Vec<usize>> = sent
            .iter()
            .map(|batch| batch.datagrams.iter().map(|datagram| datagram.len() - 50).collect())
            .collect();
        assert_eq!(sizes, [vec![100, 100, 60], vec![100], vec![120, 120]]);
    }

    #[test]
    fn flows_that_take_turns_share_no_batch_and_spoil_none() {
        let frames: Vec<_> = (0..60)
            .map(|n| {
                frame(&udp_from(
                    1000 + n % 3,
                    "10.244.1.5",
                    &format!("10.244.{}.5", 2 + n % 3),
                    53,
                    &[n as u8; 40],
                ))
            })
            .collect();
        let sent = encap(&frames);
        assert_eq!(sent.len(), 3);
        assert!(sent.iter().all(|batch| batch.datagrams.len() == 20));
    }

    #[test]
    fn congestion_marks_are_copied_out_and_split_batches() {
        let marked = |tos: u8| {
            let mut packet = udp("10.244.1.5", "10.244.2.5", 53, b"hello");
            packet[1] = tos;
            packet[10..12].fill(0);
            let checksum = Sum::default().bytes(&packet[..20]).checksum();
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            packet
        };
        let sent = encap(&[0xb8, 0xba, 0xbb, 0xb9].map(|tos| frame(&marked(tos))));
        assert_eq!(sent.iter().map(|batch| batch.ecn).collect::<Vec<_>>(), [0, 2, 3, 1]);
    }

    #[test]
    fn congestion_marks_combine_by_rfc_6040() {
        // Figure 4: rows inner, columns outer Not-ECT, ECT(0), ECT(1), CE.
        let outer = [NOT_ECT, ECT_0, ECT_1, CE];
        let figure = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in figure {
            for (outer, expected) in outer.into_iter().zip(row) {
                let expected = expected.map(|ecn| 0xb8 | ecn);
                assert_eq!(combine_ecn(0xb8 | inner, outer), expected, "inner {inner} outer {outer}");
            }
        }
    }

    #[test]
    fn a_mark_is_put_on_the_inner_packet_with_its_checksum_kept_right() {
        let mut packet = udp("10.244.1.5", "10.244.2.5", 53, b"hello");
        packet[1] = 2;
        packet[10..12].fill(0);
        let checksum = Sum::default().bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        let written = decap(CE, &[wrap(&packet)]);
        let out = &written[0][VNET_LEN..];
        assert_eq!(out[1], 3);
        assert!(Sum::default().bytes(&out[..20]).is_valid());
        assert_eq!(out[20..], packet[20..]);
    }

    #[test]
    fn received_packets_are_counted_for_their_peer() {
        let (table, book) = table(2);
        let mut ingress = Ingress::new(0);
        ingress.push(&table, 9, ip("192.0.2.1"), 0, &good(), &mut |_| {}).expect("delivered");
        let rx = book.peers["node-1"].sum().rx;
        assert_eq!((rx.packets, rx.bytes, rx.last_ms), (1, 33, Some(9)));
    }

    #[test]
    fn ethernet_padding_is_cut_off() {
        let packet = udp("10.244.1.5", "10.244.2.5", 53, b"hi");
        assert_eq!(decap(0, &[[wrap(&packet), vec![0; 16]].concat()]), [frame(&packet)]);
    }

    #[test]
    fn egress_no_peer() {
        assert_eq!(refuse_egress(&frame(&udp("10.244.1.5", "10.99.0.1", 53, b""))), DropReason::NoPeer);
        assert_eq!(refuse_egress(&frame(&udp("fd00:1::5", "fd00:99::1", 53, b""))), DropReason::NoPeer);
    }

    #[test]
    fn egress_not_ip() {
        assert_eq!(refuse_egress(&frame(&[0x55; 40])), DropReason::EgressNotIp);
        assert_eq!(refuse_egress(&frame(&[])), DropReason::EgressNotIp);
    }

    #[test]
    fn egress_malformed() {
        let packet = udp("10.244.1.5", "10.244.2.5", 53, b"hello");
        assert_eq!(refuse_egress(&[0; 9]), DropReason::EgressMalformed);
        assert_eq!(refuse_egress(&frame(&packet[..30])), DropReason::EgressMalformed);
        let mut bad_offload = tcp_super(0, 100, &[1; 300]);
        bad_offload[1] = VirtioNetHdr::GSO_UDP_L4;
        assert_eq!(refuse_egress(&bad_offload), DropReason::EgressMalformed);
        let mut bad_checksum = frame(&packet);
        bad_checksum[0] = VirtioNetHdr::NEEDS_CSUM;
        bad_checksum[6] = 200;
        assert_eq!(refuse_egress(&bad_checksum), DropReason::EgressMalformed);
    }

    #[test]
    fn egress_too_big() {
        let packet = udp("10.244.1.5", "10.244.2.5", 53, &[1; 65_507]);
        assert_eq!(refuse_egress(&frame(&packet)), DropReason::EgressTooBig);
        assert_eq!(refuse_egress(&tcp_super(0, 65_495, &[1; 65_495])), DropReason::EgressTooBig);
        assert_eq!(encap(&[frame(&packet_of(BATCH_BYTES - ENCAP_LEN))]).len(), 1);
        assert_eq!(refuse_egress(&frame(&packet_of(BATCH_BYTES - ENCAP_LEN + 1))), DropReason::EgressTooBig);
    }

    fn packet_of(length: usize) -> Vec<u8> {
        udp("10.244.1.5", "10.244.2.5", 53, &vec![1; length - 28])
    }

    #[test]
    fn egress_not_unicast() {
        for destination in ["224.0.0.22", "255.255.255.255", "0.0.0.0"] {
            assert_eq!(
                refuse_egress(&frame(&udp("10.244.1.0", destination, 53, b""))),
                DropReason::EgressNotUnicast
            );
        }
        assert_eq!(refuse_egress(&frame(&udp("fd00:1::", "ff02::2", 53, b""))), DropReason::EgressNotUnicast);
    }

    #[test]
    fn egress_own_destination() {
        assert_eq!(
            refuse_egress(&frame(&udp("10.244.1.5", "10.244.1.77", 53, b""))),
            DropReason::EgressOwnDestination
        );
    }

    #[test]
    fn egress_vxlan_in_vxlan() {
        let reason = DropReason::EgressVxlanInVxlan;
        // Our own datagram, routed into the device.
        assert_eq!(refuse_egress(&frame(&udp("192.0.2.1", "10.244.2.5", 8472, b""))), reason);
        assert_eq!(refuse_egress(&frame(&udp("192.0.2.1", "192.0.2.2", 8472, b""))), reason);
        // Somebody aims at the peer's socket through the tunnel.
        assert_eq!(refuse_egress(&frame(&udp("10.244.1.5", "10.244.2.0", 8472, b""))), reason);
        // Between pods it is their own business.
        assert_eq!(encap(&[frame(&udp("10.244.1.5", "10.244.2.5", 8472, b""))]).len(), 1);
        assert_eq!(encap(&[frame(&udp("10.244.1.5", "10.244.2.0", 8473, b""))]).len(), 1);
    }

    #[test]
    fn ingress_truncated() {
        for length in 0..ENCAP_LEN {
            assert_eq!(refuse_ingress(&good()[..length]), DropReason::Truncated);
        }
    }

    #[test]
    fn ingress_bad_flags() {
        for (at, value) in [(0, 0), (0, 0x88), (1, 1), (7, 1)] {
            let mut datagram = good();
            datagram[at] = value;
            assert_eq!(refuse_ingress(&datagram), DropReason::BadFlags);
        }
    }

    #[test]
    fn ingress_wrong_vni() {
        let mut datagram = good();
        datagram[6] = 2;
        assert_eq!(refuse_ingress(&datagram), DropReason::WrongVni);
    }

    #[test]
    fn ingress_unknown_source() {
        assert_eq!(refuse_ingress_from("192.0.2.77", 0, &good()), DropReason::UnknownSource);
        assert_eq!(refuse_ingress_from("192.0.2.2", 0, &good()), DropReason::UnknownSource);
        assert_eq!(refuse_ingress_from("2001:db8::1", 0, &good()), DropReason::UnknownSource);
    }

    #[test]
    fn ingress_inner_broadcast() {
        let mut datagram = good();
        datagram[8..14].fill(0xff);
        assert_eq!(refuse_ingress(&datagram), DropReason::InnerBroadcast);
    }

    #[test]
    fn ingress_not_our_mac() {
        let mut datagram = good();
        datagram[13] = 3;
        assert_eq!(refuse_ingress(&datagram), DropReason::NotOurMac);
    }

    #[test]
    fn ingress_not_ip() {
        for ethertype in [[0x08, 0x06], [0x81, 0x00], [0x88, 0xcc]] {
            let mut datagram = good();
            datagram[20..22].copy_from_slice(&ethertype);
            assert_eq!(refuse_ingress(&datagram), DropReason::NotIp);
        }
    }

    #[test]
    fn ingress_malformed_inner() {
        let datagram = good();
        assert_eq!(refuse_ingress(&datagram[..datagram.len() - 1]), DropReason::MalformedInner);
        assert_eq!(refuse_ingress(&datagram[..ENCAP_LEN]), DropReason::MalformedInner);
        let mut other_family = good();
        other_family[20..22].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        assert_eq!(refuse_ingress(&other_family), DropReason::MalformedInner);
    }

    #[test]
    fn ingress_spoofed_source() {
        for source in ["10.244.3.5", "10.244.2.6", "192.0.2.1", "127.0.0.1"] {
            assert_eq!(refuse_ingress(&wrap(&udp(source, "10.244.2.5", 53, b""))), DropReason::SpoofedSource);
        }
        assert_eq!(refuse_ingress(&wrap(&udp("fd00:3::5", "fd00:2::5", 53, b""))), DropReason::SpoofedSource);
        assert_eq!(
            decap(0, &[wrap(&udp("10.244.1.0", "10.244.2.5", 53, b""))]).len(),
            1,
            "the tunnel address is the node"
        );
    }

    #[test]
    fn ingress_not_unicast() {
        for destination in ["224.0.0.1", "255.255.255.255", "0.0.0.0"] {
            assert_eq!(
                refuse_ingress(&wrap(&udp("10.244.1.5", destination, 53, b""))),
                DropReason::NotUnicast
            );
        }
        assert_eq!(refuse_ingress(&wrap(&udp("fd00:1::5", "ff02::1", 53, b""))), DropReason::NotUnicast);
    }

    #[test]
    fn ingress_vxlan_in_vxlan() {
        for destination in ["10.244.2.0", "192.0.2.2", "192.0.2.3"] {
            let datagram = wrap(&udp("10.244.1.5", destination, 8472, &good()));
            assert_eq!(refuse_ingress(&datagram), DropReason::VxlanInVxlan);
        }
        let between_pods = wrap(&udp("10.244.1.5", "10.244.2.5", 8472, &good()));
        assert_eq!(decap(0, &[between_pods]).len(), 1);
    }

    #[test]
    fn the_tunnel_port_can_be_told() {
        let ((sender, _), (table, _)) = (table(1), table(2));
        let mut ingress = Ingress::new(0);
        ingress.set_tunnel_port(4789);
        let datagram = wrap(&udp("10.244.1.5", "10.244.2.0", 4789, b""));
        let verdict = ingress.push(&table, 0, ip("192.0.2.1"), 0, &datagram, &mut |_| {});
        assert_eq!(verdict, Err(DropReason::VxlanInVxlan));
        let mut egress = Egress::new(0);
        egress.set_tunnel_port(4789);
        let frame = frame(&udp("10.244.1.5", "10.244.2.0", 4789, b""));
        assert_eq!(egress.push(&sender, 0, &frame, &mut |_| {}), Err(DropReason::EgressVxlanInVxlan));
    }

    #[test]
    fn ingress_not_ours() {
        assert_eq!(refuse_ingress(&wrap(&udp("10.244.1.5", "10.244.3.5", 53, b""))), DropReason::NotOurs);
        assert_eq!(refuse_ingress(&wrap(&udp("10.244.1.5", "8.8.8.8", 53, b""))), DropReason::NotOurs);
    }

    #[test]
    fn ingress_ecn_not_capable() {
        assert_eq!(refuse_ingress_from("192.0.2.1", CE, &good()), DropReason::EcnNotCapable);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever node 1 sends arrives at node 2 as the same packets, each flow in order.
        #[test]
        fn encapsulation_and_decapsulation_are_inverse(
            sends in proptest::collection::vec((0_u8..4, 1_usize..4000, 500_u16..1500), 1..40),
        ) {
            let mut frames = Vec::new();
            let mut sequence = 0;
            for (kind, length, size) in sends {
                let payload: Vec<u8> = (0..length).map(|at| at as u8 ^ kind).collect();
                frames.push(match kind {
                    0 => {
                        sequence += length as u32;
                        tcp_super(sequence - length as u32, size, &payload)
                    }
                    1 => frame(&udp_from(7000 + size % 4, "fd00:1::5", "fd00:2::5", 53, &payload[..length.min(1400)])),
                    2 => frame(&packet("10.244.1.5", "10.244.2.5", 1, &payload[..length.min(1400)])),
                    _ => frame(&udp_from(7000 + size % 4, "10.244.1.5", "10.244.2.5", 53, &payload[..length.min(1400)])),
                });
            }
            let mut written = Vec::new();
            for batch in encap(&frames) {
                written.extend(decap(batch.ecn, &batch.datagrams));
            }
            prop_assert_eq!(by_flow(&written), by_flow(&frames));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            inputs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..150), any::<bool>()), 1..30),
            ecn: u8,
        ) {
            let (table, _book) = table(2);
            let (mut egress, mut ingress) = (Egress::new(0), Ingress::new(7));
            ingress.set_mtu(60);
            for (input, real) in inputs {
                let mut datagram = input.clone();
                if real {
                    datagram = good();
                    for pair in input.chunks_exact(2).take(4) {
                        let at = usize::from(pair[0]) % datagram.len();
                        datagram[at] = pair[1];
                    }
                }
                let _ = ingress.push(&table, 0, ip("192.0.2.1"), ecn, &datagram, &mut |_| {});
                let _ = egress.push(&table, 0, &input, &mut |_| {});
                let _ = egress.push(&table, 0, &frame(datagram.get(ENCAP_LEN..).unwrap_or_default()), &mut |_| {});
                split(&input, &mut |_| {});
            }
            ingress.flush(&mut |_| {});
            egress.flush(&mut |_| {});
        }
    }

    type FlowKey = (IpAddr, u8, Option<(u16, u16)>);

    /// The plain packets of each flow, in order, without what an unfragmentable packet's identification says.
    fn by_flow(frames: &[Vec<u8>]) -> BTreeMap<FlowKey, Vec<Vec<u8>>> {
        let mut flows: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
        for frame in frames {
            split(frame, &mut |frame| {
                let mut packet = frame[VNET_LEN..].to_vec();
                let inner = Inner::parse(&packet).expect("sound");
                if inner.is_v4() {
                    packet[4..6].fill(0);
                    packet[10..12].fill(0);
                }
                flows.entry((inner.source, inner.protocol, inner.ports)).or_default().push(packet);
            });
        }
        flows
    }
}
