//! The other end. The first line of a TCP connection says what it wants: `take KEY BEGIN END`, `give END`, `touch`,
//! `window KEY BEGIN END`, `count KEY`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::{CHUNK, COUNTED, DATAGRAM, ECHOED, Window, now};

/// What one load has brought so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Count {
    pub(super) bytes: u64,
    pub(super) received: u64,
    pub(super) in_window: u64,
    pub(super) reordered: u64,
    #[serde(skip)]
    next: u64,
    #[serde(skip)]
    window: Window,
}

type Counts = Arc<Mutex<HashMap<u64, Count>>>;

fn entry<T>(counts: &Counts, key: u64, change: impl FnOnce(&mut Count) -> T) -> T {
    change(counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default())
}

/// Serves TCP and UDP on one port, for ever.
pub(crate) fn serve() -> Result<()> {
    let tcp = TcpListener::from(open(Type::STREAM, Protocol::TCP, 0)?);
    let port = tcp.local_addr().context("port")?.port();
    let udp = UdpSocket::from(open(Type::DGRAM, Protocol::UDP, port)?);
    let counts = Counts::default();
    let datagrams = Arc::clone(&counts);
    std::thread::spawn(move || serve_udp(&udp, &datagrams));
    println!("listening {port}");
    for stream in tcp.incoming() {
        let (stream, counts) = (stream.context("accept")?, Arc::clone(&counts));
        std::thread::spawn(move || {
            if let Err(error) = serve_tcp(stream, &counts) {
                eprintln!("load server: {error:#}");
            }
        });
    }
    Ok(())
}

fn open(kind: Type, protocol: Protocol, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol)).context("open socket")?;
    socket.set_only_v6(false).context("dual stack")?;
    if kind == Type::DGRAM {
        // The receiver is not what is measured.
        if setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).is_err() {
            socket.set_recv_buffer_size(16 << 20)?;
        }
    }
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
    if kind == Type::STREAM {
        use_cubic(&socket)?;
        socket.listen(1024).context("listen")?;
    }
    Ok(socket)
}

/// The host's default may be one that paces. What a connection once began with leaves its pacing behind, so this comes before the
/// connection; accepted ones inherit it.
pub(super) fn use_cubic(socket: &Socket) -> Result<()> {
    socket.set_tcp_congestion(b"cubic").context("use cubic")
}

fn serve_tcp(mut stream: TcpStream, counts: &Counts) -> Result<()> {
    let mut line = String::new();
    // Unbuffered beyond the line: at most some bytes of a bulk transfer are skipped, before its window.
    BufReader::with_capacity(256, &stream).read_line(&mut line).context("request")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["touch"] => stream.write_all(b"!")?,
        ["take", key, begin, end] => {
            let window = Window { begin: begin.parse()?, end: end.parse()? };
            let (key, bytes) = (key.parse()?, window.drain(&stream));
            entry(counts, key, |count| count.bytes += bytes);
        }
        ["give", end] => {
            let (end, buffer) = (end.parse::<u64>()?, vec![0; CHUNK]);
            while now() < end && stream.write_all(&buffer).is_ok() {}
        }
        ["window", key, begin, end] => {
            let window = Window { begin: begin.parse()?, end: end.parse()? };
            entry(counts, key.parse()?, |count| count.window = window);
            stream.write_all(b"!")?;
        }
        ["count", key] => {
            let count = entry(counts, key.parse()?, |count| count.clone());
            serde_json::to_writer(&stream, &count)?;
        }
        // A connection that was opened and left.
        [] => {}
        _ => bail!("unknown request {line:?}"),
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, counts: &Counts) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let datagram = &buffer[..length];
        match datagram.first() {
            Some(&ECHOED) => {
                let _ = socket.send_to(datagram, from);
            }
            Some(&COUNTED) if length >= DATAGRAM => {
                let word =
                    |at: usize| datagram[at..].first_chunk().map_or(0, |word| u64::from_be_bytes(*word));
                let (key, sequence, now) = (word(1), word(9), now());
                entry(counts, key, |count| {
                    count.received += 1;
                    count.in_window += u64::from(count.window.holds(now));
                    if sequence < count.next {
                        count.reordered += 1;
                    }
                    count.next = count.next.max(sequence + 1);
                });
            }
            _ => {}
        }
    }
}
