//! The socket of the CNI plugin: one request and one reply per connection.
//!
//! Whoever may connect (uid 0 as this process sees it) could as well change the kernel itself, so the limits here
//! are against accidents, not attacks: a bounded number of connections, a deadline for the request, the frame's size limit.
//!
//! Everybody is let in at once, and where too many have not said what they want, the one that has been silent longest is
//! put out for the next. So a crowd of idlers never keeps a plugin waiting, which asks as soon as it is connected.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use wire::ipc::{self, FRAME_LIMIT, FrameError, HEADER_LEN, RefusalKind, Reply, Request};

/// Name of the socket in the run directory.
pub const SOCKET_FILE: &str = "cni.sock";

/// Connections at a time that have not sent a whole request. With those below they stay within the 1,024 descriptors
/// that a process usually may have.
const SILENT: usize = 256;

/// Requests at a time; more are told to come again, as the plugin does by itself.
const REQUESTS: usize = 256;

/// How long a client may take to send its request, and again to take the reply.
const CLIENT_LIMIT: Duration = Duration::from_secs(2);

/// How long control may take to answer: shorter than the plugin's own limit of 20 s.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);

/// Pause after a failed accept (out of descriptors): the listen queue keeps the clients.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A request and where its reply goes.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Answers it. Dropping it tells the client that the daemon is ending.
    pub reply: oneshot::Sender<Reply>,
}

/// Why a connection ended without a reply of control.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("no progress within {} s", CLIENT_LIMIT.as_secs())]
    Slow,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// Accepts until dropped. Only clients of this uid are served.
pub async fn serve(listener: UnixListener, uid: u32, calls: mpsc::Sender<Call>) {
    let desk = Arc::new(Desk { silent: Mutex::default(), requests: Semaphore::new(REQUESTS), calls });
    let mut number = 0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                number += 1;
                desk.admit(number, converse(stream, uid, number, Arc::clone(&desk)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of the CNI plugin");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Where requests are taken.
struct Desk {
    /// Conversations without a whole request, by number: the lowest is the oldest.
    silent: Mutex<BTreeMap<u64, AbortHandle>>,
    requests: Semaphore,
    calls: mpsc::Sender<Call>,
}

impl Desk {
    fn silent(&self) -> MutexGuard<'_, BTreeMap<u64, AbortHandle>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a conversation, in the place of the oldest silent one if there are too many.
    fn admit(&self, number: u64, conversation: impl Future<Output = ()> + Send + 'static) {
        // Locked before it starts: it may end at once.
        let mut silent = self.silent();
        silent.insert(number, tokio::spawn(conversation).abort_handle());
        if silent.len() > SILENT
            && let Some((_, oldest)) = silent.pop_first()
        {
            oldest.abort();
        }
    }

    /// False if this conversation has been put out.
    fn is_heard(&self, number: u64) -> bool {
        self.silent().remove(&number).is_some()
    }
}

async fn converse(mut stream: UnixStream, uid: u32, number: u64, desk: Arc<Desk>) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == uid => match timeout(CLIENT_LIMIT, receive(&mut stream)).await {
            Ok(Ok(request)) => {
                if desk.is_heard(number) {
                    answer(request, stream, &desk).await;
                }
                return;
            }
            Ok(Err(error)) => turn_away(stream, &error).await,
            Err(_) => turn_away(stream, &Broken::Slow).await,
        },
        Ok(peer) => tracing::warn!(uid = peer.uid(), "a client of the CNI socket is not root: refused"),
        Err(error) => tracing::warn!(%error, "cannot tell who connects to the CNI socket"),
    }
    desk.is_heard(number);
}

async fn answer(request: Request, mut stream: UnixStream, desk: &Desk) {
    let Ok(_permit) = desk.requests.try_acquire() else {
        let busy = format!("overlayd has {REQUESTS} requests to answer first");
        send(&mut stream, &refused(RefusalKind::NotReady, busy)).await;
        return;
    };
    if let Some(reply) = ask(request, &stream, &desk.calls).await {
        send(&mut stream, &reply).await;
    }
}

async fn turn_away(mut stream: UnixStream, error: &Broken) {
    tracing::debug!(%error, "bad request on the CNI socket");
    send(&mut stream, &refused(RefusalKind::Invalid, error.to_string())).await;
    // Closing with unread bytes would reset the connection, perhaps before the client read the reply.
    let mut rest = stream.take(FRAME_LIMIT as u64);
    let _ = timeout(CLIENT_LIMIT, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}

async fn receive(stream: &mut UnixStream) -> Result<Request, Broken> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let mut payload = vec![0; ipc::decode_header(header)?];
    stream.read_exact(&mut payload).await?;
    Ok(ipc::decode(&payload)?)
}

async fn send(stream: &mut UnixStream, reply: &Reply) {
    let sending = async {
        stream.write_all(&ipc::encode(reply)?).await?;
        Ok(stream.shutdown().await?)
    };
    if let Err(error) = timeout(CLIENT_LIMIT, sending).await.unwrap_or(Err(Broken::Slow)) {
        tracing::debug!(%error, "a client of the CNI socket left before its reply");
    }
}

/// The reply of control; none for a client that is gone. Its request is not carried out: a plugin that was killed
/// may have been deleted by now, and what is allocated after its release would be held for nobody. A release is: DEL
/// does not wait for a daemon that hangs.
async fn ask(request: Request, client: &UnixStream, calls: &mpsc::Sender<Call>) -> Option<Reply> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        let Ok(place) = calls.reserve().await else { return Ok(None) };
        if has_gone(client) && !matches!(request, Request::Release(_)) {
            return Err(Gone);
        }
        place.send(Call { request, reply });
        Ok(answer.await.ok())
    };
    match timeout(CONTROL_LIMIT, exchange).await {
        Ok(Ok(Some(reply))) => Some(reply),
        Ok(Ok(None)) => Some(refused(RefusalKind::NotReady, "overlayd is ending".to_owned())),
        Ok(Err(Gone)) => None,
        Err(_) => Some(refused(RefusalKind::NotReady, "overlayd is too busy to answer".to_owned())),
    }
}

/// The client closed its end.
struct Gone;

/// Asks the kernel, not the runtime, which may not have heard yet.
fn has_gone(client: &UnixStream) -> bool {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn refused(kind: RefusalKind, message: String) -> Reply {
    Reply::Refused { kind, message }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tempfile::TempDir;
    use wire::ipc::Attachment;

    use super::super::bind_private;
    use super::*;

    struct Server {
        directory: TempDir,
        calls: mpsc::Receiver<Call>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Server {
        fn start(uid: u32) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = bind_private(&directory.path().join(SOCKET_FILE)).unwrap();
            let (sender, calls) = mpsc::channel(8);
            Self { directory, calls, task: tokio::spawn(serve(listener, uid, sender)) }
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.directory.path().join(SOCKET_FILE)).await.unwrap()
        }
    }

    fn own_uid() -> u32 {
        nix::unistd::getuid().as_raw()
    }

    fn release() -> Request {
        Request::Release(Attachment {
            network: "net".to_owned(),
            container: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        })
    }

    async fn read_reply(stream: &mut UnixStream) -> Reply {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        ipc::decode(&bytes[HEADER_LEN..]).unwrap()
    }

    #[tokio::test]
    async fn a_request_reaches_control_and_its_reply_the_client() {
        let mut server = Server::start(own_uid());
        let mut client = server.connect().await;
        client.write_all(&ipc::encode(&release()).unwrap()).await.unwrap();
        let call = server.calls.recv().await.unwrap();
        assert_eq!(call.request, release());
        call.reply.send(Reply::Done).unwrap();
        assert_eq!(read_reply(&mut client).await, Reply::Done);
    }

    #[tokio::test]
    async fn the_request_of_a_client_that_has_gone_is_not_carried_out() {
        let mut server = Server::start(own_uid());
        // Blocking, so that the server cannot look before the client is gone.
        let path = server.directory.path().join(SOCKET_FILE);
        let mut killed = std::os::unix::net::UnixStream::connect(path).unwrap();
        let late = Request::Allocate(Attachment {
            network: "net".to_owned(),
            container: "killed".to_owned(),
            ifname: "eth0".to_owned(),
        });
        io::Write::write_all(&mut killed, &ipc::encode(&late).unwrap()).unwrap();
        drop(killed);
        let mut client = server.connect().await;
        client.write_all(&ipc::encode(&release()).unwrap()).await.unwrap();
        assert_eq!(server.calls.recv().await.unwrap().request, release());
        assert!(server.calls.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_release_of_a_client_that_has_gone_is_carried_out() {
        let mut server = Server::start(own_uid());
        let path = server.directory.path().join(SOCKET_FILE);
        let mut impatient = std::os::unix::net::UnixStream::connect(path).unwrap();
        io::Write::write_all(&mut impatient, &ipc::encode(&release()).unwrap()).unwrap();
        drop(impatient);
        assert_eq!(server.calls.recv().await.unwrap().request, release());
    }

    #[tokio::test]
    async fn garbage_is_refused_and_the_next_client_is_served() {
        let mut server = Server::start(own_uid());
        let mut garbage = server.connect().await;
        garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let reply = read_reply(&mut garbage).await;
        assert!(matches!(reply, Reply::Refused { kind: RefusalKind::Invalid, .. }), "{reply:?}");
        let mut client = server.connect().await;
        client.write_all(&ipc::encode(&release()).unwrap()).await.unwrap();
        server.calls.recv().await.unwrap().reply.send(Reply::Done).unwrap();
        assert_eq!(read_reply(&mut client).await, Reply::Done);
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_is_told_so_in_time() {
        let server = Server::start(own_uid());
        let mut client = server.connect().await;
        let start = Instant::now();
        let reply = read_reply(&mut client).await;
        assert!(matches!(reply, Reply::Refused { kind: RefusalKind::Invalid, .. }), "{reply:?}");
        assert!(start.elapsed() < CLIENT_LIMIT * 3, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn the_oldest_silent_client_makes_room_for_the_next() {
        let mut server = Server::start(own_uid());
        let mut crowd = Vec::new();
        for _ in 0..=SILENT {
            crowd.push(server.connect().await);
        }
        let mut bytes = Vec::new();
        // Put out without a word, long before its time.
        let ended = timeout(CLIENT_LIMIT / 2, crowd[0].read_to_end(&mut bytes)).await;
        assert!(ended.is_ok_and(|ended| ended.is_err() || bytes.is_empty()));
        let mut client = server.connect().await;
        client.write_all(&ipc::encode(&release()).unwrap()).await.unwrap();
        server.calls.recv().await.unwrap().reply.send(Reply::Done).unwrap();
        assert_eq!(read_reply(&mut client).await, Reply::Done);
        // Whoever has asked is not silent any more, however many come after.
        let mut asker = server.connect().await;
        asker.write_all(&ipc::encode(&release()).unwrap()).await.unwrap();
        let call = server.calls.recv().await.unwrap();
        for _ in 0..=SILENT {
            crowd.push(server.connect().await);
        }
        call.reply.send(Reply::Done).unwrap();
        assert_eq!(read_reply(&mut asker).await, Reply::Done);
    }

    #[tokio::test]
    async fn a_client_of_another_uid_gets_nothing() {
        let server = Server::start(own_uid().wrapping_add(1));
        let mut client = server.connect().await;
        let _ = client.write_all(&ipc::encode(&release()).unwrap()).await;
        let mut bytes = Vec::new();
        let _ = client.read_to_end(&mut bytes).await;
        assert_eq!(bytes, [0; 0]);
    }

    #[tokio::test]
    async fn a_call_that_control_drops_is_answered_as_not_ready() {
        let mut server = Server::start(own_uid());
        let mut client = server.connect().await;
        client.write_all(&ipc::encode(&release()).unwrap()).await.unwrap();
        drop(server.calls.recv().await.unwrap());
        let reply = read_reply(&mut client).await;
        assert!(matches!(reply, Reply::Refused { kind: RefusalKind::NotReady, .. }), "{reply:?}");
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_by_a_private_one() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_FILE);
        drop(bind_private(&path).unwrap());
        let _listener = bind_private(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
