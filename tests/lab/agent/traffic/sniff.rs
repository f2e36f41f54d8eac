//! Looks at what passes an interface.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use tests::traffic::Packet;

use super::{report, told_to_stop};

/// As many packets are kept; the rest is only counted by their absence from the report.
const KEPT: usize = 4096;

/// An address of `AF_PACKET` for one interface (0: all).
pub(super) fn packet_address(index: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll fits the storage, and any bit pattern is a valid sockaddr_ll.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = index.cast_signed();
    // SAFETY: the storage holds a sockaddr_ll of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) }
}

/// Opens `AF_PACKET` on an interface by name.
pub(super) fn open(kind: Type, name: &str) -> Result<Socket> {
    let index = nix::net::if_::if_nametoindex(name).with_context(|| format!("no interface {name}"))?;
    // Protocol 0: nothing arrives before the bind names the interface.
    let socket = Socket::new(Domain::PACKET, kind, Some(Protocol::from(0))).context("open packet socket")?;
    let _ = socket.set_recv_buffer_size(16 << 20);
    socket.bind(&packet_address(index)).with_context(|| format!("listen on {name}"))?;
    Ok(socket)
}

/// Collects packets until standard input ends.
pub(crate) fn sniff(name: &str) -> Result<()> {
    let stop = told_to_stop();
    let socket = open(Type::DGRAM, name)?;
    println!("sniffing");
    let (mut packets, mut buffer) = (Vec::new(), vec![0; 65536]);
    // After the end everything that is already queued is still read.
    loop {
        let over = stop.load(Ordering::Relaxed);
        let pause = Duration::from_millis(if over { 1 } else { 20 });
        socket.set_read_timeout(Some(pause))?;
        match super::raw::receive(&socket, &mut buffer) {
            Ok((length, from)) if packets.len() < KEPT => {
                packets.push(read(&buffer[..length], packet_type(&from)));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && over => break,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    report(&packets)
}

pub(super) fn packet_type(from: &SockAddr) -> u8 {
    // SAFETY: the kernel filled in a sockaddr_ll, as the socket's family is AF_PACKET.
    unsafe { (*from.as_ptr().cast::<libc::sockaddr_ll>()).sll_pkttype }
}

fn read(bytes: &[u8], kind: u8) -> Packet {
    let mut packet = Packet {
        length: bytes.len(),
        incoming: kind != libc::PACKET_OUTGOING,
        bytes: bytes[..bytes.len().min(256)].to_vec(),
        ..Packet::default()
    };
    let transport = match bytes.first().map(|byte| byte >> 4) {
        Some(4) if bytes.len() >= 20 => {
            packet.source = bytes[12..].first_chunk::<4>().map(|raw| IpAddr::from(*raw));
            packet.destination = bytes[16..].first_chunk::<4>().map(|raw| IpAddr::from(*raw));
            (packet.tos, packet.ttl, packet.protocol) = (bytes[1], bytes[8], bytes[9]);
            bytes.get(usize::from(bytes[0] & 15) * 4..)
        }
        Some(6) if bytes.len() >= 40 => {
            packet.source = bytes[8..].first_chunk::<16>().map(|raw| IpAddr::from(*raw));
            packet.destination = bytes[24..].first_chunk::<16>().map(|raw| IpAddr::from(*raw));
            packet.tos = bytes[0] << 4 | bytes[1] >> 4;
            (packet.protocol, packet.ttl) = (bytes[6], bytes[7]);
            bytes.get(40..)
        }
        _ => None,
    };
    if let Some([a, b, c, d, ..]) = transport
        && [6, 17].contains(&packet.protocol)
    {
        packet.source_port = u16::from_be_bytes([*a, *b]);
        packet.destination_port = u16::from_be_bytes([*c, *d]);
    }
    packet
}
