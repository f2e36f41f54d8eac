//! One request to the daemon: connect, write, read, each bounded by one deadline.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use wire::ipc::{FrameError, HEADER_LEN, RefusalKind, Reply, Request, decode, decode_header, encode};

use crate::error::{CniError, Code};

/// How long a daemon that is absent or not ready yet is waited for: a restart takes less.
const RESTART_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two attempts. Nothing tells when a socket begins to listen or a daemon is ready.
const RESTART_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("{0}")]
    Connect(io::Error),
    /// The connection broke or the time ran out before the reply was whole.
    #[error("no reply: {0}")]
    Reply(io::Error),
    /// The reply is not one.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl CallError {
    /// Whether a daemon that is just restarting explains it.
    fn may_pass(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Reply(error) => {
                !matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
            }
            Self::Frame(_) => false,
        }
    }
}

/// Asks once.
///
/// # Errors
/// See [`CallError`].
pub fn call_once(socket: &Path, request: &Request, deadline: Instant) -> Result<Reply, CallError> {
    let frame = encode(request)?;
    let mut stream = open(socket, deadline).map_err(CallError::Connect)?;
    exchange(&mut stream, &frame, deadline).map_err(|error| match error {
        CallError::Reply(error) => CallError::Reply(in_words(error)),
        other => other,
    })
}

/// Asks, and while the daemon is absent, goes away or is not ready yet asks again for a while.
///
/// # Errors
/// Code 11 if it cannot be reached or does not answer, 102 if its answer makes no sense.
pub fn call(socket: &Path, request: &Request, deadline: Instant) -> Result<Reply, CniError> {
    let give_up = deadline.min(Instant::now() + RESTART_PATIENCE);
    loop {
        let outcome = call_once(socket, request, deadline);
        let may_pass = match &outcome {
            Ok(reply) => matches!(reply, Reply::Refused { kind: RefusalKind::NotReady, .. }),
            Err(error) => error.may_pass(),
        };
        if may_pass && Instant::now() + RESTART_PAUSE < give_up {
            thread::sleep(RESTART_PAUSE);
            continue;
        }
        match outcome {
            Ok(reply) => return Ok(reply),
            Err(CallError::Frame(error)) => {
                let message = format!("overlayd on {} answers nonsense: {error}", socket.display());
                return Err(CniError::new(Code::Daemon, message));
            }
            Err(error) => {
                let message = format!("overlayd is not reachable on {}: {error}", socket.display());
                return Err(CniError::new(Code::TryAgainLater, message)
                    .with_details("is the overlayd daemon of this node running?"));
            }
        }
    }
}

/// A refusal as CNI knows it.
#[must_use]
pub fn refused(kind: RefusalKind, message: &str) -> CniError {
    let code = match kind {
        RefusalKind::NotReady | RefusalKind::Exhausted => Code::TryAgainLater,
        RefusalKind::Invalid => Code::InvalidConfig,
        RefusalKind::Mismatch => Code::Mismatch,
        RefusalKind::Internal => Code::Daemon,
        RefusalKind::Impaired => Code::Impaired,
    };
    CniError::new(code, format!("overlayd refuses: {message}"))
}

fn open(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connecting waits for room in a full backlog, as long as the send timeout lets it (`unix_stream_connect`).
    set_socket_timeout(&socket, Timeout::Send, Some(remaining(deadline)?))?;
    connect(&socket, &SocketAddrUnix::new(path)?).map_err(|errno| in_words(errno.into()))?;
    Ok(socket.into())
}

fn exchange(stream: &mut UnixStream, frame: &[u8], deadline: Instant) -> Result<Reply, CallError> {
    stream.write_all(frame).map_err(CallError::Reply)?;
    let mut header = [0; HEADER_LEN];
    fill(stream, &mut header, deadline).map_err(CallError::Reply)?;
    let mut payload = vec![0; decode_header(header)?];
    fill(stream, &mut payload, deadline).map_err(CallError::Reply)?;
    Ok(decode(&payload)?)
}

/// Reads exactly that much; a slow sender cannot stretch the deadline.
fn fill(stream: &mut UnixStream, mut rest: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !rest.is_empty() {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(rest) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed by the daemon"));
            }
            Ok(length) => rest = &mut rest[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout of zero means none at all to the kernel.
    if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The causes that a person meets, without errno numbers.
fn in_words(error: io::Error) -> io::Error {
    let words = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::NotFound => "no such socket",
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            return io::Error::new(io::ErrorKind::TimedOut, "timed out");
        }
        _ => return error,
    };
    io::Error::new(error.kind(), words)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use wire::ipc::Attachment;

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("cni-shim-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn request() -> Request {
        Request::Release(Attachment { network: "n".into(), container: "c".into(), ifname: "eth0".into() })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// Answers one connection with these bytes after having read the whole request.
    fn serve(listener: UnixListener, answer: Vec<u8>) -> thread::JoinHandle<Request> {
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut header = [0; HEADER_LEN];
            stream.read_exact(&mut header).unwrap();
            let mut payload = vec![0; decode_header(header).unwrap()];
            stream.read_exact(&mut payload).unwrap();
            stream.write_all(&answer).unwrap();
            decode(&payload).unwrap()
        })
    }

    #[test]
    fn a_request_gets_its_reply() {
        let place = Place::new();
        let server = serve(UnixListener::bind(&place.0).unwrap(), encode(&Reply::Done).unwrap());
        assert_eq!(call(&place.0, &request(), soon()).unwrap(), Reply::Done);
        assert_eq!(server.join().unwrap(), request());
    }

    #[test]
    fn a_daemon_that_comes_late_is_found() {
        let place = Place::new();
        let path = place.0.clone();
        let server = thread::spawn(move || {
            thread::sleep(Duration::from_millis(150));
            serve(UnixListener::bind(path).unwrap(), encode(&Reply::Done).unwrap()).join().unwrap()
        });
        assert_eq!(call(&place.0, &request(), soon()).unwrap(), Reply::Done);
        server.join().unwrap();
    }

    #[test]
    fn a_daemon_that_is_not_ready_yet_is_asked_again() {
        let place = Place::new();
        let listener = UnixListener::bind(&place.0).unwrap();
        let not_ready = Reply::Refused { kind: RefusalKind::NotReady, message: "starting".into() };
        let server = thread::spawn(move || {
            for reply in [&not_ready, &not_ready, &Reply::Done] {
                let answer = encode(reply).unwrap();
                assert_eq!(serve(listener.try_clone().unwrap(), answer).join().unwrap(), request());
            }
        });
        assert_eq!(call(&place.0, &request(), soon()).unwrap(), Reply::Done);
        server.join().unwrap();
    }

    #[test]
    fn a_daemon_that_never_becomes_ready_is_quoted() {
        let place = Place::new();
        let listener = UnixListener::bind(&place.0).unwrap();
        let full = Reply::Refused { kind: RefusalKind::NotReady, message: "no nodes".into() };
        let server = serve(listener, encode(&full).unwrap());
        // Less than the pause between two attempts.
        let deadline = Instant::now() + RESTART_PAUSE;
        assert_eq!(call(&place.0, &request(), deadline).unwrap(), full);
        server.join().unwrap();
    }

    #[test]
    fn an_absent_daemon_is_named_with_its_path() {
        let place = Place::new();
        let error = call(&place.0, &request(), Instant::now() + Duration::from_millis(120)).unwrap_err();
        assert_eq!(error.code, Code::TryAgainLater);
        assert_eq!(
            error.message,
            format!("overlayd is not reachable on {}: no such socket", place.0.display())
        );
        drop(UnixListener::bind(&place.0).unwrap());
        let error = call(&place.0, &request(), Instant::now() + Duration::from_millis(120)).unwrap_err();
        assert!(error.message.ends_with("connection refused"), "{}", error.message);
    }

    #[test]
    fn a_silent_daemon_ends_at_the_deadline() {
        let place = Place::new();
        let listener = UnixListener::bind(&place.0).unwrap();
        let begun = Instant::now();
        let error = call(&place.0, &request(), begun + Duration::from_millis(100)).unwrap_err();
        drop(listener);
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(error.code, Code::TryAgainLater);
        assert!(error.message.ends_with("no reply: timed out"), "{}", error.message);
    }

    #[test]
    fn nonsense_is_not_asked_for_again() {
        for answer in
            [vec![0xff; 64], [encode(&Reply::Done).unwrap(), vec![]].concat()[..HEADER_LEN].to_vec()]
        {
            let place = Place::new();
            let server = serve(UnixListener::bind(&place.0).unwrap(), answer.clone());
            let deadline = Instant::now() + Duration::from_millis(300);
            let error = call(&place.0, &request(), deadline).unwrap_err();
            server.join().unwrap();
            let expected = if answer.len() == 64 { Code::Daemon } else { Code::TryAgainLater };
            assert_eq!(error.code, expected, "{}", error.message);
        }
    }

    #[test]
    fn refusals_have_codes() {
        for (kind, code) in [
            (RefusalKind::NotReady, 11),
            (RefusalKind::Exhausted, 11),
            (RefusalKind::Invalid, 7),
            (RefusalKind::Internal, 102),
            (RefusalKind::Mismatch, 103),
            (RefusalKind::Impaired, 51),
        ] {
            assert_eq!(refused(kind, "x").code.number(), code, "{kind:?}");
        }
    }
}
