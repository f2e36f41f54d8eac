//! A NETLINK_NETFILTER socket: carries what `tests::firewall` wrote, and reads what there is.

use std::io::{self, Read};

use anyhow::{Context, Result};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use tests::firewall::{Object, frame};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_GETTABLE`, `_GETCHAIN`, `_GETRULE`, `_GETSET`, `_GETFLOWTABLE`.
const LISTS: [u16; 5] = [1, 4, 7, 10, 23];
/// `NLM_F_REQUEST | NLM_F_DUMP`; `NLM_F_ACK`.
const DUMP: u16 = 0x301;
const ACK: u16 = 4;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY: usize = 4;

fn open() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open a netfilter socket")?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Carries out the transaction on standard input.
pub(crate) fn apply() -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    let acknowledged = messages(&bytes).filter(|message| message.flags & ACK != 0).map(|m| m.sequence).max();
    let socket = open()?;
    socket.send(&bytes, 0).context("send the transaction")?;
    loop {
        let answers = receive(&socket)?;
        for answer in messages(&answers).filter(|answer| answer.kind == ERROR) {
            answer.verdict().with_context(|| format!("message {} of the transaction", answer.sequence))?;
            if Some(answer.sequence) == acknowledged {
                return Ok(());
            }
        }
    }
}

/// Prints all tables, chains, rules and sets, whoever made them.
pub(crate) fn dump() -> Result<()> {
    let socket = open()?;
    let mut objects = Vec::new();
    for (list, sequence) in LISTS.into_iter().zip(1..) {
        socket.send(&frame(SUBSYSTEM << 8 | list, DUMP, sequence, [0; 4], &[]), 0)?;
        let mut over = false;
        while !over {
            let answers = receive(&socket)?;
            for answer in messages(&answers) {
                match answer.kind {
                    ERROR | DONE => {
                        answer.verdict().with_context(|| format!("list {list}"))?;
                        over = true;
                    }
                    kind => objects.push(Object {
                        kind: kind as u8,
                        family: answer.payload.first().copied().unwrap_or_default(),
                        attributes: answer.payload.get(FAMILY..).unwrap_or_default().to_vec(),
                    }),
                }
            }
        }
    }
    crate::traffic::report(&objects)
}

fn receive(socket: &Socket) -> Result<Vec<u8>> {
    Ok(socket.recv_from_full().context("receive")?.0)
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    fn verdict(&self) -> io::Result<()> {
        match self.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        }
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
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
