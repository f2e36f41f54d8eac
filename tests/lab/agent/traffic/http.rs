//! HTTP GET, for the admin port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::traffic::Http;

use super::report;

/// One GET.
pub(crate) fn get(server: SocketAddr, path: &str, time: Duration) -> Result<()> {
    report(&ask(server, path, time)?)
}

/// Asks every 5 ms until the answer is 200 or the time is over; reports the last answer.
pub(crate) fn await_ok(server: SocketAddr, path: &str, time: Duration) -> Result<()> {
    let deadline = Instant::now() + time;
    loop {
        let answer = ask(server, path, Duration::from_secs(2));
        let over = Instant::now() >= deadline;
        match answer {
            Ok(http) if http.status == 200 || over => return report(&http),
            Err(error) if over => return Err(error),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn ask(server: SocketAddr, path: &str, time: Duration) -> Result<Http> {
    let mut stream =
        TcpStream::connect_timeout(&server, time).with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(time))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read the answer")?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of headers")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status code")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Ok(Http { status, body })
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        let Some(chunk) = after.get(..size).filter(|_| size > 0) else { break };
        body.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    body
}
