//! A NETLINK_NETFILTER socket: carries what `tests::firewall` wrote, changes nftables by hand, and reads what there is.

use std::io::{self, Read};
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use tests::firewall::Object;
use tests::firewall::message::{
    CREATE, DELETE_ELEMENTS, DELETE_RULE, DELETE_TABLE, GET_RULE, INET, IPV4, Message, NEW_CHAIN, NEW_TABLE,
    attribute, be32, find, messages, nested, octets, question, text, transaction,
};
use tests::protocol::{NftChange, NftFamily};

/// `NFT_MSG_GETTABLE`, `_GETCHAIN`, `_GETRULE`, `_GETSET`, `_GETFLOWTABLE`.
const LISTS: [u8; 5] = [1, 4, GET_RULE, 10, 23];
/// `NF_INET_FORWARD`.
const HOOK_FORWARD: u32 = 2;
/// `NFT_TABLE_F_OWNER`: the table belongs to the socket that made it, and goes with it.
const OWNER: u32 = 2;

/// Carries out the transaction on standard input.
pub(crate) fn apply() -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    carry(&open()?, &bytes)
}

/// Prints all tables, chains, rules and sets, whoever made them.
pub(crate) fn dump() -> Result<()> {
    let socket = open()?;
    let mut objects = Vec::new();
    for kind in LISTS {
        objects.extend(list(&socket, &question(kind, 0, &[])).with_context(|| format!("list {kind}"))?);
    }
    crate::traffic::report(&objects)
}

/// Makes an `inet` table that nobody else may change, and holds it until standard input ends.
pub(crate) fn own(table: &str) -> Result<()> {
    let socket = open()?;
    let body = [text(1, table), be32(2, OWNER)].concat();
    carry(&socket, &transaction(INET, &[(NEW_TABLE, CREATE, body)])).context("own the table")?;
    println!("owning");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// Carries out a change in the calling thread's namespace.
pub(crate) fn change(change: &NftChange) -> Result<()> {
    let socket = open()?;
    let (family, messages, what) = match change {
        NftChange::DeleteTable(family, table) => {
            (family, vec![(DELETE_TABLE, 0, text(1, table))], "delete the table")
        }
        NftChange::DeleteRule { family, table, chain, position } => {
            let place = [text(1, table), text(2, chain)].concat();
            let rules = list(&socket, &question(GET_RULE, number(*family), &place)).context("list rules")?;
            let rule = rules.get(*position).with_context(|| format!("only {} rules", rules.len()))?;
            // NFTA_RULE_HANDLE.
            let handle = find(&rule.attributes, 3).context("a rule without a handle")?;
            (family, vec![(DELETE_RULE, 0, [place, attribute(3, handle)].concat())], "delete the rule")
        }
        NftChange::DeleteElement { family, table, set, first, end } => {
            // NFTA_LIST_ELEM { NFTA_SET_ELEM_KEY { NFTA_DATA_VALUE }, NFTA_SET_ELEM_FLAGS = interval end }
            let key = |address: &IpAddr| nested(1, &attribute(1, &octets(*address)));
            let list = [nested(1, &key(first)), nested(1, &[key(end), be32(3, 1)].concat())];
            let body = [text(1, table), text(2, set), nested(3, &list.concat())].concat();
            (family, vec![(DELETE_ELEMENTS, 0, body)], "delete the element")
        }
        NftChange::AddForwardDrop { family, table, chain } => {
            let hook = [be32(1, HOOK_FORWARD), be32(2, 0)].concat();
            let policy_drop = be32(5, 0);
            let body = [text(1, table), text(3, chain), nested(4, &hook), policy_drop, text(7, "filter")];
            let messages = vec![(NEW_TABLE, CREATE, text(1, table)), (NEW_CHAIN, CREATE, body.concat())];
            (family, messages, "make the chain")
        }
    };
    carry(&socket, &transaction(number(*family), &messages)).context(what)
}

fn number(family: NftFamily) -> u8 {
    match family {
        NftFamily::Inet => INET,
        NftFamily::Ip => IPV4,
    }
}

fn open() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open a netfilter socket")?;
    socket.bind_auto().context("bind a netfilter socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("connect a netfilter socket")?;
    Ok(socket)
}

/// Sends a transaction and awaits the answer to its last message.
fn carry(socket: &Socket, bytes: &[u8]) -> Result<()> {
    let last = messages(bytes).filter(Message::wants_answer).map(|message| message.sequence).max();
    socket.send(bytes, 0).context("send the transaction")?;
    loop {
        let answers = receive(socket)?;
        for answer in messages(&answers) {
            let Some(verdict) = answer.verdict() else { continue };
            verdict.with_context(|| format!("message {} of the transaction", answer.sequence))?;
            if Some(answer.sequence) == last {
                return Ok(());
            }
        }
    }
}

/// Asks for a list and reads it to its end.
fn list(socket: &Socket, question: &[u8]) -> Result<Vec<Object>> {
    socket.send(question, 0).context("ask nftables")?;
    let mut objects = Vec::new();
    loop {
        let answers = receive(socket)?;
        for answer in messages(&answers) {
            if let Some(verdict) = answer.verdict() {
                verdict?;
                return Ok(objects);
            }
            objects.push(Object {
                kind: answer.kind(),
                family: answer.family(),
                attributes: answer.attributes().to_vec(),
            });
        }
    }
}

fn receive(socket: &Socket) -> Result<Vec<u8>> {
    Ok(socket.recv_from_full().context("receive from nftables")?.0)
}
