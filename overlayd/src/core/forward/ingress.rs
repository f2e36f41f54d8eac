//! Decapsulation: the checks from the outside in, and the congestion mark.

use std::net::IpAddr;

use wire::offload::{Coalescer, Delivery};
use wire::packet::{ENCAP_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Encap, EncapError, Inner, VNET_LEN};

use super::reason::DropReason;
use super::{CE, ECT_0, ECT_1, NOT_ECT, TUNNEL_PORT, is_to_port, is_unicast};
use crate::core::table::{Path, Table};

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

    /// Begins a message: datagrams that came in one piece from this outer source with these outer ECN bits. Of such datagrams
    /// most are neighbours in one flow, so what was found out about one is kept for the next.
    pub fn message<'t>(
        &mut self,
        table: &'t Table,
        now_ms: u64,
        from: IpAddr,
        ecn: u8,
    ) -> IngressMessage<'_, 't> {
        let path = table.from(from);
        IngressMessage { ingress: self, table, path, now_ms, ecn, passed: None, packets: 0, bytes: 0 }
    }

    /// Hands on whatever is waiting.
    pub fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
        self.coalescer.flush(write);
    }
}

/// Datagrams of one message on their way in. Dropping it counts them for their peer.
#[derive(Debug)]
pub struct IngressMessage<'i, 't> {
    ingress: &'i mut Ingress,
    table: &'t Table,
    path: Option<&'t Path>,
    now_ms: u64,
    ecn: u8,
    passed: Option<Passed>,
    packets: u64,
    bytes: u64,
}

/// What the checks depend on, of the last datagram for a pod that passed them. The source and the table are the message's.
#[derive(Debug)]
struct Passed {
    encap: [u8; ENCAP_LEN],
    source: IpAddr,
    destination: IpAddr,
}

impl Drop for IngressMessage<'_, '_> {
    fn drop(&mut self) {
        let lane = self.path.and_then(|path| path.counters.rx(self.ingress.worker));
        if let Some(lane) = lane.filter(|_| self.packets > 0) {
            lane.add(self.packets, self.bytes, self.now_ms);
        }
    }
}

impl IngressMessage<'_, '_> {
    /// Takes one UDP payload. `write` gets frames for the TUN device, at once or later.
    ///
    /// # Errors
    /// Why the packet was dropped; the caller counts it.
    #[inline]
    pub fn push(&mut self, datagram: &[u8], write: &mut impl FnMut(&[u8])) -> Result<(), DropReason> {
        let (inner, packet) = match self.again(datagram) {
            Some(admitted) => admitted,
            None => self.admit(datagram)?,
        };
        let tos = self.count(packet, &inner)?;
        self.ingress.coalescer.push(&Delivery { packet, inner, tos }, write);
        Ok(())
    }

    /// The same for a datagram that came alone and may be overwritten: a super-packet in it, which peers send that leave
    /// segmentation to the network card, is handed on where it lies.
    ///
    /// # Errors
    /// Why the packet was dropped; the caller counts it.
    pub fn push_alone(
        &mut self,
        datagram: &mut [u8],
        write: &mut impl FnMut(&[u8]),
    ) -> Result<(), DropReason> {
        let (inner, packet) = self.admit(datagram)?;
        let tos = self.count(packet, &inner)?;
        // Admitted, so the header is there.
        let place = datagram.get_mut(ENCAP_LEN - VNET_LEN..).ok_or(DropReason::Truncated)?;
        self.ingress.coalescer.push_in_place(place, inner, tos, write);
        Ok(())
    }

    /// Counts a packet for its peer, and says with which type of service it leaves.
    #[inline]
    fn count(&mut self, packet: &[u8], inner: &Inner) -> Result<u8, DropReason> {
        let tos = combine_ecn(inner.tos, self.ecn).ok_or(DropReason::EcnNotCapable)?;
        let (packets, bytes) = self.ingress.coalescer.stands_for(packet, inner);
        self.packets += packets;
        self.bytes += bytes;
        Ok(tos)
    }

    /// A datagram that passes because it is like the last one that did.
    #[inline]
    fn again<'d>(&self, datagram: &'d [u8]) -> Option<(Inner, &'d [u8])> {
        let passed = self.passed.as_ref()?;
        let (encap, packet) = datagram.split_first_chunk::<ENCAP_LEN>()?;
        if *encap != passed.encap {
            return None;
        }
        let inner = Inner::parse(packet).ok()?;
        // Equal addresses are of one family, so the EtherType is right too.
        (inner.source == passed.source && inner.destination == passed.destination).then_some((inner, packet))
    }

    /// The checks, from the outside in.
    fn admit<'d>(&mut self, datagram: &'d [u8]) -> Result<(Inner, &'d [u8]), DropReason> {
        let encap = Encap::parse(datagram).map_err(|error| match error {
            EncapError::Truncated => DropReason::Truncated,
            EncapError::Flags => DropReason::BadFlags,
        })?;
        let table = self.table;
        if encap.vni != table.vni() {
            return Err(DropReason::WrongVni);
        }
        let path = self.path.ok_or(DropReason::UnknownSource)?;
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
        if to_node && is_to_port(&inner, self.ingress.port) {
            return Err(DropReason::VxlanInVxlan);
        }
        if !own {
            return Err(DropReason::NotOurs);
        }
        // What goes to the node is judged by its port too.
        if !to_node {
            self.passed = datagram.first_chunk().map(|header| Passed {
                encap: *header,
                source: inner.source,
                destination: inner.destination,
            });
        }
        Ok((inner, encap.payload))
    }
}

/// The inner type of service after decapsulation in normal mode; `None` means drop (RFC 6040, section 4.2).
#[inline]
pub(super) fn combine_ecn(tos: u8, outer: u8) -> Option<u8> {
    let ecn = match (tos & 3, outer & 3) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (CE, _) | (_, CE) => CE,
        (ECT_1, _) | (ECT_0, ECT_1) => ECT_1,
        _ => ECT_0,
    };
    Some(tos & !3 | ecn)
}
