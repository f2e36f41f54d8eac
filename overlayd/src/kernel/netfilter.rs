//! A NETLINK_NETFILTER socket: dumps, single requests, and nf_tables batches.
//!
//! The kernel answers within the system call that sends, so whatever is to be read is in the queue when `send`
//! returns. Every message has a fresh sequence number; answers to older ones are leftovers and skipped.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use cni_shim::netlink::attribute::{self, Attributes};

/// `NFNL_SUBSYS_NFTABLES` of `linux/netfilter/nfnetlink.h`.
pub(super) const NFTABLES: u8 = 10;

/// `NFNL_SUBSYS_CTNETLINK`.
pub(super) const CONNTRACK: u8 = 1;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`: `NLMSG_MIN_TYPE` and the next.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Flags of `linux/netlink.h`.
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
const ACK_TLVS: u16 = 0x200;
const CAPPED: u16 = 0x100;

/// Control types of `linux/netlink.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// `NLMSGERR_ATTR_MSG`: the kernel's explanation in words.
const EXPLANATION: u16 = 1;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a dump that changed under us is taken again.
const DUMP_ATTEMPTS: u32 = 32;

/// One message.
#[derive(Debug)]
pub(super) struct Message {
    /// Subsystem.
    pub(super) subsystem: u8,
    /// Number within the subsystem.
    pub(super) kind: u8,
    /// Further flags.
    pub(super) flags: u16,
    /// Address family.
    pub(super) family: u8,
    /// Attributes.
    pub(super) body: Attributes,
}

/// An open socket.
pub(super) struct Netfilter {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Netfilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netfilter").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Netfilter {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Words are a courtesy of newer kernels, and without a copy of the request the answers stay small.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, port, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    /// The socket's port: notifications of what this socket changed carry it.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Every object that a dump returns: family and attributes.
    pub(super) fn dump<T>(
        &mut self,
        message: Message,
        mut each: impl FnMut(u8, &[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let message = Message { flags: message.flags | DUMP, ..message };
        let (kind, flags) = (message.kind, message.flags);
        let (subsystem, family) = (message.subsystem, message.family);
        let body = message.body.bytes();
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            let bytes = frame(
                u16::from(subsystem) << 8 | u16::from(kind),
                flags | REQUEST,
                sequence,
                &family_header(family, 0),
                &body,
            );
            self.socket.send(&bytes, 0)?;
            let mut found = Vec::new();
            let mut interrupted = false;
            self.answers(sequence, |answer| {
                interrupted |= answer.flags & DUMP_INTERRUPTED != 0;
                match answer.kind {
                    DONE => Some(answer.verdict()),
                    ERROR => Some(answer.verdict()),
                    _ => {
                        found.extend(
                            answer.object().and_then(|(family, attributes)| each(family, attributes)),
                        );
                        None
                    }
                }
            })?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(io::Error::other("the kernel's tables change faster than they can be read"))
    }

    /// One request that the kernel acknowledges.
    pub(super) fn request(&mut self, message: Message) -> io::Result<()> {
        self.get(Message { flags: message.flags | ACK, ..message }).map(|_| ())
    }

    /// One request that the kernel answers with one object, or only acknowledges.
    pub(super) fn get(&mut self, message: Message) -> io::Result<Option<Vec<u8>>> {
        let sequence = self.next_sequence();
        let kind = u16::from(message.subsystem) << 8 | u16::from(message.kind);
        let header = family_header(message.family, 0);
        let bytes = frame(kind, message.flags | REQUEST, sequence, &header, &message.body.bytes());
        self.socket.send(&bytes, 0)?;
        let mut found = None;
        self.answers(sequence, |answer| {
            if answer.kind == ERROR {
                return Some(answer.verdict());
            }
            found = answer.object().map(|(_, attributes)| attributes.to_vec());
            Some(Ok(()))
        })?;
        Ok(found)
    }

    /// Sends nf_tables messages as one transaction: all of them take effect, or none.
    pub(super) fn transaction(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let begin = self.next_sequence();
        let marker = family_header(0, u16::from(NFTABLES));
        let mut bytes = frame(BATCH_BEGIN, REQUEST, begin, &marker, &[]);
        let count = messages.len();
        for (at, message) in messages.into_iter().enumerate() {
            // One acknowledgement, of the last message, says that the transaction is through. One per message could
            // overflow the receive queue, and not every kernel acknowledges the end marker.
            let flags = message.flags | REQUEST | if at + 1 == count { ACK } else { 0 };
            let kind = u16::from(message.subsystem) << 8 | u16::from(message.kind);
            let sequence = self.next_sequence();
            bytes.extend(frame(
                kind,
                flags,
                sequence,
                &family_header(message.family, 0),
                &message.body.bytes(),
            ));
        }
        let last = self.sequence;
        let end = self.next_sequence();
        bytes.extend(frame(BATCH_END, REQUEST, end, &marker, &[]));
        self.reserve(bytes.len())?;
        self.socket.send(&bytes, 0)?;
        // Errors come in the order of the messages; one of the commit itself bears the number of the begin marker.
        loop {
            let mut ended = None;
            self.receive(|answer| {
                if answer.sequence < begin || answer.sequence > end || answer.kind != ERROR {
                    return false;
                }
                let verdict = answer.verdict();
                let through = verdict.is_err() || answer.sequence == last;
                if through {
                    ended = Some(verdict);
                }
                through
            })?;
            if let Some(verdict) = ended {
                return verdict;
            }
        }
    }

    /// Makes room in the send queue: a transaction is one datagram.
    fn reserve(&self, length: usize) -> io::Result<()> {
        let wanted = length.saturating_mul(2).max(64 * 1024);
        if setsockopt(&self.socket, sockopt::SndBufForce, &wanted).is_err() {
            // In a user namespace only net.core.wmem_max can be had; send() says if that is too little.
            setsockopt(&self.socket, sockopt::SndBuf, &wanted)?;
        }
        Ok(())
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Reads answers to this request until `take` gives the end.
    fn answers(
        &mut self,
        sequence: u32,
        mut take: impl FnMut(&Answer<'_>) -> Option<io::Result<()>>,
    ) -> io::Result<()> {
        let mut ended = None;
        while ended.is_none() {
            self.receive(|answer| {
                if answer.sequence == sequence {
                    ended = take(answer);
                }
                ended.is_some()
            })?;
        }
        ended.unwrap_or(Ok(()))
    }

    /// Reads one datagram and walks its messages until `take` says stop.
    fn receive(&mut self, mut take: impl FnMut(&Answer<'_>) -> bool) -> io::Result<()> {
        let received = loop {
            let mut space = self.buffer.as_mut_slice();
            // MSG_TRUNC: the true length, so that a cut datagram is noticed.
            match self.socket.recv(&mut space, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netfilter answer");
        let mut rest = self.buffer.get(..received).ok_or_else(malformed)?;
        while let Some(answer) = Answer::parse(rest) {
            if take(&answer) {
                return Ok(());
            }
            rest = rest.get(answer.length.next_multiple_of(4)..).unwrap_or_default();
        }
        if rest.is_empty() { Ok(()) } else { Err(malformed()) }
    }
}

fn family_header(family: u8, resource: u16) -> [u8; FAMILY_HEADER] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn frame(kind: u16, flags: u16, sequence: u32, header: &[u8; FAMILY_HEADER], body: &[u8]) -> Vec<u8> {
    let length = HEADER + FAMILY_HEADER + body.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(header);
    bytes.extend(body);
    bytes
}

/// One message of an answer.
struct Answer<'a> {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Answer<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        let half = |at: usize| -> Option<[u8; 2]> { bytes.get(at..at + 2)?.try_into().ok() };
        let length = usize::try_from(u32::from_ne_bytes(word(0)?)).ok()?;
        Some(Self {
            length,
            kind: u16::from_ne_bytes(half(4)?),
            flags: u16::from_ne_bytes(half(6)?),
            sequence: u32::from_ne_bytes(word(8)?),
            payload: bytes.get(HEADER..length)?,
        })
    }

    fn object(&self) -> Option<(u8, &'a [u8])> {
        Some((*self.payload.first()?, self.payload.get(FAMILY_HEADER..)?))
    }

    /// What an acknowledgement, an error or the end of a dump says.
    fn verdict(&self) -> io::Result<()> {
        let code = self.payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
        if code == 0 {
            return Ok(());
        }
        let errno = io::Error::from_raw_os_error(-code);
        match self.explanation() {
            Some(words) => Err(io::Error::new(errno.kind(), Explained { errno, words })),
            None => Err(errno),
        }
    }

    fn explanation(&self) -> Option<String> {
        // The error code, then the header of our request; the request's body only if the kernel did not cap it.
        let echoed = if self.flags & CAPPED != 0 {
            HEADER
        } else {
            let length = self.payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
            usize::try_from(length).ok()?.next_multiple_of(4)
        };
        let attributes = self.payload.get(4 + echoed..).filter(|_| self.flags & ACK_TLVS != 0)?;
        attribute::text(attributes, EXPLANATION)
    }
}

/// An errno with the kernel's words.
#[derive(Debug, thiserror::Error)]
#[error("{errno}: {words}")]
struct Explained {
    errno: io::Error,
    words: String,
}

/// The errno of a failed request.
pub(super) fn errno(error: &io::Error) -> Option<i32> {
    let explained = || error.get_ref()?.downcast_ref::<Explained>()?.errno.raw_os_error();
    error.raw_os_error().or_else(explained)
}
