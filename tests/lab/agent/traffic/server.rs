//! The one server: every TCP connection says in its first line what it wants, every datagram in its header.
//!
//! TCP: `who` answers the peer's address; `sink N HASH` takes N bytes and answers their SHA-256; `source N SEED`
//! sends N bytes; `echo` echoes; `stats KEY` answers what came of a flood. UDP: kind `E` is echoed with the
//! peer's address inside, `P` is echoed as it is, `F` is counted.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, Socket, Type};
use tests::packet::hex;
use tests::traffic::{DATAGRAM_HEADER, DATAGRAM_MAGIC, Flood};

use super::{pattern, plain};

/// A connection that stalls for longer is given up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Count {
    received: u64,
    duplicates: u64,
    /// One bit for each sequence number received.
    seen: Vec<u64>,
    reordered: u64,
    highest: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Sequence numbers from here on are not told apart: no flood is that long.
const SEQUENCE_LIMIT: u64 = 1 << 24;

impl Count {
    /// Whether this number came before; from now on it has.
    fn has_seen(&mut self, sequence: u64) -> bool {
        if sequence >= SEQUENCE_LIMIT {
            return false;
        }
        // Below 2^24 a sequence number fits every usize.
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let before = self.seen[word] & bit != 0;
        self.seen[word] |= bit;
        before
    }
}

type Counts = Arc<Mutex<HashMap<u64, Count>>>;

/// Serves TCP and UDP on one port of all addresses of both families, for ever.
pub(crate) fn serve(port: u16) -> Result<()> {
    let (tcp, udp) = bind(port)?;
    let counts = Counts::default();
    let port = tcp.local_addr().context("port")?.port();
    let datagrams = Arc::clone(&counts);
    std::thread::spawn(move || {
        if let Err(error) = serve_udp(&udp, &datagrams) {
            eprintln!("udp server: {error:#}");
        }
    });
    println!("listening {port}");
    for stream in tcp.incoming() {
        let (stream, counts) = (stream.context("accept")?, Arc::clone(&counts));
        std::thread::spawn(move || {
            if let Err(error) = serve_tcp(stream, &counts) {
                eprintln!("tcp server: {error:#}");
            }
        });
    }
    Ok(())
}

fn bind(port: u16) -> Result<(TcpListener, UdpSocket)> {
    let mut last = None;
    // With port 0 the port that TCP got may be taken for UDP.
    for _ in 0..16 {
        let tcp = open(Type::STREAM, Protocol::TCP, port)?;
        tcp.listen(1024).context("listen")?;
        let tcp = TcpListener::from(tcp);
        let got = tcp.local_addr().context("port")?.port();
        match open(Type::DGRAM, Protocol::UDP, got) {
            Ok(udp) => return Ok((tcp, udp.into())),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no port")?)
}

fn open(kind: Type, protocol: Protocol, port: u16) -> Result<Socket> {
    let make = |domain, address: SocketAddr| -> Result<Socket> {
        let socket = Socket::new(domain, kind, Some(protocol)).context("open socket")?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false).context("dual stack")?;
        }
        if kind == Type::STREAM {
            socket.set_reuse_address(true).context("reuse address")?;
        } else {
            let _ = socket.set_recv_buffer_size(4 << 20);
        }
        socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
        Ok(socket)
    };
    make(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_| make(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()))
}

fn serve_tcp(stream: TcpStream, counts: &Counts) -> Result<()> {
    let peer = plain(stream.peer_addr().context("peer")?);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let mut line = String::new();
    reader.read_line(&mut line).with_context(|| format!("request of {peer}"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["who"] => writeln!(writer, "{peer}")?,
        ["sink", bytes, hashing] => {
            let (received, hash) = sink(&mut reader, bytes.parse()?, *hashing == "hash")?;
            writeln!(writer, "{received} {hash}")?;
        }
        ["source", bytes, seed] => {
            source(&mut writer, bytes.parse()?, seed.parse()?)?;
        }
        ["echo"] => echo(&mut reader, &mut writer)?,
        ["stats", key] => {
            let flood = flood(counts, key.parse()?);
            writeln!(writer, "{}", serde_json::to_string(&flood)?)?;
        }
        [] => {}
        _ => bail!("unknown request of {peer}: {line:?}"),
    }
    Ok(())
}

/// Takes bytes; the hash is `-` if not asked for.
pub(super) fn sink(reader: &mut impl Read, bytes: u64, hashing: bool) -> Result<(u64, String)> {
    let (mut left, mut buffer, mut hash) = (bytes, vec![0; 256 * 1024], Sha256::new());
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = reader.read(&mut buffer[..want]).context("receive")?;
        if got == 0 {
            break;
        }
        if hashing {
            hash.update(&buffer[..got]);
        }
        left -= got as u64;
    }
    Ok((bytes - left, if hashing { hex(&hash.finalize()) } else { "-".into() }))
}

/// Sends bytes; with a seed of 0 all zero and unhashed, which is faster.
pub(super) fn source(writer: &mut impl Write, bytes: u64, seed: u64) -> Result<String> {
    let (mut left, mut buffer, mut hash) = (bytes, vec![0; 256 * 1024], Sha256::new());
    let mut fill = pattern(seed);
    while left > 0 {
        let now = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if seed != 0 {
            fill(&mut buffer[..now]);
            hash.update(&buffer[..now]);
        }
        writer.write_all(&buffer[..now]).context("send")?;
        left -= now as u64;
    }
    writer.flush()?;
    Ok(if seed == 0 { "-".into() } else { hex(&hash.finalize()) })
}

fn echo(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> Result<()> {
    loop {
        let bytes = reader.fill_buf().context("echo")?;
        if bytes.is_empty() {
            return Ok(());
        }
        writer.write_all(bytes)?;
        let length = bytes.len();
        reader.consume(length);
    }
}

fn flood(counts: &Counts, key: u64) -> Flood {
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(count) = counts.get(&key) else { return Flood::default() };
    let time = count.first.zip(count.last).map(|(first, last)| last - first).unwrap_or_default();
    let seconds = time.as_secs_f64();
    Flood {
        sent: 0,
        received: count.received,
        duplicates: count.duplicates,
        reordered: count.reordered,
        seconds,
        packets_per_second: if seconds > 0.0 { count.received as f64 / seconds } else { 0.0 },
    }
}

fn serve_udp(socket: &UdpSocket, counts: &Counts) -> Result<()> {
    let v6 = socket.local_addr()?.is_ipv6();
    if v6 {
        nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Ipv4PacketInfo, &true)?;
    }
    let mut buffer = vec![0; 65536];
    let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    loop {
        let (length, peer, v4_info, v6_info) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = match recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::empty(),
            ) {
                Ok(received) => received,
                Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNREFUSED) => continue,
                Err(errno) => return Err(errno).context("receive datagram"),
            };
            let (mut v4_info, mut v6_info) = (None, None);
            for message in received.cmsgs()? {
                match message {
                    ControlMessageOwned::Ipv4PacketInfo(info) => v4_info = Some(info),
                    ControlMessageOwned::Ipv6PacketInfo(info) => v6_info = Some(info),
                    _ => {}
                }
            }
            (received.bytes, received.address, v4_info, v6_info)
        };
        let Some(peer) = peer else { continue };
        if length < DATAGRAM_HEADER || &buffer[..4] != DATAGRAM_MAGIC {
            continue;
        }
        if buffer[4] == b'F' {
            count(counts, &buffer);
            continue;
        }
        if buffer[4] == b'E' {
            write_seen(&mut buffer[..length], &peer);
        }
        // The answer leaves from the address that was asked, whatever the route would prefer; the interface is
        // the routing table's business.
        let v4_info = v4_info.map(|info| libc::in_pktinfo { ipi_ifindex: 0, ..info });
        let v6_info = v6_info.map(|info| libc::in6_pktinfo { ipi6_ifindex: 0, ..info });
        let mut control = Vec::new();
        control.extend(v4_info.as_ref().map(ControlMessage::Ipv4PacketInfo));
        control.extend(v6_info.as_ref().map(ControlMessage::Ipv6PacketInfo));
        let answer = [IoSlice::new(&buffer[..length])];
        if let Err(errno) = sendmsg(socket.as_raw_fd(), &answer, &control, MsgFlags::empty(), Some(&peer)) {
            eprintln!("answer to a datagram: {errno}");
        }
    }
}

fn count(counts: &Counts, datagram: &[u8]) {
    let word = |at: usize| datagram[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let (key, sequence, now) = (word(5), word(13), Instant::now());
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(key).or_default();
    count.received += 1;
    if count.has_seen(sequence) {
        count.duplicates += 1;
    }
    if sequence < count.highest {
        count.reordered += 1;
    }
    count.highest = count.highest.max(sequence);
    count.first.get_or_insert(now);
    count.last = Some(now);
}

/// Puts the peer's address, length first, behind the header, as far as there is room.
fn write_seen(datagram: &mut [u8], peer: &SockaddrStorage) {
    let seen = peer
        .as_sockaddr_in6()
        .map(|address| SocketAddr::V6((*address).into()))
        .or_else(|| peer.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into())));
    let Some(seen) = seen else { return };
    let text = plain(seen).to_string();
    let room = &mut datagram[DATAGRAM_HEADER..];
    if room.len() > text.len() {
        // At most 47 bytes: an IPv6 address with brackets and port.
        room[0] = text.len() as u8;
        room[1..=text.len()].copy_from_slice(text.as_bytes());
    }
}
