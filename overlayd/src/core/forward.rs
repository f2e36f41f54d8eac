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
    NoPeer = "no_peer", "no known node owns the destination address: is its Node object there and not refused?";
    /// Egress: the frame is not an IP packet.
    EgressNotIp = "egress_not_ip", "the kernel routed something into the tunnel that is neither IPv4 nor IPv6";
    /// Egress: lengths or offload header contradict each other.
    EgressMalformed = "egress_malformed", "a packet to be sent has headers that contradict its length";
    /// Egress: the packet does not fit a datagram.
    EgressTooBig = "egress_too_big", "a packet to be sent does not fit a UDP datagram: the tunnel device's MTU is far too large";
    /// Egress: multicast or broadcast, which the overlay does not carry.
    EgressNotUnicast = "egress_not_unicast", "multicast and broadcast are not carried; a few from the node itself are normal";
    /// Egress: the destination is in our own pod CIDRs.
    EgressOwnDestination = "egress_own_destination", "a packet for a pod of this node came to the tunnel: the pod is gone or its route is missing";
    /// Egress: a packet of the tunnel would enter the tunnel.
    EgressVxlanInVxlan = "egress_vxlan_in_vxlan", "a tunnel packet was routed into the tunnel: does a pod CIDR cover the nodes' addresses?";
    /// Ingress: too short for the headers.
    Truncated = "truncated", "a datagram on the tunnel port is too short to be VXLAN: something else sends there";
    /// Ingress: flags or reserved bits are not those of plain VXLAN.
    BadFlags = "bad_flags", "a datagram on the tunnel port is not plain VXLAN: another protocol, or an extension (GBP, GPE) is on at the sender";
    /// Ingress: another VNI.
    WrongVni = "wrong_vni", "VXLAN with another VNI: all nodes must agree on it";
    /// Ingress: the outer source is not a peer.
    UnknownSource = "unknown_source", "the sender is no known node: its Node object is missing or refused, or it sends from another address than it announces";
    /// Ingress: the inner Ethernet destination is multicast or broadcast.
    InnerBroadcast = "inner_broadcast", "a broadcast or multicast frame (ARP, neighbour discovery): a peer floods instead of using static entries";
    /// Ingress: the inner Ethernet destination is another machine's.
    NotOurMac = "not_our_mac", "the inner Ethernet address is not ours: the peer holds old data of this node, and corrects itself soon";
    /// Ingress: the inner frame is not IPv4 or IPv6.
    NotIp = "not_ip", "the inner frame is neither IPv4 nor IPv6";
    /// Ingress: inner lengths contradict each other.
    MalformedInner = "malformed_inner", "the inner packet's headers contradict its length: truncated on the way or a faulty sender";
    /// Ingress: the inner source is not behind that peer.
    SpoofedSource = "spoofed_source", "the inner source address does not belong to the node that sent it: spoofing, or traffic that the sender failed to masquerade";
    /// Ingress: the inner destination is multicast or broadcast.
    NotUnicast = "not_unicast", "the inner destination is multicast or broadcast, which the overlay does not carry";
    /// Ingress: a packet of the tunnel inside the tunnel.
    VxlanInVxlan = "vxlan_in_vxlan", "a tunnel packet inside the tunnel, addressed to this node: a loop or an attempt to get round the source check";
    /// Ingress: the inner destination is not ours.
    NotOurs = "not_ours", "the inner destination is not in this node's pod CIDRs: the peer holds old data of this node";
    /// Ingress: congestion was marked on a packet that cannot carry the mark (RFC 6040, section 4.2).
    EcnNotCapable = "ecn_not_capable", "a router marked congestion on a tunnel packet whose inner packet cannot carry the mark: dropping is the signal";
    /// The shell received only a part of a datagram.
    ReceiveTruncated = "receive_truncated", "a received datagram did not fit the buffer";
    /// The socket's buffer is full.
    SendBufferFull = "send_buffer_full", "the uplink is slower than what is sent: the socket's buffer is full";
    /// The kernel could not send: no route, unreachable, refused.
    SendFailed = "send_failed", "the kernel could not send to the peer: look at the route to its underlay address and at local firewalls";
    /// The datagram exceeds the path's MTU.
    SendTooBig = "send_too_big", "a datagram exceeds the path's MTU and could not go out in fragments either";
    /// The TUN device did not take the packet.
    TunWriteFailed = "tun_write_failed", "the tunnel device refused a packet: is it up?";
    /// The TUN device could not take the packet now.
    TunFull = "tun_full", "the kernel had no memory or no room for a packet that arrived";
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
