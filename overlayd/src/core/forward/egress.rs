//! Encapsulation: the path of a frame, and the batches it goes into.

use std::net::{IpAddr, Ipv4Addr};

use wire::offload::{OffloadError, Outer, Segments, TunnelHeader, finish};
use wire::packet::{ENCAP_LEN, EncapHeader, GsoKind, Inner, Malformed, VirtioNetHdr};

use super::reason::DropReason;
use super::{
    BATCH_BYTES, NOT_ECT, SEGMENTS_DEFAULT, SEGMENTS_MAX, SOURCE_PORTS, TUNNEL_PORT, is_to_port, is_unicast,
};
use crate::core::table::{Lane, Path, Table};

/// Batches open at a time.
const BATCHES: usize = 8;

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

/// A TCP super-packet that may be encapsulated as it is, for the uplink to cut up.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket<'a> {
    /// Underlay address of the peer.
    pub to: IpAddr,
    /// Which source port, below [`SOURCE_PORTS`].
    pub port_slot: usize,
    /// The inner packet, its checksum partial.
    pub packet: &'a [u8],
    vnet: VirtioNetHdr,
    inner: Inner,
    encap: &'a EncapHeader,
    lane: Option<&'a Lane>,
}

impl SuperPacket<'_> {
    /// What precedes the packet on its way out, from this address of ours and this port to that of the peer.
    ///
    /// # Errors
    /// If it must be cut up after all: it is too long for one outer packet, or the addresses are not of one family.
    pub fn header(&self, own: IpAddr, ports: (u16, u16)) -> Result<TunnelHeader, OffloadError> {
        let outer = Outer { source: own, destination: self.to, ports, ecn: self.inner.ecn() };
        TunnelHeader::new(&outer, self.encap, &self.vnet, self.packet, &self.inner)
    }

    /// Counts it as sent, by the packets that it will be.
    pub fn count(&self, now_ms: u64) {
        let Ok(Some(segments)) = Segments::new(&self.vnet, self.packet, &self.inner) else { return };
        let count = segments.count();
        let bytes = self.packet.len() + (count - 1) * segments.headers();
        if let Some(lane) = self.lane {
            lane.add(count as u64, bytes as u64, now_ms);
        }
    }
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
        let key = BatchKey { to: path.underlay, port_slot: port_slot(&inner), ecn: inner.ecn() };
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

    /// A frame as a super-packet that may leave whole, if it is one: TCP, and its peer is a neighbour on an uplink that segments
    /// ([`Table::with_direct`]). What waits of its flow is sent first. Whoever cannot write it takes the frame to [`Self::push`],
    /// and whoever can, counts it.
    #[inline]
    pub fn whole<'a>(
        &mut self,
        table: &'a Table,
        frame: &'a [u8],
        send: &mut impl FnMut(Datagrams<'_>),
    ) -> Option<SuperPacket<'a>> {
        let (vnet, packet) = VirtioNetHdr::split(frame)?;
        if !matches!(vnet.kind(), Some(GsoKind::Tcp4 | GsoKind::Tcp6)) {
            return None;
        }
        let inner = Inner::parse(packet).ok()?;
        // Why there is no path is told by `push`.
        let path = self.path(table, &inner).ok().filter(|path| path.whole)?;
        let (to, port_slot) = (path.underlay, port_slot(&inner));
        if let Some(at) = self.waiting(to, port_slot) {
            self.batches[at].send(send);
        }
        let encap = if inner.is_v4() { &path.header_v4 } else { &path.header_v6 };
        let lane = path.counters.tx(self.worker);
        Some(SuperPacket { to, port_slot, packet: packet.get(..inner.length)?, vnet, inner, encap, lane })
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

    /// The open batch of this peer and port.
    #[inline]
    fn waiting(&self, to: IpAddr, port_slot: usize) -> Option<usize> {
        let open =
            |batch: &Batch| batch.packets > 0 && batch.key.to == to && batch.key.port_slot == port_slot;
        self.batches.iter().position(open)
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
        if let Some(at) = self.waiting(key.to, key.port_slot) {
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

/// The source port of a packet's flow. The hash's highest bits are its best.
#[inline]
fn port_slot(inner: &Inner) -> usize {
    (inner.flow_hash() >> 60) as usize % SOURCE_PORTS
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
        let key = BatchKey { to: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port_slot: 0, ecn: NOT_ECT };
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
