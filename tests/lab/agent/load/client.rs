//! The end that makes the load.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tests::load::{Datagrams, Direction, Load, Measured, Outcome, QUANTILES, Work};

use super::server::{Count, use_cubic};
use super::usage::Meter;
use super::{CHUNK, COUNTED, DATAGRAM, ECHOED, Window, now, sleep_until};
use crate::traffic::report;

/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Payload of a round trip in bytes.
const ECHO: usize = 64;
/// Pause between two bursts of a paced stream.
const BURST: Duration = Duration::from_micros(250);

/// Runs a load and prints what came of it.
pub(crate) fn run(load: &Load) -> Result<()> {
    if let Some(cpu) = load.cpu {
        super::usage::pin_thread(Some(cpu), None)?;
    }
    let meter = Meter::open(&load.watch, load.count_syscalls)?;
    let begin = now() + load.warm_up.as_nanos() as u64;
    let window = Window { begin, end: begin + load.window.as_nanos() as u64 };
    let key = fastrand::u64(..);
    let running = start(load, window, key)?;
    sleep_until(window.begin);
    let before = meter.sample()?;
    sleep_until(window.end);
    let usage = meter.sample()?.since(&before);
    let outcome = running.finish(load.server, key)?;
    report(&Measured { outcome, usage })
}

/// The threads of a load.
enum Running {
    Upload(Vec<JoinHandle<()>>),
    Download(Vec<JoinHandle<Result<u64>>>),
    Datagrams(JoinHandle<u64>),
    RoundTrips(JoinHandle<Result<Vec<u64>>>),
    Connections(JoinHandle<Result<u64>>),
    Idle,
}

fn start(load: &Load, window: Window, key: u64) -> Result<Running> {
    let server = load.server;
    Ok(match load.work {
        Work::Tcp { streams, direction: Direction::Up } => {
            let opened: Result<Vec<TcpStream>> = (0..streams).map(|_| connect(server)).collect();
            let order = format!("take {key} {} {}\n", window.begin, window.end);
            let spawn = |mut stream: TcpStream| {
                let order = order.clone();
                std::thread::spawn(move || {
                    let buffer = vec![0; CHUNK];
                    // The server closes at the end of the window.
                    let _ = stream.write_all(order.as_bytes());
                    while now() < window.end && stream.write_all(&buffer).is_ok() {}
                })
            };
            Running::Upload(opened?.into_iter().map(spawn).collect())
        }
        Work::Tcp { streams, direction: Direction::Down } => {
            let opened: Result<Vec<TcpStream>> = (0..streams).map(|_| connect(server)).collect();
            let spawn = |stream| std::thread::spawn(move || download(stream, window));
            Running::Download(opened?.into_iter().map(spawn).collect())
        }
        Work::Udp { size, per_second } => {
            let mut control = connect(server)?;
            writeln!(control, "window {key} {} {}", window.begin, window.end)?;
            control.read_exact(&mut [0]).context("announce a stream of datagrams")?;
            let socket = datagrams_to(server)?;
            Running::Datagrams(std::thread::spawn(move || {
                let mut bytes = vec![0; size.max(DATAGRAM)];
                bytes[0] = COUNTED;
                bytes[1..9].copy_from_slice(&key.to_be_bytes());
                pour(&socket, bytes, per_second, window.end)
            }))
        }
        Work::RoundTrips => {
            let socket = datagrams_to(server)?;
            Running::RoundTrips(std::thread::spawn(move || round_trips(&socket, window)))
        }
        Work::Connections => Running::Connections(std::thread::spawn(move || connections(server, window))),
        Work::Idle => Running::Idle,
    })
}

impl Running {
    fn finish(self, server: SocketAddr, key: u64) -> Result<Outcome> {
        fn join<T>(thread: JoinHandle<T>) -> Result<T> {
            thread.join().map_err(|_| anyhow!("a thread of the load panicked; its message is above"))
        }
        match self {
            Self::Upload(threads) => {
                for thread in threads {
                    join(thread)?;
                }
                let bytes = settled(server, key, |count| count.bytes)?.bytes;
                ensure!(bytes > 0, "nothing arrived at {server}");
                Ok(Outcome::Bytes(bytes))
            }
            Self::Download(threads) => {
                let mut bytes = 0;
                for thread in threads {
                    bytes += join(thread)??;
                }
                ensure!(bytes > 0, "nothing arrived from {server}");
                Ok(Outcome::Bytes(bytes))
            }
            Self::Datagrams(thread) => {
                let sent = join(thread)?;
                let count = settled(server, key, |count| count.received)?;
                let Count { received, in_window, reordered, .. } = count;
                Ok(Outcome::Datagrams(Datagrams { sent, received, in_window, reordered }))
            }
            Self::RoundTrips(thread) => {
                let mut times = join(thread)??;
                ensure!(!times.is_empty(), "no datagram came back from {server}");
                times.sort_unstable();
                let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize] as f64 / 1e3;
                let points = (0..QUANTILES).map(|point| at(point as f64 / (QUANTILES - 1) as f64));
                let (count, p999_us) = (times.len() as u64, at(0.999));
                Ok(Outcome::RoundTrips { count, quantiles_us: points.collect(), p999_us })
            }
            Self::Connections(thread) => Ok(Outcome::Connections(join(thread)??)),
            Self::Idle => Ok(Outcome::Idle),
        }
    }
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let socket =
        Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP)).context("open")?;
    use_cubic(&socket)?;
    socket.connect_timeout(&server.into(), PATIENCE).with_context(|| format!("connect to {server}"))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn datagrams_to(server: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr =
        if server.is_ipv4() { ([0; 4], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).context("open a datagram socket")?;
    socket.connect(server).with_context(|| format!("connect to {server}"))?;
    Ok(socket)
}

/// What the server has counted, once it stands still.
fn settled(server: SocketAddr, key: u64, value: impl Fn(&Count) -> u64) -> Result<Count> {
    let mut last = None;
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let mut control = connect(server)?;
        writeln!(control, "count {key}")?;
        control.set_read_timeout(Some(PATIENCE))?;
        let count: Count = serde_json::from_reader(&control).context("the server's count")?;
        let now = value(&count);
        if last == Some(now) {
            return Ok(count);
        }
        last = Some(now);
    }
}

fn download(mut stream: TcpStream, window: Window) -> Result<u64> {
    writeln!(stream, "give {}", window.end)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(window.drain(&stream))
}

/// Sends until the end; how many.
fn pour(socket: &UdpSocket, mut bytes: Vec<u8>, per_second: u64, end: u64) -> u64 {
    // Or a short sleep would take 50 us more.
    let _ = nix::sys::prctl::set_timerslack(1);
    let (begin, mut sent) = (now(), 0_u64);
    loop {
        let time = now();
        if time >= end {
            return sent;
        }
        let due = match per_second {
            // A refusal (full queue, ICMP) is a loss like any other.
            0 => sent + 64,
            rate => ((time - begin) as f64 / 1e9 * rate as f64) as u64,
        };
        while sent < due {
            bytes[9..17].copy_from_slice(&sent.to_be_bytes());
            let _ = socket.send(&bytes);
            sent += 1;
        }
        if per_second > 0 {
            std::thread::sleep(BURST);
        }
    }
}

fn round_trips(socket: &UdpSocket, window: Window) -> Result<Vec<u64>> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let (mut times, mut buffer, mut number) = (Vec::new(), [0; ECHO], 0_u64);
    loop {
        let begin = now();
        if begin >= window.end {
            return Ok(times);
        }
        number += 1;
        let mut bytes = [ECHOED; ECHO];
        bytes[9..17].copy_from_slice(&number.to_be_bytes());
        socket.send(&bytes).context("send")?;
        while let Ok(length) = socket.recv(&mut buffer) {
            if buffer[..length] == bytes {
                if window.holds(begin) {
                    times.push(now() - begin);
                }
                break;
            }
        }
    }
}

fn connections(server: SocketAddr, window: Window) -> Result<u64> {
    let mut opened = 0;
    while now() < window.end {
        let mut stream = connect(server)?;
        // Closes by a reset, or ports would wait for a minute each.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        stream.write_all(b"touch\n")?;
        stream.read_exact(&mut [0]).context("one byte")?;
        opened += u64::from(window.holds(now()));
    }
    Ok(opened)
}
