//! Messages of nf_tables (`linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`, `linux/netlink.h`): written,
//! and taken apart. The agent inside the lab has the socket.

use std::io;
use std::net::IpAddr;

/// Makes a table (`enum nf_tables_msg_types`, as the others here). What is listed has the number of what makes it.
pub const NEW_TABLE: u8 = 0;
/// Deletes a table.
pub const DELETE_TABLE: u8 = 2;
/// Makes a chain.
pub const NEW_CHAIN: u8 = 3;
/// Makes a rule.
pub const NEW_RULE: u8 = 6;
/// Lists rules.
pub const GET_RULE: u8 = 7;
/// Deletes a rule.
pub const DELETE_RULE: u8 = 8;
/// Deletes elements of a set.
pub const DELETE_ELEMENTS: u8 = 14;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH: [u16; 2] = [0x10, 0x11];

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// `NFPROTO_INET`.
pub const INET: u8 = 1;
/// `NFPROTO_IPV4`.
pub const IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
pub const IPV6: u8 = 10;

/// `NLA_F_NESTED`, and the type without flags.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// The transaction of these messages (type, flags, attributes) on tables of a family; only the last is acknowledged, and errors come before that.
#[must_use]
pub fn transaction(family: u8, messages: &[(u8, u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = frame(BATCH[0], REQUEST, 0, [0, 0, 0, SUBSYSTEM], &[]);
    for ((kind, flags, body), sequence) in messages.iter().zip(1..) {
        let last = sequence as usize == messages.len();
        let flags = flags | REQUEST | if last { ACK } else { 0 };
        let kind = u16::from(SUBSYSTEM) << 8 | u16::from(*kind);
        bytes.extend(frame(kind, flags, sequence, [family, 0, 0, 0], body));
    }
    bytes.extend(frame(BATCH[1], REQUEST, u32::MAX, [0, 0, 0, SUBSYSTEM], &[]));
    bytes
}

/// The question for all things of a kind, by the number of its list message.
#[must_use]
pub fn question(list: u8, family: u8, body: &[u8]) -> Vec<u8> {
    frame(u16::from(SUBSYSTEM) << 8 | u16::from(list), REQUEST | DUMP, 1, [family, 0, 0, 0], body)
}

/// A netlink message with `struct nfgenmsg`.
fn frame(kind: u16, flags: u16, sequence: u32, family: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + body.len());
    bytes.extend((20 + body.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(family);
    bytes.extend(body);
    bytes
}

/// An attribute.
#[must_use]
pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + payload.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds others.
#[must_use]
pub fn nested(kind: u16, payload: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, payload)
}

/// An attribute that holds a string, ended by NUL.
#[must_use]
pub fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// An attribute that holds a number in network order.
#[must_use]
pub fn be32(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

/// An address in network order.
#[must_use]
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// One message of a datagram, or of a transaction.
#[derive(Debug)]
pub struct Message<'a> {
    kind: u16,
    flags: u16,
    /// Its number, which the answer repeats.
    pub sequence: u32,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Whether it asks to be acknowledged.
    #[must_use]
    pub fn wants_answer(&self) -> bool {
        self.flags & ACK != 0
    }

    /// How the kernel says that something went well or wrong, or that a list is over; `None` if it says something else.
    #[must_use]
    pub fn verdict(&self) -> Option<io::Result<()>> {
        if !matches!(self.kind, ERROR | DONE) {
            return None;
        }
        Some(match self.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        })
    }

    /// Number of the nf_tables message.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind as u8
    }

    /// `NFPROTO_*` of what it speaks of.
    #[must_use]
    pub fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }

    /// Its attributes.
    #[must_use]
    pub fn attributes(&self) -> &'a [u8] {
        self.payload.get(FAMILY_HEADER..).unwrap_or_default()
    }
}

/// The messages of a datagram.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
            flags: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?),
            sequence: u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?),
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Type, without flags, and payload of each attribute.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & TYPE_MASK;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Payload of the first attribute of this type.
#[must_use]
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// A string as [`text`] writes it.
#[must_use]
pub fn until_nul(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
