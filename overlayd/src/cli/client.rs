//! Asks the daemon over its admin socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::core::status::Status;
use crate::edge::admin;

/// Largest answer in bytes.
const ANSWER_LIMIT: u64 = 64 << 20;

/// Fetches the snapshot, within `limit` whatever the daemon does.
///
/// # Errors
/// If the daemon is not there, hangs, or answers something else.
pub(super) fn fetch_status(run_dir: &Path, limit: Duration) -> Result<Status> {
    let body = ask(run_dir, "GET /status HTTP/1.0".to_owned(), limit)?;
    serde_json::from_str(&body).context("overlayd answered something that is not a status")
}

/// Asks the daemon that runs to hand over, within `limit`. Once it has, its lock is free.
///
/// # Errors
/// If it is not there, hangs, or does not know how.
pub(super) fn ask_to_hand_over(run_dir: &Path, limit: Duration) -> Result<()> {
    let request = format!("POST {} HTTP/1.0\r\nContent-Length: 0", admin::HAND_OVER);
    ask(run_dir, request, limit).map(drop)
}

/// Asks in a thread of its own, which ends with the process: connecting to a full listen queue blocks without limit.
fn ask(run_dir: &Path, request: String, limit: Duration) -> Result<String> {
    let socket = run_dir.join(admin::SOCKET_FILE);
    let (done, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(exchange(&socket, &request));
    });
    let late = |_| anyhow!("overlayd did not answer within {} ms", limit.as_millis());
    answer.recv_timeout(limit).map_err(late)?
}

fn exchange(socket: &Path, request: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    stream.write_all(format!("{request}\r\n\r\n").as_bytes()).context("ask overlayd")?;
    let mut answer = String::new();
    stream.take(ANSWER_LIMIT).read_to_string(&mut answer).context("read the answer of overlayd")?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("overlayd's answer was cut off") };
    match head.split_whitespace().nth(1) {
        Some("200" | "202") => Ok(body.to_owned()),
        _ => bail!("overlayd answered {}", head.lines().next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_daemon_that_hangs_costs_no_more_than_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let _silent = UnixListener::bind(directory.path().join(admin::SOCKET_FILE)).unwrap();
        let start = Instant::now();
        let error = fetch_status(directory.path(), Duration::from_millis(100)).unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(900));
        assert!(error.to_string().contains("did not answer"), "{error}");
    }

    #[test]
    fn an_absent_daemon_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let error = fetch_status(directory.path(), Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().contains("connect"), "{error}");
    }
}
