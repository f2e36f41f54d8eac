//! Changes of nftables by hand, without the nft tool (`linux/netfilter/nf_tables.h`).

use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use tests::protocol::{NftChange, NftFamily};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH: [u16; 2] = [0x10, 0x11];
/// `enum nf_tables_msg_types`.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const DELETE_ELEMENTS: u16 = 14;
/// Flags and control types of `linux/netlink.h`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// `NF_INET_FORWARD`.
const HOOK_FORWARD: u32 = 2;
/// `NFT_TABLE_F_OWNER`: the table belongs to the socket that made it, and goes with it.
const OWNER: u32 = 2;

/// Carries it out in the calling thread's namespace.
pub(crate) fn change(change: &NftChange) -> Result<()> {
    match change {
        NftChange::DeleteTable(family, table) => {
            transaction(vec![(DELETE_TABLE, *family, text(1, table))]).context("delete the table")
        }
        NftChange::DeleteRule { family, table, chain, position } => {
            let place = [text(1, table), text(2, chain)].concat();
            let handles = rules(*family, &place)?;
            let handle = handles.get(*position).with_context(|| format!("only {} rules", handles.len()))?;
            let body = [place, attribute(3, &handle.to_be_bytes())].concat();
            transaction(vec![(DELETE_RULE, *family, body)]).context("delete the rule")
        }
        NftChange::DeleteElement { family, table, set, first, end } => {
            // NFTA_LIST_ELEM { NFTA_SET_ELEM_KEY { NFTA_DATA_VALUE }, NFTA_SET_ELEM_FLAGS = interval end }
            let key = |address: &IpAddr| nested(1, &attribute(1, &octets(*address)));
            let list =
                [nested(1, &key(first)), nested(1, &[key(end), attribute(3, &1_u32.to_be_bytes())].concat())];
            let body = [text(1, table), text(2, set), nested(3, &list.concat())].concat();
            transaction(vec![(DELETE_ELEMENTS, *family, body)]).context("delete the element")
        }
        NftChange::AddForwardDrop { family, table, chain } => {
            let hook =
                [attribute(1, &HOOK_FORWARD.to_be_bytes()), attribute(2, &0_u32.to_be_bytes())].concat();
            let policy_drop = attribute(5, &0_u32.to_be_bytes());
            let body = [text(1, table), text(3, chain), nested(4, &hook), policy_drop, text(7, "filter")];
            transaction(vec![(NEW_TABLE, *family, text(1, table)), (NEW_CHAIN, *family, body.concat())])
                .context("make the chain")
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `NFPROTO_INET` and `NFPROTO_IPV4`.
fn number(family: NftFamily) -> u8 {
    match family {
        NftFamily::Inet => 1,
        NftFamily::Ip => 2,
    }
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + payload.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, inner: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, inner)
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn frame(kind: u16, flags: u16, sequence: u32, family: [u8; FAMILY_HEADER], body: &[u8]) -> Vec<u8> {
    let length = (HEADER + FAMILY_HEADER + body.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(family);
    bytes.extend(body);
    bytes
}

fn open() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open a netfilter socket")?;
    socket.bind_auto().context("bind a netfilter socket")?;
    Ok(socket)
}

/// The messages in a datagram: kind, sequence, payload.
fn messages(mut bytes: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let length = word(0) as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        found.push((u16::from_ne_bytes([bytes[4], bytes[5]]), word(8), &bytes[HEADER..length]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn verdict(payload: &[u8]) -> Result<()> {
    match payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code)) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code).into()),
    }
}

/// Makes an `inet` table that nobody else may change, and holds it until standard input ends.
pub(crate) fn own(table: &str) -> Result<()> {
    let socket = open()?;
    let body = [text(1, table), attribute(2, &OWNER.to_be_bytes())].concat();
    transact(&socket, vec![(NEW_TABLE, NftFamily::Inet, body)]).context("own the table")?;
    println!("owning");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn transaction(changes: Vec<(u16, NftFamily, Vec<u8>)>) -> Result<()> {
    transact(&open()?, changes)
}

fn transact(socket: &Socket, changes: Vec<(u16, NftFamily, Vec<u8>)>) -> Result<()> {
    let marker = [0, 0, 0, SUBSYSTEM as u8];
    let mut bytes = frame(BATCH[0], 0, 0, marker, &[]);
    let mut last = 0;
    for (kind, family, body) in changes {
        last += 1;
        let create = if matches!(kind, NEW_TABLE | NEW_CHAIN) { CREATE } else { 0 };
        bytes.extend(frame(SUBSYSTEM << 8 | kind, ACK | create, last, [number(family), 0, 0, 0], &body));
    }
    bytes.extend(frame(BATCH[1], 0, last + 1, marker, &[]));
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).context("ask nftables")?;
    loop {
        let (answer, _) = socket.recv_from_full().context("answer of nftables")?;
        for (kind, sequence, payload) in messages(&answer) {
            if kind == ERROR {
                verdict(payload)?;
                if sequence == last {
                    return Ok(());
                }
            }
        }
    }
}

/// The handles of a chain's rules, in order.
fn rules(family: NftFamily, place: &[u8]) -> Result<Vec<u64>> {
    let socket = open()?;
    let bytes = frame(SUBSYSTEM << 8 | GET_RULE, DUMP, 1, [number(family), 0, 0, 0], place);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).context("ask nftables")?;
    let mut handles = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full().context("answer of nftables")?;
        for (kind, _, payload) in messages(&answer) {
            match kind {
                DONE => return Ok(handles),
                ERROR => verdict(payload).context("list rules")?,
                kind if kind == SUBSYSTEM << 8 | NEW_RULE => handles.extend(handle(payload)),
                other => bail!("unexpected message {other}"),
            }
        }
    }
}

/// `NFTA_RULE_HANDLE`.
fn handle(rule: &[u8]) -> Option<u64> {
    let mut rest = rule.get(FAMILY_HEADER..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let payload = rest.get(4..length)?;
        if u16::from_ne_bytes([rest[2], rest[3]]) == 3 {
            return Some(u64::from_be_bytes(*payload.first_chunk()?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}
