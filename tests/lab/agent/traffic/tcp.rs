//! TCP clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::traffic::{Bulk, Stream, TcpAnswer};

use super::server::{sink, source};
use super::{report, told_to_stop};

fn connect(server: SocketAddr, time: Duration) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, time).with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(time))?;
    stream.set_write_timeout(Some(time))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks the server which address it sees.
pub(crate) fn who(server: SocketAddr, time: Duration) -> Result<()> {
    let mut local = None;
    let mut ask = || -> Result<SocketAddr> {
        let mut stream = connect(server, time)?;
        local = stream.local_addr().ok();
        writeln!(stream, "who")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).context("answer")?;
        line.trim().parse().with_context(|| format!("answer {line:?}"))
    };
    let answer = match ask() {
        Ok(seen) => TcpAnswer { ok: true, seen: Some(seen), local, error: None },
        Err(error) => TcpAnswer { ok: false, seen: None, local, error: Some(format!("{error:#}")) },
    };
    report(&answer)
}

/// Which way a bulk transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// From here to the server.
    Up,
    /// From the server to here.
    Down,
}

/// Moves many bytes. A seed of 0 means zeroes and no hashing: for throughput.
pub(crate) fn bulk(server: SocketAddr, bytes: u64, way: Way, seed: u64, time: Duration) -> Result<()> {
    let mut stream = connect(server, time)?;
    let start = Instant::now();
    let (sent_sha256, received, received_sha256, seconds);
    match way {
        Way::Up => {
            writeln!(stream, "sink {bytes} {}", if seed == 0 { "-" } else { "hash" })?;
            sent_sha256 = source(&mut stream, bytes, seed)?;
            stream.shutdown(Shutdown::Write)?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).context("answer")?;
            let (count, hash) = line.trim().split_once(' ').with_context(|| format!("answer {line:?}"))?;
            received = count.parse()?;
            received_sha256 = hash.to_owned();
            seconds = start.elapsed().as_secs_f64();
        }
        Way::Down => {
            writeln!(stream, "source {bytes} {seed}")?;
            (received, received_sha256) = sink(&mut stream, bytes, seed != 0)?;
            seconds = start.elapsed().as_secs_f64();
            sent_sha256 = source(&mut std::io::sink(), if seed == 0 { 0 } else { bytes }, seed)?;
        }
    }
    ensure!(received > 0 || bytes == 0, "nothing arrived");
    let gbit_per_second = received as f64 * 8.0 / seconds / 1e9;
    report(&Bulk { bytes: received, seconds, gbit_per_second, sent_sha256, received_sha256 })
}

/// One echo per interval on one connection until standard input ends; an echo may be `patience` late.
pub(crate) fn stream(server: SocketAddr, interval: Duration, patience: Duration) -> Result<()> {
    let stop = told_to_stop();
    let mut report_value = Stream::default();
    let run = |report_value: &mut Stream| -> Result<()> {
        let mut stream = connect(server, patience)?;
        writeln!(stream, "echo")?;
        println!("streaming");
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let (begin, number) = (Instant::now(), report_value.sent.to_be_bytes());
            stream.write_all(&number).context("send")?;
            report_value.sent += 1;
            let mut back = [0; 8];
            stream.read_exact(&mut back).context("receive")?;
            ensure!(back == number, "the stream is out of step: sent {number:?}, got {back:?}");
            report_value.answered += 1;
            let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
            report_value.longest_gap_ms = report_value.longest_gap_ms.max(gap);
            last = Instant::now();
            println!("echo {}", report_value.answered);
            std::thread::sleep(interval.saturating_sub(begin.elapsed()));
        }
        Ok(())
    };
    if let Err(error) = run(&mut report_value) {
        report_value.error = Some(format!("{error:#}"));
    }
    report(&report_value)
}
