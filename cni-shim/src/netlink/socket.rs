//! The socket: request, acknowledge, dump.
//!
//! Every request carries a fresh sequence number, and answers with another one are leftovers of a request
//! that timed out: they are skipped. A dump that the kernel marks as interrupted (`NLM_F_DUMP_INTR`: the
//! table changed under it, so entries may be missing) is taken again.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// How long one answer may take. The kernel answers within the system call unless it waits for its lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an interrupted dump is taken again. One dump takes far less than the pause between two changes.
const DUMP_ATTEMPTS: u32 = 32;

/// Receive buffer in bytes; the kernel sends dumps in pieces of at most 32 KiB (`netlink_dump`).
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Socket receive queue in bytes, for answers that arrive faster than they are read.
const SOCKET_BUFFER: u32 = 1024 * 1024;

/// `NLMSGERR_ATTR_MSG` of `linux/netlink.h`: the kernel's explanation in words.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused; the errno is inside.
    #[error("{what}: {errno}{}", Explanation(.explanation.as_deref()))]
    Kernel {
        /// What was being done, naming the object.
        what: String,
        /// The kernel's answer.
        errno: io::Error,
        /// The kernel's own words (extended ack), if it gave any.
        explanation: Option<String>,
    },
    /// The socket itself failed, or an answer was malformed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
}

struct Explanation<'a>(Option<&'a str>);

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |words| write!(f, ": {words}"))
    }
}

impl NetlinkError {
    /// The errno, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => errno.raw_os_error(),
            Self::Socket(_) => None,
        }
    }
}

/// An open rtnetlink socket.
pub struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace, with strict checking of dump requests and extended acks.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        socket.set_rx_buf_sz(SOCKET_BUFFER)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(io::Error::from)?;
        Ok(Self { socket, port, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// The socket's port: notifications of what this socket changed carry it (`nlmsg_pid` of `linux/netlink.h`).
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends one change and waits for its acknowledgement.
    pub(super) fn request(
        &mut self,
        message: &Message<impl Emitable>,
        flags: u16,
        what: fmt::Arguments<'_>,
    ) -> Result<(), NetlinkError> {
        let sequence = self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers(sequence, what, |_| {}).map(drop)
    }

    /// Asks for one object.
    pub(super) fn get<T>(
        &mut self,
        message: &Message<impl Emitable>,
        what: fmt::Arguments<'_>,
        convert: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let sequence = self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = None;
        self.answers(sequence, what, |object| found = convert(object))?;
        Ok(found)
    }

    /// Lists objects; `convert` picks and turns them into values.
    ///
    /// A foreign object with an attribute that the decoder does not understand must not blind us to all the others:
    /// it is passed over, and shows as `EEXIST` should it be in our way.
    pub(super) fn dump<T>(
        &mut self,
        message: &Message<impl Emitable>,
        what: fmt::Arguments<'_>,
        convert: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut found = Vec::new();
            let consistent = self.answers(sequence, what, |object| found.extend(convert(object)))?;
            if consistent {
                return Ok(found);
            }
        }
        let cause = format!("{what}: the table kept changing under {DUMP_ATTEMPTS} dumps");
        Err(io::Error::new(io::ErrorKind::Interrupted, cause).into())
    }

    fn send(&mut self, message: &Message<impl Emitable>, flags: u16) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        let (begin, length) = (header.buffer_len(), header.buffer_len() + message.body.buffer_len());
        header.length = u32::try_from(length).map_err(malformed)?;
        header.message_type = message.kind;
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut bytes = vec![0; length];
        header.emit(&mut bytes[..begin]);
        message.body.emit(&mut bytes[begin..]);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(self.sequence)
    }

    /// Reads until the acknowledgement, error or end of dump that belongs to `sequence`. False if the dump
    /// was interrupted.
    fn answers(
        &mut self,
        sequence: u32,
        what: fmt::Arguments<'_>,
        mut object: impl FnMut(&[u8]),
    ) -> Result<bool, NetlinkError> {
        let mut consistent = true;
        loop {
            self.receive()?;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(malformed)?;
                let (flags, payload) = (message.flags(), message.payload());
                // The length was checked just above; the last message of a datagram may lack its padding.
                rest = &rest[(message.length() as usize).next_multiple_of(4).min(rest.len())..];
                if message.sequence_number() != sequence {
                    continue;
                }
                consistent &= flags & NLM_F_DUMP_INTR == 0;
                match message.message_type() {
                    NLMSG_DONE => {
                        refusal(payload, |attributes| explain(flags, attributes), what)?;
                        return Ok(consistent);
                    }
                    NLMSG_ERROR => {
                        refusal(payload, |after| explain(flags, behind_request(flags, after)?), what)?;
                        return Ok(consistent);
                    }
                    NLMSG_OVERRUN => return Err(malformed("overrun")),
                    NLMSG_NOOP => {}
                    _ => object(payload),
                }
            }
        }
    }

    /// Reads one datagram of the kernel, whole, into the buffer.
    fn receive(&mut self) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            let (length, sender) = self.receive_once()?;
            if length > self.buffer.len() {
                return Err(malformed(format_args!("an answer of {length} bytes")));
            }
            if sender.port_number() == 0 {
                return Ok(());
            }
        }
    }

    fn receive_once(&mut self) -> Result<(usize, SocketAddr), NetlinkError> {
        loop {
            // The flag makes it tell the length of what did not fit.
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let cause = format!("no answer from the kernel within {} s", ANSWER_TIMEOUT.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, cause).into());
                }
                other => return Ok(other?),
            }
        }
    }
}

// Message types of `linux/netlink.h`; the objects have greater ones.
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

/// An object and what to do with it (`RTM_*`). Objects are written and read by type here, and not as the one enum of
/// all rtnetlink messages: the plugin would carry the code of all of them.
#[derive(Debug)]
pub(super) struct Message<T> {
    pub(super) kind: u16,
    pub(super) body: T,
}

/// Turns the end of an answer (`NLMSG_DONE`, `NLMSG_ERROR`: a code, then more) into a result.
fn refusal(
    payload: &[u8],
    explanation: impl FnOnce(&[u8]) -> Option<String>,
    what: fmt::Arguments<'_>,
) -> Result<(), NetlinkError> {
    // The kernel may leave out the code of a dump that went well.
    let Some((code, after)) = payload.split_first_chunk() else { return Ok(()) };
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(());
    }
    let errno = io::Error::from_raw_os_error(code.saturating_abs());
    Err(NetlinkError::Kernel { what: what.to_string(), errno, explanation: explanation(after) })
}

/// What follows the request that an `NLMSG_ERROR` quotes: its header, and its payload unless capped.
fn behind_request(flags: u16, after_code: &[u8]) -> Option<&[u8]> {
    let length = if flags & NLM_F_CAPPED == 0 {
        u32::from_ne_bytes(*after_code.first_chunk()?) as usize
    } else {
        NetlinkHeader::default().buffer_len()
    };
    after_code.get(length.next_multiple_of(4)..)
}

/// The kernel's words among the attributes.
fn explain(flags: u16, attributes: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let words = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    Some(String::from_utf8_lossy(words.value()).trim_end_matches(['\0', '.']).to_owned())
}

fn malformed(cause: impl fmt::Display) -> NetlinkError {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed answer: {cause}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn explain_error(flags: u16, after_code: &[u8]) -> Option<String> {
        explain(flags, behind_request(flags, after_code)?)
    }

    #[test]
    fn the_kernels_words_are_found_behind_a_capped_request() {
        let mut bytes = vec![0; 16];
        bytes.extend(attribute(2, &[9, 0, 0, 0]));
        bytes.extend(attribute(1, b"Invalid prefix.\0"));
        assert_eq!(explain_error(NLM_F_ACK_TLVS | NLM_F_CAPPED, &bytes).as_deref(), Some("Invalid prefix"));
        assert_eq!(explain_error(NLM_F_CAPPED, &bytes), None);
    }

    #[test]
    fn the_kernels_words_are_found_behind_a_whole_request() {
        let mut bytes = vec![0; 28];
        bytes[..4].copy_from_slice(&28_u32.to_ne_bytes());
        bytes.extend(attribute(1, b"no\0"));
        assert_eq!(explain_error(NLM_F_ACK_TLVS, &bytes).as_deref(), Some("no"));
        bytes.truncate(20);
        assert_eq!(explain_error(NLM_F_ACK_TLVS, &bytes), None);
    }

    #[test]
    fn an_error_reads_as_one_sentence() {
        let error = NetlinkError::Kernel {
            what: "add route 10.0.0.1/32".into(),
            errno: io::Error::from_raw_os_error(libc::EEXIST),
            explanation: Some("already there".into()),
        };
        assert_eq!(error.to_string(), "add route 10.0.0.1/32: File exists (os error 17): already there");
        assert_eq!(error.errno(), Some(libc::EEXIST));
    }
}
