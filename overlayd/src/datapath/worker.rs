//! One worker: a plain thread that serves one TUN queue and one UDP socket per underlay family, in both directions, from one
//! epoll. It loads the peer table and the time once per batch, and makes no other system call than read, write, send, receive and wait.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;
use tun::AbstractDevice as _;

use super::spin::Spin;
use super::tun::Queue;
use super::udp::{Inbox, Senders};
use super::{DropLine, Event, Shared, TUNNEL_GSO};
use crate::core::forward::{self, Datagrams, DropReason, Egress, Ingress, SuperPacket};
use crate::core::table::Table;
use wire::packet::{GsoKind, VNET_LEN, VirtioNetHdr};

/// A super-packet of 65,535 bytes behind its virtio-net header, or a UDP payload.
const BUFFER: usize = 1 << 16 | 64;

/// What one direction may do before the other has its turn: frames or messages, and bytes.
const TURN_FRAMES: usize = 128;
const TURN_BYTES: usize = 512 << 10;

/// How often the device's MTU is read again, in milliseconds.
const MTU_EVERY_MS: u64 = 10_000;

/// Failed receives in a row after which a worker gives up: the socket is not coming back.
const RECEIVE_ERRORS: u32 = 1000;

/// How long a narrow path is not reported again.
const NARROW_FOR_MS: u64 = 1000;

/// How long nothing is segmented towards a peer after the kernel refused to; then the way to it may be another.
const UNSEGMENTED_FOR_MS: u64 = 60_000;

const STOP: u64 = 0;
const TUN: u64 = 1;
const TAP: u64 = 2;
const UDP: u64 = 3;

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) index: usize,
    pub(super) queue: Queue,
    /// Where super-packets leave whole, if they may.
    pub(super) tap: Option<File>,
    /// The family's own address, its receiver, its senders.
    pub(super) underlays: Vec<(IpAddr, Socket, Arc<Senders>)>,
    pub(super) shared: Arc<Shared>,
    pub(super) port: u16,
    pub(super) spin: std::time::Duration,
    pub(super) epoch: Instant,
}

/// Runs until told to stop (`Ok`), or until something is beyond repair.
pub(super) fn run(parts: Parts) -> io::Result<()> {
    let Parts { index, queue, tap, underlays, shared, port, spin, epoch } = parts;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&shared.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
    // SAFETY: the descriptor belongs to `queue`, which outlives the borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&queue)) };
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, TUN))?;
    if let Some(tap) = &tap {
        // Nothing is read from it: it is watched for its end, which wakes readers.
        epoll.add(tap, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TAP))?;
    }
    let mut outlet = Outlet {
        senders: Vec::new(),
        tap,
        cut_up: Recent::new(UNSEGMENTED_FOR_MS),
        narrow: Recent::new(NARROW_FOR_MS),
        unsegmented: Recent::new(UNSEGMENTED_FOR_MS),
        index,
        now_ms: 0,
        shared: Arc::clone(&shared),
    };
    let mut receivers = Vec::new();
    for (slot, (address, socket, senders)) in underlays.into_iter().enumerate() {
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, UDP + slot as u64))?;
        receivers.push(Receiver { socket, inbox: Inbox::new(address), errors: 0 });
        outlet.senders.push((address.is_ipv4(), senders));
    }
    let mut worker = Worker {
        table: Cache::new(&shared.table),
        egress: Egress::new(index),
        ingress: Ingress::new(index),
        buffer: vec![0; BUFFER],
        inlet: Inlet { queue, index, shared: Arc::clone(&shared), lost: None, refused: Refused::default() },
        outlet,
        receivers,
        epoch,
        mtu_read_ms: None,
    };
    worker.egress.set_tunnel_port(port);
    worker.ingress.set_tunnel_port(port);
    worker.ingress.set_tso(shared.has("tun_tso"));
    worker.ingress.set_uso(shared.has("tun_uso"));
    if let Some(most) = worker.outlet.senders.iter().map(|(_, senders)| senders.segments_max()).min() {
        worker.egress.set_segments_max(most);
    }
    worker.drive(&epoll, Spin::new(spin))
}

struct Worker<'a> {
    table: Cache<&'a ArcSwap<Table>, Arc<Table>>,
    egress: Egress,
    ingress: Ingress,
    buffer: Vec<u8>,
    inlet: Inlet,
    outlet: Outlet,
    receivers: Vec<Receiver>,
    epoch: Instant,
    mtu_read_ms: Option<u64>,
}

struct Receiver {
    socket: Socket,
    inbox: Inbox,
    errors: u32,
}

impl Worker<'_> {
    fn drive(&mut self, epoll: &Epoll, mut spin: Spin) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 8];
        let mut timeout = EpollTimeout::NONE;
        loop {
            let ready = match epoll.wait(&mut events, timeout) {
                Ok(ready) => &events[..ready],
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut now = Instant::now();
            if !ready.is_empty() {
                let now_ms =
                    u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
                for event in ready {
                    match event.data() {
                        STOP => return Ok(()),
                        TUN => self.serve_tun(now_ms)?,
                        TAP if event.events().contains(EpollFlags::EPOLLERR) => {
                            return Err(io::Error::other("the TAP device was deleted"));
                        }
                        TAP => {}
                        udp => self.serve_udp((udp - UDP) as usize, now_ms)?,
                    }
                }
                now = Instant::now();
                spin.worked(now);
            } else if spin.polls(now) {
                let before = now;
                std::thread::yield_now();
                now = Instant::now();
                spin.yielded(before, now);
            }
            timeout = if spin.polls(now) { EpollTimeout::ZERO } else { EpollTimeout::NONE };
        }
    }

    /// Pods to peers.
    fn serve_tun(&mut self, now_ms: u64) -> io::Result<()> {
        let Self { table, egress, buffer, inlet, outlet, .. } = self;
        let table = table.load();
        outlet.now_ms = now_ms;
        let mut bytes = 0;
        for _ in 0..TURN_FRAMES {
            let length = match inlet.queue.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            bytes += length;
            let frame = &buffer[..length];
            if outlet.tap.is_some()
                && let Some(packet) = egress.whole(table, frame, &mut |batch| outlet.send(&batch))
                && outlet.send_whole(&packet)
            {
                packet.count(now_ms);
            } else if let Err(reason) = egress.push(table, now_ms, frame, &mut |batch| outlet.send(&batch)) {
                outlet.drops().add(reason, 1);
            }
            if bytes >= TURN_BYTES {
                break;
            }
        }
        egress.flush(&mut |batch| outlet.send(&batch));
        Ok(())
    }

    /// Peers to pods.
    fn serve_udp(&mut self, slot: usize, now_ms: u64) -> io::Result<()> {
        self.refresh_mtu(now_ms);
        let Self { table, ingress, buffer, inlet, receivers, .. } = self;
        let table = table.load();
        let Some(Receiver { socket, inbox, errors }) = receivers.get_mut(slot) else { return Ok(()) };
        let mut bytes = 0;
        for _ in 0..TURN_FRAMES {
            let arrival = match inbox.receive(socket, buffer) {
                Ok(arrival) => arrival,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // What the network said about an earlier packet; reading it clears it.
                    *errors += 1;
                    if *errors > RECEIVE_ERRORS {
                        return Err(error);
                    }
                    continue;
                }
            };
            *errors = 0;
            if arrival.truncated {
                inlet.drops().add(DropReason::ReceiveTruncated, 1);
                continue;
            }
            let mut message = ingress.message(table, now_ms, arrival.from, arrival.ecn);
            let received = &mut buffer[..arrival.length];
            if arrival.segment >= arrival.length {
                // An empty message is one empty datagram: it too must be judged, and counted.
                if let Err(reason) = message.push_alone(received, &mut |frame| inlet.write(frame)) {
                    inlet.drops().add(reason, 1);
                }
            } else {
                for datagram in received.chunks(arrival.segment) {
                    if let Err(reason) = message.push(datagram, &mut |frame| inlet.write(frame)) {
                        inlet.drops().add(reason, 1);
                    }
                }
            }
            bytes += arrival.length;
            if bytes >= TURN_BYTES {
                break;
            }
        }
        ingress.flush(&mut |frame| inlet.write(frame));
        inlet.settle(ingress)
    }

    /// The device's MTU bounds what may be coalesced; it changes with the underlay's, rarely.
    fn refresh_mtu(&mut self, now_ms: u64) {
        if self.mtu_read_ms.is_some_and(|read| now_ms < read + MTU_EVERY_MS) {
            return;
        }
        self.mtu_read_ms = Some(now_ms);
        if let Ok(mtu) = self.inlet.queue.mtu() {
            self.ingress.set_mtu(u32::from(mtu));
        }
    }
}

/// The way out: batches to their family's senders.
struct Outlet {
    /// Whether IPv4, and the senders.
    senders: Vec<(bool, Arc<Senders>)>,
    /// Peers whose narrow path was reported lately: each once while the route's MTU is on its way.
    narrow: Recent,
    /// Peers towards which the kernel segments nothing.
    unsegmented: Recent,
    /// Where super-packets leave whole.
    tap: Option<File>,
    /// Peers whose super-packets it refused.
    cut_up: Recent,
    index: usize,
    now_ms: u64,
    shared: Arc<Shared>,
}

impl Outlet {
    /// Sends a super-packet whole, unless it must be cut up.
    fn send_whole(&mut self, packet: &SuperPacket<'_>) -> bool {
        // Towards a narrow path sockets find out what passes.
        if self.cut_up.holds(packet.to, self.now_ms) || self.narrow.holds(packet.to, self.now_ms) {
            return false;
        }
        let Some(mut tap) = self.tap.as_ref() else { return false };
        let Some(Ok(header)) = of_family(&self.senders, packet.to).map(|senders| senders.header(packet))
        else {
            return false;
        };
        let Err(error) = tap.write_vectored(&[IoSlice::new(header.as_bytes()), IoSlice::new(packet.packet)])
        else {
            return true;
        };
        if let Some(errno @ libc::EINVAL) = error.raw_os_error() {
            self.cut_up.note(packet.to, self.now_ms);
            self.shared.step_down(TUNNEL_GSO, "the device refused a super-packet", errno);
        }
        false
    }

    fn send(&mut self, batch: &Datagrams<'_>) {
        let Some(senders) = of_family(&self.senders, batch.to) else {
            self.drops().add(DropReason::SendFailed, batch.packets);
            return;
        };
        let sent = if self.unsegmented.holds(batch.to, self.now_ms) {
            senders.send_each(batch)
        } else {
            senders.send(batch)
        };
        if let Some((reason, packets)) = sent.lost {
            self.drops().add(reason, packets);
        }
        if sent.too_big && !self.narrow.holds(batch.to, self.now_ms) {
            self.narrow.note(batch.to, self.now_ms);
            if let Ok(mtu) = senders.path_mtu(batch.to) {
                (self.shared.notify)(Event::PathMtu { underlay: batch.to, mtu });
            }
        }
        if let Some(errno) = sent.unsegmented {
            // A narrow path may be why, and passes.
            if !sent.too_big {
                self.unsegmented.note(batch.to, self.now_ms);
            }
            self.shared.step_down("udp_segment", "the kernel refused a batch", errno);
        }
    }

    fn drops(&self) -> &DropLine {
        &self.shared.drops[self.index]
    }
}

/// The senders of this address's family.
fn of_family(senders: &[(bool, Arc<Senders>)], to: IpAddr) -> Option<&Senders> {
    senders.iter().find(|(v4, _)| *v4 == to.is_ipv4()).map(|(_, senders)| senders.as_ref())
}

/// Peers with which something was the matter lately; of many at a time some are forgotten early.
struct Recent {
    span_ms: u64,
    noted: [Option<(IpAddr, u64)>; 16],
    next: usize,
}

impl Recent {
    fn new(span_ms: u64) -> Self {
        Self { span_ms, noted: [None; 16], next: 0 }
    }

    fn holds(&self, peer: IpAddr, now_ms: u64) -> bool {
        // Places are filled from the front, so where nothing was noted this is one look.
        let mut noted = self.noted.iter().map_while(|entry| *entry);
        noted.any(|(noted, at)| noted == peer && now_ms < at + self.span_ms)
    }

    fn note(&mut self, peer: IpAddr, now_ms: u64) {
        let known = self.noted.iter().position(|entry| entry.is_some_and(|(noted, _)| noted == peer));
        let at = known.unwrap_or(self.next);
        if known.is_none() {
            self.next = (self.next + 1) % self.noted.len();
        }
        self.noted[at] = Some((peer, now_ms));
    }
}

/// The way in: frames to the TUN queue.
struct Inlet {
    queue: Queue,
    index: usize,
    shared: Arc<Shared>,
    /// The device is gone.
    lost: Option<io::Error>,
    refused: Refused,
}

/// Kinds of super-packet that the kernel did not take since the last batch.
#[derive(Default)]
struct Refused {
    tso: bool,
    uso: bool,
}

impl Inlet {
    /// Writes a frame; a super-packet of a kind that the kernel does not take is written packet by packet.
    fn write(&mut self, frame: &[u8]) {
        let Err(error) = write_once(&mut self.queue, frame) else { return };
        let header = VirtioNetHdr::split(frame).map_or_else(VirtioNetHdr::default, |(header, _)| header);
        match (error.raw_os_error(), header.kind()) {
            (Some(libc::EBADFD), _) => self.lost = Some(error),
            (Some(errno @ libc::EINVAL), Some(kind)) if kind != GsoKind::None => {
                let offload = match kind {
                    GsoKind::Udp => {
                        self.refused.uso = true;
                        "tun_uso"
                    }
                    _ => {
                        self.refused.tso = true;
                        "tun_tso"
                    }
                };
                self.shared.step_down(offload, "the device refused a super-packet", errno);
                let Self { queue, index, shared, .. } = self;
                forward::split(frame, &mut |packet: &[u8]| {
                    if write_once(queue, packet).is_err() {
                        shared.drops[*index].add(DropReason::TunWriteFailed, 1);
                    }
                });
            }
            (Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM), _) => {
                self.drops().add(DropReason::TunFull, packets(header, frame.len()));
            }
            _ => self.drops().add(DropReason::TunWriteFailed, packets(header, frame.len())),
        }
    }

    /// After a batch: stops coalescing what was refused, and fails if the device is gone.
    fn settle(&mut self, ingress: &mut Ingress) -> io::Result<()> {
        let refused = std::mem::take(&mut self.refused);
        if refused.tso {
            ingress.set_tso(false);
        }
        if refused.uso {
            ingress.set_uso(false);
        }
        self.lost.take().map_or(Ok(()), Err)
    }

    fn drops(&self) -> &DropLine {
        &self.shared.drops[self.index]
    }
}

fn write_once(queue: &mut Queue, frame: &[u8]) -> io::Result<()> {
    loop {
        match queue.write(frame) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome.map(drop),
        }
    }
}

/// Packets in a frame of `length` bytes.
fn packets(header: VirtioNetHdr, length: usize) -> u64 {
    let headers = VNET_LEN + usize::from(header.hdr_len.get());
    match header.gso_size.get() {
        0 => 1,
        size => length.saturating_sub(headers).div_ceil(usize::from(size)).max(1) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_the_matter_with_a_peer_is_forgotten_in_time() {
        let mut recent = Recent::new(1000);
        let [one, other] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        assert!(!recent.holds(one, 0));

        recent.note(one, 0);
        recent.note(other, 10);

        assert!(recent.holds(one, 999));
        assert!(!recent.holds(one, 1000));
        assert!(recent.holds(other, 1000));
        recent.note(one, 1000);
        assert!(recent.holds(one, 1999));
        assert_eq!(recent.noted.iter().flatten().count(), 2);
    }

    #[test]
    fn packets_of_a_super_packet_are_counted_by_its_payload() {
        let plain = VirtioNetHdr::default();
        let coalesced = VirtioNetHdr { gso_type: 1, hdr_len: 40.into(), gso_size: 1000.into(), ..plain };

        assert_eq!(packets(plain, 10 + 1400), 1);
        assert_eq!(packets(coalesced, 10 + 40 + 2000), 2);
        assert_eq!(packets(coalesced, 10 + 40 + 2001), 3);
    }
}
