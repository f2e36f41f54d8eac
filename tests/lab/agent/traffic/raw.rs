//! Raw sockets: ping, and whole IP packets as a test wrote them.

use std::io::{self, ErrorKind, Read};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tests::traffic::Ping;

use super::report;

/// ICMP echo, one request after the other.
pub(crate) fn ping(target: IpAddr, size: usize, count: u32, time: Duration) -> Result<()> {
    let mut result = Ping::default();
    if let Err(error) = run_ping(target, size, count, time, &mut result) {
        result.error = Some(format!("{error:#}"));
    }
    report(&result)
}

fn run_ping(target: IpAddr, size: usize, count: u32, time: Duration, result: &mut Ping) -> Result<()> {
    let (domain, protocol, request, reply) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("open raw socket")?;
    socket.connect(&SocketAddr::new(target, 0).into()).with_context(|| format!("connect to {target}"))?;
    let id = (std::process::id() as u16).to_be_bytes();
    for number in 0..count {
        let mut bytes = vec![0; size.max(8)];
        bytes[0] = request;
        bytes[4..6].copy_from_slice(&id);
        bytes[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        if target.is_ipv4() {
            // The kernel does this for ICMPv6 only.
            let sum = tests::packet::checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        socket.send(&bytes).context("send")?;
        result.sent += 1;
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut buffer = vec![0; 65536];
            let length = match (&socket).read(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => return Err(error).context("receive"),
            };
            // A raw IPv4 socket delivers the IP header too.
            let offset = if target.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            let icmp = &buffer[offset.min(length)..length];
            if icmp.len() >= 8 && icmp[0] == reply && icmp[4..8] == bytes[4..8] {
                result.answered += 1;
                break;
            }
        }
    }
    Ok(())
}

/// Sends IP packets as they are: each a line of hex on standard input, from the network header on.
pub(crate) fn inject() -> Result<()> {
    // IPPROTO_RAW: the header is ours, for both families.
    let open = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
    let mut sockets: [Option<Socket>; 2] = [None, None];
    for line in io::stdin().lines() {
        let bytes = unhex(&line.context("read packets")?)?;
        let (slot, domain, destination) = match bytes.first().map(|byte| byte >> 4) {
            Some(4) if bytes.len() >= 20 => {
                (0, Domain::IPV4, IpAddr::from(*bytes[16..].first_chunk::<4>().context("short")?))
            }
            Some(6) if bytes.len() >= 40 => {
                (1, Domain::IPV6, IpAddr::from(*bytes[24..].first_chunk::<16>().context("short")?))
            }
            _ => bail!("neither IPv4 nor IPv6"),
        };
        let socket = match &mut sockets[slot] {
            Some(socket) => socket,
            empty => empty.insert(open(domain).context("open raw socket")?),
        };
        socket
            .send_to(&bytes, &SocketAddr::new(destination, 0).into())
            .with_context(|| format!("send to {destination}"))?;
    }
    Ok(())
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = |at| text.get(at..at + 2).context("odd number of hex digits");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(digits(at)?, 16).context("not hex")).collect()
}

/// Receives one packet into a buffer of plain bytes.
pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, socket2::SockAddr)> {
    // SAFETY: MaybeUninit<u8> has the layout of u8, and socket2 only writes initialised bytes into it.
    let slots: &mut [MaybeUninit<u8>] =
        unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), buffer.len()) };
    socket.recv_from(slots)
}
