//! Stands before a real API server and does to its answers what a real one will not do on demand.
//!
//! It speaks plain HTTP and stands behind `kubectl proxy`'s door, which speaks TLS with the server; who asks shows its
//! own token. One connection, one request. It does harm to what concerns the list of Nodes only; all else goes through.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tests::traffic::{ApiHarm, ApiHarms};

/// How often a connection looks whether the harm has changed.
const LOOK: Duration = Duration::from_millis(20);

/// Longest head of a request or an answer.
const HEAD: usize = 64 * 1024;

#[derive(Default)]
struct State {
    harms: ApiHarms,
    /// Counts the changes: watches begun under an earlier one end if the new one says so.
    change: u64,
    lists: u64,
    watches: u64,
}

type Shared = Arc<Mutex<State>>;

/// Serves until standard input ends.
pub(crate) fn serve(listen: SocketAddr, server: SocketAddr) -> Result<()> {
    let stop = crate::traffic::told_to_stop();
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    listener.set_nonblocking(true)?;
    let state = Shared::default();
    println!("proxying");
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => {
                let state = Arc::clone(&state);
                std::thread::spawn(move || {
                    if let Err(error) = converse(&client, server, &state) {
                        eprintln!("{error:#}");
                    }
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(error) => return Err(error).context("accept"),
        }
    }
    Ok(())
}

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn converse(client: &TcpStream, server: SocketAddr, state: &Shared) -> Result<()> {
    client.set_nonblocking(false)?;
    let Some((head, body)) = read_message(client)? else { return Ok(()) };
    let line = head.lines().next().context("an empty request")?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if let Some(harms) = target.strip_prefix("/-/harm?") {
        let mut state = lock(state);
        state.harms = serde_json::from_str(&unhex(harms)?).context("harms")?;
        state.change += 1;
        return answer(client, 200, &json!({}));
    }
    if target == "/-/counts" {
        let (lists, watches) = {
            let state = lock(state);
            (state.lists, state.watches)
        };
        return answer(client, 200, &json!([lists, watches]));
    }
    let is_nodes = method == "GET" && target.split('?').next() == Some("/api/v1/nodes");
    let is_watch = is_nodes && target.contains("watch=");
    let (harm, change) = {
        let mut state = lock(state);
        state.lists += u64::from(is_nodes && !is_watch);
        state.watches += u64::from(is_watch);
        let harms = &state.harms;
        let harm = match (is_nodes, is_watch) {
            (true, true) => harms.watches.clone(),
            (true, false) => harms.lists.clone(),
            _ => harms.others.clone(),
        };
        (harm, state.change)
    };
    match harm {
        ApiHarm::None
        | ApiHarm::Slow(_)
        | ApiHarm::Empty
        | ApiHarm::Short(_)
        | ApiHarm::Truncated
        | ApiHarm::GoneOnce => {}
        ApiHarm::Cut => return Ok(()),
        ApiHarm::Stall => return stall(client, state, change),
        ApiHarm::Status(code) => return answer(client, code, &status(code)),
        ApiHarm::Gone => return answer(client, 410, &status(410)),
    }
    let upstream = ask(server, &head, &body)?;
    if let ApiHarm::Slow(ms) = harm {
        std::thread::sleep(Duration::from_millis(ms));
    }
    if is_watch { watch(client, &upstream, state, change) } else { pass(client, &upstream, &harm) }
}

/// Hex, so that no byte of it means anything to HTTP.
fn unhex(text: &str) -> Result<String> {
    let bytes =
        (0..text.len() / 2).map(|at| u8::from_str_radix(text.get(at * 2..at * 2 + 2).unwrap_or("x"), 16));
    Ok(String::from_utf8(bytes.collect::<Result<_, _>>()?)?)
}

/// The same request in HTTP/1.0: the answer then ends with the connection and comes in one piece.
fn ask(server: SocketAddr, head: &str, body: &[u8]) -> Result<TcpStream> {
    let mut upstream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default().replace("HTTP/1.1", "HTTP/1.0");
    let kept = lines.filter(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        !line.is_empty() && !matches!(name.as_str(), "connection" | "host")
    });
    let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
    write!(upstream, "{first}\r\nHost: 127.0.0.1\r\n{kept}Connection: close\r\n\r\n")?;
    upstream.write_all(body)?;
    Ok(upstream)
}

/// Head and body of a request; the head without its empty line.
fn read_message(mut stream: &TcpStream) -> Result<Option<(String, Vec<u8>)>> {
    let Some((head, mut body)) = read_head(stream)? else { return Ok(None) };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let missing = length.unwrap_or(0).saturating_sub(body.len());
    let mut rest = vec![0; missing];
    stream.read_exact(&mut rest).context("read the body of a request")?;
    body.extend(rest);
    Ok(Some((head, body)))
}

/// A head, and what of the body came with it.
fn read_head(mut stream: &TcpStream) -> Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            bytes.truncate(end);
            return Ok(Some((String::from_utf8(bytes)?, body)));
        }
        if bytes.len() > HEAD {
            bail!("a head without an end");
        }
    }
}

/// What the API server says of itself when it fails.
fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Injected",
        "message": "injected by the test"})
}

fn answer(mut client: &TcpStream, code: u16, body: &Value) -> Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

/// Holds the connection and says nothing until the harm changes.
fn stall(client: &TcpStream, state: &Shared, change: u64) -> Result<()> {
    client.set_read_timeout(Some(LOOK))?;
    while lock(state).change == change {
        if has_ended(client) {
            return Ok(());
        }
    }
    Ok(())
}

fn has_ended(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

/// An answer as a whole, perhaps maimed.
fn pass(mut client: &TcpStream, mut upstream: &TcpStream, harm: &ApiHarm) -> Result<()> {
    let (head, mut body) = read_head(upstream)?.context("the API server closed without an answer")?;
    upstream.read_to_end(&mut body).context("read the answer")?;
    let code = head.split(' ').nth(1).and_then(|word| word.parse::<u16>().ok()).context("no status code")?;
    let announced = body.len();
    let sent = match harm {
        ApiHarm::Truncated => body.get(..announced / 2).unwrap_or_default().to_vec(),
        ApiHarm::Empty => shorten(&body, 0)?,
        ApiHarm::Short(count) => shorten(&body, *count)?,
        _ => body,
    };
    let length = if matches!(harm, ApiHarm::Truncated) { announced } else { sent.len() };
    write!(
        client,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    client.write_all(&sent)?;
    Ok(())
}

/// A list of the first items only, well-formed.
fn shorten(body: &[u8], count: usize) -> Result<Vec<u8>> {
    let mut list: Value = serde_json::from_slice(body).context("a list")?;
    if let Some(items) = list["items"].as_array_mut() {
        items.truncate(count);
    }
    Ok(list.to_string().into_bytes())
}

/// Passes the events of a watch on, as long as nothing else is wished.
fn watch(mut client: &TcpStream, mut upstream: &TcpStream, state: &Shared, mut change: u64) -> Result<()> {
    upstream.set_read_timeout(Some(Duration::from_secs(70)))?;
    let (head, mut body) = read_head(upstream)?.context("the API server closed without an answer")?;
    let code = head.split(' ').nth(1).unwrap_or("500");
    write!(client, "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
    client.write_all(&body)?;
    upstream.set_read_timeout(Some(LOOK))?;
    body.resize(16 * 1024, 0);
    loop {
        match upstream.read(&mut body) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                if let ApiHarm::Slow(ms) = lock(state).harms.watches {
                    std::thread::sleep(Duration::from_millis(ms));
                }
                client.write_all(body.get(..count).unwrap_or_default())?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("read the watch"),
        }
        let harm = {
            let mut state = lock(state);
            if state.change == change {
                continue;
            }
            change = state.change;
            let harm = state.harms.watches.clone();
            if harm == ApiHarm::GoneOnce {
                state.harms.watches = ApiHarm::None;
            }
            harm
        };
        match harm {
            ApiHarm::Cut | ApiHarm::Status(_) => return Ok(()),
            ApiHarm::Stall => return stall(client, state, change),
            ApiHarm::Gone | ApiHarm::GoneOnce => {
                let event = json!({"type": "ERROR", "object": status(410)});
                writeln!(client, "{event}")?;
                return Ok(());
            }
            _ => {}
        }
    }
}
