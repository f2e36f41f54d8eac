//! The UDP sockets: one receiver per worker and underlay family, and the pool of senders that all workers share.
//!
//! The outer source port must vary with the inner flow, for the sake of ECMP, of receive queues and of the peer's
//! `SO_REUSEPORT`, and a socket has one port: hence the pool. Its sockets hear nothing (a filter drops all before it is
//! queued) and take no error queue: with `IP_RECVERR` one dead peer's port-unreachable fails the next sends to live ones.
//!
//! Senders set the don't-fragment bit, so that a path that became narrower answers `EMSGSIZE` instead of losing packets. A
//! batch refused so leaves at once by the spare socket, which may fragment, and control lowers that peer's route MTU.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce, UdpGroSegment};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::StartError;
use super::sys::{self, Control};
use crate::core::forward::{
    Datagrams, DropReason, SEGMENTS_DEFAULT, SEGMENTS_MAX, SOURCE_PORTS, SuperPacket,
};
use wire::offload::{OffloadError, TunnelHeader};

/// Room for bursts while a worker is busy elsewhere: about 4 ms at 10 Gbit/s, as the kernel counts memory.
const BUFFER: usize = 8 << 20;

/// How long a full send buffer holds a worker up before its packets are dropped. The buffer drains into the one network card that
/// all peers share, so waiting delays nobody who could go ahead, and the TUN queue fills meanwhile as any queue does.
const SEND_WAIT: Duration = Duration::from_millis(5);

/// A classic BPF `return 0`: accept no byte.
const ACCEPT_NOTHING: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Sockets of one underlay family that packets arrive on: one per worker, each hears its share of the flows.
pub(super) fn receivers(address: SocketAddr, count: usize) -> Result<Vec<Socket>, StartError> {
    (0..count).map(|_| receiver(address).map_err(|cause| start_error(address, cause))).collect()
}

fn receiver(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address.ip())?;
    socket.set_reuse_port(true)?;
    if setsockopt(&socket, RcvBufForce, &BUFFER).is_err() {
        // Without CAP_NET_ADMIN over the initial namespace: as much as net.core.rmem_max allows.
        socket.set_recv_buffer_size(BUFFER)?;
    }
    match address {
        SocketAddr::V4(_) => socket.set_recv_tos_v4(true)?,
        SocketAddr::V6(_) => socket.set_recv_tclass_v6(true)?,
    }
    setsockopt(&socket, UdpGroSegment, &true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The family's sending sockets, shared by all workers.
pub(super) struct Senders {
    local: IpAddr,
    port: u16,
    pool: Vec<Socket>,
    /// The ports of the pool.
    source_ports: Vec<u16>,
    spare: Socket,
    segments_max: usize,
}

/// How a batch left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// The path is narrower than the batch's packets: they left another way.
    pub(super) too_big: bool,
    /// The kernel refused segmentation for this batch, which left packet by packet.
    pub(super) unsegmented: Option<i32>,
    /// Packets that did not leave, and why.
    pub(super) lost: Option<(DropReason, u64)>,
}

impl Senders {
    /// Opens the pool on the node's own address; `port` is the peers'.
    pub(super) fn open(local: IpAddr, port: u16) -> Result<Self, StartError> {
        let address = SocketAddr::new(local, 0);
        let failed = |cause| start_error(address, cause);
        let pool = (0..SOURCE_PORTS)
            .map(|_| sender(address, Fragments::Never))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        let source_ports = pool.iter().map(bound_port).collect::<io::Result<_>>().map_err(failed)?;
        let spare = sender(address, Fragments::Allowed).map_err(failed)?;
        let segments_max =
            if takes_most_segments(local).map_err(failed)? { SEGMENTS_MAX } else { SEGMENTS_DEFAULT };
        Ok(Self { local, port, pool, source_ports, spare, segments_max })
    }

    /// What precedes a super-packet that leaves whole as if one of our sockets had sent it.
    ///
    /// # Errors
    /// If it must be cut up after all.
    pub(super) fn header(&self, packet: &SuperPacket<'_>) -> Result<TunnelHeader, OffloadError> {
        let source = self.source_ports[packet.port_slot % SOURCE_PORTS];
        packet.header(self.local, (source, self.port))
    }

    /// Datagrams that this kernel takes in one send.
    pub(super) fn segments_max(&self) -> usize {
        self.segments_max
    }

    /// Sends one batch.
    pub(super) fn send(&self, batch: &Datagrams<'_>) -> Sent {
        let mut sent = Sent::default();
        let to = SockAddr::from(SocketAddr::new(batch.to, self.port));
        let socket = &self.pool[batch.port_slot % SOURCE_PORTS];
        let Err(refused) = self.attempt(socket, &to, batch, batch.bytes) else { return sent };
        let (socket, refused) = if refused.raw_os_error() == Some(libc::EMSGSIZE) {
            sent.too_big = true;
            match self.attempt(&self.spare, &to, batch, batch.bytes) {
                Ok(()) => return sent,
                Err(refused) => (&self.spare, refused),
            }
        } else {
            (socket, refused)
        };
        let segments = batch.bytes.len() > batch.segment;
        match refused.raw_os_error() {
            // EMSGSIZE here is the spare's: segments larger than what it may send whole, single ones are fragmented.
            Some(errno @ (libc::EIO | libc::EINVAL | libc::EMSGSIZE)) if segments => {
                if errno != libc::EMSGSIZE {
                    sent.unsegmented = Some(errno);
                }
            }
            _ => {
                sent.lost = Some((reason(&refused), batch.packets));
                return sent;
            }
        }
        self.send_singly(socket, &to, batch, sent)
    }

    /// Sends the datagrams of a batch one by one.
    pub(super) fn send_each(&self, batch: &Datagrams<'_>) -> Sent {
        let to = SockAddr::from(SocketAddr::new(batch.to, self.port));
        self.send_singly(&self.pool[batch.port_slot % SOURCE_PORTS], &to, batch, Sent::default())
    }

    fn send_singly(&self, socket: &Socket, to: &SockAddr, batch: &Datagrams<'_>, mut sent: Sent) -> Sent {
        for datagram in batch.bytes.chunks(batch.segment) {
            let mut outcome = self.attempt(socket, to, batch, datagram);
            if matches!(&outcome, Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE)) {
                sent.too_big = true;
                outcome = self.attempt(&self.spare, to, batch, datagram);
            }
            if let Err(error) = outcome {
                let lost = sent.lost.map_or(0, |(_, lost)| lost);
                sent.lost = Some((reason(&error), lost + 1));
            }
        }
        sent
    }

    /// One system call, repeated while the send buffer is full, for a bounded time.
    fn attempt(&self, socket: &Socket, to: &SockAddr, batch: &Datagrams<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut control = Control::new();
        if bytes.len() > batch.segment {
            // At most the UDP payload of 65,507 bytes.
            let segment = batch.segment as u16;
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if batch.ecn != 0 {
            let (level, kind) = match self.local {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            control.push(level, kind, &i32::from(batch.ecn).to_ne_bytes());
        }
        let mut waited = false;
        loop {
            match sys::send(socket, to, bytes, &control) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    wait_writable(socket)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Outer MTU that the kernel knows for the path to `peer`. Only a connected socket tells.
    pub(super) fn path_mtu(&self, peer: IpAddr) -> io::Result<u32> {
        let socket = open(self.local)?;
        socket.bind(&SocketAddr::new(self.local, 0).into())?;
        socket.connect(&SocketAddr::new(peer, self.port).into())?;
        let mtu = match peer {
            IpAddr::V4(_) => sys::option(&socket, libc::IPPROTO_IP, libc::IP_MTU)?,
            IpAddr::V6(_) => sys::option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU)?,
        };
        u32::try_from(mtu).map_err(io::Error::other)
    }
}

/// What a sender does with a packet that the path does not carry whole.
#[derive(Clone, Copy)]
enum Fragments {
    /// Refuses it.
    Never,
    /// IPv4: sends it without the don't-fragment bit, and fragments at our own link's MTU only, so that segmentation still works.
    /// IPv6: routers do not fragment, so we do, at the path's MTU.
    Allowed,
}

fn sender(address: SocketAddr, fragments: Fragments) -> io::Result<Socket> {
    let socket = open(address.ip())?;
    socket.attach_filter(&[SockFilter::new(ACCEPT_NOTHING, 0, 0, 0)])?;
    // The kernel raises it to its own minimum.
    socket.set_recv_buffer_size(0)?;
    if setsockopt(&socket, SndBufForce, &BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    let (level, name, mode) = match (address, fragments) {
        (SocketAddr::V4(_), Fragments::Never) => {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
        }
        (SocketAddr::V4(_), Fragments::Allowed) => {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)
        }
        (SocketAddr::V6(_), Fragments::Never) => {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
        }
        (SocketAddr::V6(_), Fragments::Allowed) => {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
        }
    };
    sys::set_option(&socket, level, name, mode)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bound_port(socket: &Socket) -> io::Result<u16> {
    socket.local_addr()?.as_socket().map(|address| address.port()).ok_or(io::ErrorKind::Unsupported.into())
}

fn open(address: IpAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(address, 0)),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Tries a send of [`SEGMENTS_MAX`] one-byte datagrams to a socket of our own, which closes at once.
fn takes_most_segments(local: IpAddr) -> io::Result<bool> {
    let target = open(local)?;
    target.bind(&SocketAddr::new(local, 0).into())?;
    let source = open(local)?;
    let mut control = Control::new();
    control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &1_u16.to_ne_bytes());
    Ok(sys::send(&source, &target.local_addr()?, &[0; SEGMENTS_MAX], &control).is_ok())
}

fn wait_writable(socket: &Socket) -> io::Result<()> {
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    nix::poll::poll(&mut wanted, PollTimeout::try_from(SEND_WAIT).unwrap_or(PollTimeout::ZERO))?;
    Ok(())
}

fn reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::SendBufferFull,
        Some(libc::EMSGSIZE) => DropReason::SendTooBig,
        _ => DropReason::SendFailed,
    }
}

fn start_error(address: SocketAddr, cause: io::Error) -> StartError {
    match cause.raw_os_error() {
        Some(libc::EADDRINUSE) => StartError::PortTaken { address: address.ip(), port: address.port() },
        Some(libc::EADDRNOTAVAIL) => StartError::AddressMissing(address.ip()),
        _ => StartError::Os { what: format!("opening a UDP socket on {address}"), cause },
    }
}

/// What the kernel said about a received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Bytes in the buffer.
    pub(super) length: usize,
    /// Size of each datagram in it but the last.
    pub(super) segment: usize,
    /// The outer ECN bits.
    pub(super) ecn: u8,
    /// Who sent it.
    pub(super) from: IpAddr,
    /// The buffer was too small.
    pub(super) truncated: bool,
}

/// Where a message is received into; used again for each.
pub(super) struct Inbox {
    from: SockAddr,
    control: Control,
}

impl Inbox {
    /// For sockets of `family`'s family.
    pub(super) fn new(family: IpAddr) -> Self {
        Self { from: SocketAddr::new(family, 0).into(), control: Control::new() }
    }

    /// Receives one message, which may be many datagrams of one size.
    pub(super) fn receive(&mut self, socket: &Socket, bytes: &mut [u8]) -> io::Result<Arrival> {
        let received = sys::receive(socket, &mut self.from, bytes, &mut self.control)?;
        let from = self.from.as_socket().map_or(IpAddr::from([0; 4]), |from| from.ip());
        let mut arrival = Arrival {
            length: received.length,
            segment: received.length,
            ecn: 0,
            from,
            truncated: received.truncated,
        };
        for (level, kind, data) in self.control.messages() {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment = data.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    arrival.segment = usize::try_from(segment).unwrap_or(0);
                }
                // The one is a byte, the other an int.
                (libc::IPPROTO_IP, libc::IP_TOS) => arrival.ecn = data.first().copied().unwrap_or(0) & 3,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    arrival.ecn =
                        data.first_chunk().map_or(0, |bytes| (i32::from_ne_bytes(*bytes) & 3) as u8);
                }
                _ => {}
            }
        }
        if arrival.segment == 0 {
            arrival.segment = arrival.length;
        }
        Ok(arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A receiver, and senders to it.
    fn pair() -> (Socket, Senders) {
        let receiver = receiver(SocketAddr::new(LOCAL, 0)).unwrap();
        let port = receiver.local_addr().unwrap().as_socket().unwrap().port();
        (receiver, Senders::open(LOCAL, port).unwrap())
    }

    fn batch(bytes: &[u8], segment: usize) -> Datagrams<'_> {
        let packets = bytes.len().div_ceil(segment) as u64;
        Datagrams { to: LOCAL, port_slot: 3, segment, ecn: 2, bytes, packets }
    }

    /// The datagrams that have arrived, in order, whether the kernel joined them or not.
    fn arrived(receiver: &Socket) -> Vec<Vec<u8>> {
        let (mut inbox, mut buffer, mut datagrams) = (Inbox::new(LOCAL), vec![0; 1 << 16], Vec::new());
        loop {
            match inbox.receive(receiver, &mut buffer) {
                Ok(arrival) => {
                    assert_eq!((arrival.ecn, arrival.from, arrival.truncated), (2, LOCAL, false));
                    let message = &buffer[..arrival.length];
                    datagrams.extend(message.chunks(arrival.segment).map(<[u8]>::to_vec));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return datagrams,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_batch_arrives_as_its_datagrams_with_its_mark() {
        let (receiver, senders) = pair();
        let bytes: Vec<u8> = (0..95).collect();

        assert_eq!(senders.send(&batch(&bytes, 10)), Sent::default());

        let expected: Vec<Vec<u8>> = bytes.chunks(10).map(<[u8]>::to_vec).collect();
        assert_eq!(arrived(&receiver), expected);
    }

    /// More datagrams than any kernel segments: a refusal as it would come from one that cannot segment at all.
    #[test]
    fn a_refused_batch_leaves_datagram_by_datagram_and_loses_none() {
        let (receiver, senders) = pair();
        let bytes: Vec<u8> = (0..200 * 4).map(|at| (at / 4) as u8).collect();

        let sent = senders.send(&batch(&bytes, 4));

        assert_eq!(sent, Sent { unsegmented: Some(libc::EINVAL), ..Sent::default() });
        let expected: Vec<Vec<u8>> = bytes.chunks(4).map(<[u8]>::to_vec).collect();
        assert_eq!(arrived(&receiver), expected);
    }

    #[test]
    fn datagrams_that_leave_one_by_one_arrive_in_order() {
        let (receiver, senders) = pair();
        let bytes: Vec<u8> = (0..95).collect();

        assert_eq!(senders.send_each(&batch(&bytes, 10)), Sent::default());

        let expected: Vec<Vec<u8>> = bytes.chunks(10).map(<[u8]>::to_vec).collect();
        assert_eq!(arrived(&receiver), expected);
    }

    #[test]
    fn what_cannot_leave_is_counted_packet_by_packet() {
        let (_receiver, senders) = pair();
        // Loopback does not reach it.
        let to = IpAddr::from([192, 0, 2, 1]);
        let bytes = [7; 30];

        let sent = senders.send(&Datagrams { to, ..batch(&bytes, 10) });

        assert_eq!(sent.lost.map(|(_, packets)| packets), Some(3));
    }

    #[test]
    fn sending_and_receiving_do_not_allocate() {
        let (receiver, senders) = pair();
        let (mut inbox, mut buffer) = (Inbox::new(LOCAL), vec![0; 1 << 16]);
        let bytes = vec![5; 44 * 1400];
        let mut turn = || {
            assert_eq!(senders.send(&batch(&bytes, 1400)), Sent::default());
            while inbox.receive(&receiver, &mut buffer).is_ok() {}
        };
        turn();

        let allocated = allocations::during(|| (0..100).for_each(|_| turn()));

        assert_eq!(allocated, 0);
    }
}
