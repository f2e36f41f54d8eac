//! UDP clients.

use std::io::{BufRead, BufReader, ErrorKind, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use tests::traffic::{DATAGRAM_HEADER, DATAGRAM_MAGIC, Flood, IcmpError, Rtt, Stream, UdpProbe};

use super::{report, told_to_stop};

/// `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6` of `linux/errqueue.h`.
const ORIGIN_ICMP: [u8; 2] = [2, 3];

fn connect(server: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).context("open UDP socket")?;
    socket.connect(server).with_context(|| format!("connect to {server}"))?;
    Ok(socket)
}

fn datagram(kind: u8, key: u64, sequence: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size.max(DATAGRAM_HEADER)];
    bytes[..4].copy_from_slice(DATAGRAM_MAGIC);
    bytes[4] = kind;
    bytes[5..13].copy_from_slice(&key.to_be_bytes());
    bytes[13..21].copy_from_slice(&sequence.to_be_bytes());
    bytes
}

/// What to probe with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) size: usize,
    pub(crate) count: u32,
    pub(crate) time: Duration,
}

/// Whether the network may fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fragments {
    /// Don't-fragment is set.
    Forbidden,
    /// It is not.
    Allowed,
}

fn set_fragments(socket: &UdpSocket, fragments: Fragments) -> Result<()> {
    let v4 = match fragments {
        Fragments::Forbidden => libc::IP_PMTUDISC_DO,
        Fragments::Allowed => libc::IP_PMTUDISC_DONT,
    };
    // The values of IPV6_MTU_DISCOVER are the same.
    let (level, option) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    // SAFETY: the option's value is one int, which lives across the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const v4).cast(), size_of_val(&v4) as u32)
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("set path MTU discovery");
    }
    Ok(())
}

/// Echoes of one size, one after the other, each sent until answered or refused. `time` is for each.
pub(crate) fn probe(server: SocketAddr, fragments: Fragments, what: Probe) -> Result<()> {
    let mut result = UdpProbe::default();
    if let Err(error) = run_probe(server, fragments, what, &mut result) {
        result.error = Some(format!("{error:#}"));
    }
    report(&result)
}

fn run_probe(server: SocketAddr, fragments: Fragments, what: Probe, result: &mut UdpProbe) -> Result<()> {
    let socket = connect(server)?;
    set_fragments(&socket, fragments)?;
    if server.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    }
    let mut buffer = vec![0; 65536];
    for number in 0..what.count {
        let bytes = datagram(b'E', 0, number.into(), what.size);
        match socket.send(&bytes) {
            Ok(_) => result.sent += 1,
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                read_errors(&socket, result)?;
                continue;
            }
            // An ICMP error of an earlier datagram: it is in the queue.
            Err(_) => {
                read_errors(&socket, result)?;
                continue;
            }
        }
        let deadline = Instant::now() + what.time;
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(length) if length == bytes.len() && buffer[13..21] == bytes[13..21] => {
                    result.answered += 1;
                    result.seen = result.seen.or_else(|| read_seen(&buffer[..length]));
                    break;
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => {
                    if read_errors(&socket, result)? > 0 {
                        break;
                    }
                }
            }
        }
        read_errors(&socket, result)?;
    }
    Ok(())
}

fn read_seen(datagram: &[u8]) -> Option<SocketAddr> {
    let rest = datagram.get(DATAGRAM_HEADER..)?;
    let length = usize::from(*rest.first()?);
    std::str::from_utf8(rest.get(1..=length)?).ok()?.parse().ok()
}

/// Empties the error queue; the number of entries found.
fn read_errors(socket: &UdpSocket, result: &mut UdpProbe) -> Result<usize> {
    let mut found = 0;
    loop {
        let (mut payload, mut space) =
            ([0; 2048], nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6));
        let mut slices = [IoSliceMut::new(&mut payload)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let received = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Ok(received) => received,
            Err(nix::errno::Errno::EAGAIN) => return Ok(found),
            Err(errno) => return Err(errno).context("read the error queue"),
        };
        for message in received.cmsgs()? {
            let (error, from) = match message {
                ControlMessageOwned::Ipv4RecvErr(error, from) => {
                    (error, from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes())))
                }
                ControlMessageOwned::Ipv6RecvErr(error, from) => {
                    (error, from.map(|from| IpAddr::from(from.sin6_addr.s6_addr)))
                }
                _ => continue,
            };
            found += 1;
            let too_big = error.ee_errno == libc::EMSGSIZE as u32;
            if ORIGIN_ICMP.contains(&error.ee_origin) {
                result.icmp.push(IcmpError {
                    from,
                    kind: error.ee_type,
                    code: error.ee_code,
                    mtu: too_big.then_some(error.ee_info),
                });
            } else if too_big {
                result.local_too_big = Some(error.ee_info);
            }
        }
    }
}

/// A one-way stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pour {
    pub(crate) size: usize,
    pub(crate) packets: u64,
    /// 0 means as fast as it goes.
    pub(crate) per_second: u64,
}

/// Sends, waits until the server's count stands still, reports both.
pub(crate) fn flood(server: SocketAddr, pour: Pour) -> Result<()> {
    let socket = connect(server)?;
    let (key, start) = (fastrand::u64(..), Instant::now());
    let mut bytes = datagram(b'F', key, 0, pour.size);
    let mut sent = 0_u64;
    for number in 0..pour.packets {
        bytes[13..21].copy_from_slice(&number.to_be_bytes());
        // A refusal (full queue, ICMP) is a loss like any other.
        let _ = socket.send(&bytes);
        sent += 1;
        if pour.per_second > 0 {
            let due = Duration::from_secs_f64(sent as f64 / pour.per_second as f64);
            let early = due.saturating_sub(start.elapsed());
            if early > Duration::from_micros(500) {
                std::thread::sleep(early);
            }
        }
    }
    let mut flood = Flood::default();
    // What is still in queues needs a moment; two equal readings 50 ms apart end it.
    for _ in 0..100 {
        let before = flood.received;
        flood = stats(server, key)?;
        if flood.received >= sent || (flood.received > 0 && flood.received == before) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    flood.sent = sent;
    report(&flood)
}

fn stats(server: SocketAddr, key: u64) -> Result<Flood> {
    let time = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&server, time).context("ask for the count")?;
    stream.set_read_timeout(Some(time))?;
    writeln!(stream, "stats {key}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the count")?;
    serde_json::from_str(&line).with_context(|| format!("the count {line:?}"))
}

/// One echo per interval until standard input ends; an echo that is not there by the next one is lost.
pub(crate) fn stream(server: SocketAddr, interval: Duration, patience: Duration) -> Result<()> {
    let stop = told_to_stop();
    let socket = connect(server)?;
    let (mut result, mut buffer) = (Stream::default(), [0; 2048]);
    let mut last = Instant::now();
    println!("streaming");
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let bytes = datagram(b'P', 0, result.sent, 64);
        let sending = socket.send(&bytes);
        result.sent += 1;
        let deadline = begin + patience;
        while sending.is_ok() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(length) if buffer[..length] == bytes[..] => {
                    result.answered += 1;
                    let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
                    result.longest_gap_ms = result.longest_gap_ms.max(gap);
                    last = Instant::now();
                    println!("echo {}", result.answered);
                    break;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        std::thread::sleep(interval.saturating_sub(begin.elapsed()));
    }
    report(&result)
}

/// Ping-pong of small datagrams.
pub(crate) fn rtt(server: SocketAddr, count: u32) -> Result<()> {
    let socket = connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut times, mut buffer) = (Vec::new(), [0; 2048]);
    for number in 0..count {
        let bytes = datagram(b'P', 0, number.into(), 64);
        let begin = Instant::now();
        socket.send(&bytes).context("send")?;
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) if buffer[..length] == bytes[..] => {
                    times.push(begin.elapsed().as_secs_f64() * 1e6);
                    break;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    if times.is_empty() {
        bail!("no datagram of {count} came back from {server}");
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    report(&Rtt { count: times.len() as u32, p50_us: at(0.5), p99_us: at(0.99) })
}
