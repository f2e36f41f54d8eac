//! Tables, chains, sets and rules to and from nf_tables messages (`linux/netfilter/nf_tables.h`).

mod read;
pub(super) mod uplink;

use std::io;

use super::expression;
use super::netfilter::{APPEND, CREATE, Message, NFTABLES, Netfilter, errno};
use crate::core::plan::ruleset::{
    Chain, ChainName, ElementChange, Family, Range, Rule, Ruleset, Set, TABLE, TableFamily,
};
use cni_shim::netlink::attribute::Attributes;

pub(super) use read::Reader;

/// `enum nf_tables_msg_types`.
const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const GET_CHAIN: u8 = 4;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;
const DELETE_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const GET_SET: u8 = 10;
const NEW_ELEMENTS: u8 = 12;
const GET_ELEMENTS: u8 = 13;
const DELETE_ELEMENTS: u8 = 14;
const GET_GENERATION: u8 = 16;

/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6` of `linux/netfilter.h`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `NF_INET_FORWARD`.
const HOOK_FORWARD: u32 = 2;

/// `NFT_SET_INTERVAL`, and `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL: u32 = 4;
const INTERVAL_END: u32 = 1;

/// Types `ipv4_addr` and `ipv6_addr` of the nft tool, for its listings.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;

/// Elements per message: their list is one attribute, whose length has 16 bits; an element takes at most 36 bytes.
const ELEMENTS_PER_MESSAGE: usize = 1500;

/// Attributes that all objects share: `NFTA_*_TABLE` is 1.
const IN_TABLE: u16 = 1;

/// `NFTA_CHAIN_NAME`, `_HOOK`, `_POLICY`, `_TYPE`; inside the hook `NFTA_HOOK_HOOKNUM`, `_PRIORITY`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;

/// `NFTA_RULE_CHAIN`, `_HANDLE`, `_EXPRESSIONS`, `_USERDATA`.
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// `NFTA_SET_NAME`, `_FLAGS`, `_KEY_TYPE`, `_KEY_LEN`, `_ID`.
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_ID: u16 = 10;

/// `NFTA_SET_ELEM_LIST_SET`, `_ELEMENTS`; `NFTA_LIST_ELEM`; `NFTA_SET_ELEM_KEY`, `_FLAGS`.
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;

/// `NFTNL_UDATA_RULE_COMMENT` of libnftnl: type 0, one byte of length, text with terminator.
const COMMENT: u8 = 0;

fn message(kind: u8, flags: u16, body: Attributes) -> Message {
    Message { subsystem: NFTABLES, kind, flags, family: INET, body }
}

fn protocol_number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Ip => IPV4,
        TableFamily::Ip6 => IPV6,
        TableFamily::Inet => INET,
    }
}

/// Puts the ruleset in the place of our table.
pub(super) fn replace_table(socket: &mut Netfilter, ruleset: &Ruleset) -> io::Result<()> {
    let name = || Attributes::default().text(IN_TABLE, TABLE);
    // Creating it first makes the deletion succeed whether or not it was there.
    let mut messages = vec![
        message(NEW_TABLE, CREATE, name()),
        message(DELETE_TABLE, 0, name()),
        message(NEW_TABLE, CREATE, name()),
    ];
    messages.extend(ruleset.sets.iter().zip(1..).map(|(set, id)| new_set(set, id)));
    messages.extend(ruleset.sets.iter().flat_map(|set| elements_of(&set.name, &set.ranges, ADD)));
    for chain in &ruleset.chains {
        messages.push(new_chain(chain));
        messages.extend(chain.rules.iter().map(|rule| {
            let body = name().text(RULE_CHAIN, &chain.name);
            message(NEW_RULE, CREATE | APPEND, rule_body(body, rule))
        }));
    }
    socket.transaction(messages)
}

/// Takes elements out of sets and puts others in.
pub(super) fn change_elements(socket: &mut Netfilter, changes: &[ElementChange]) -> io::Result<()> {
    let messages = |(kind, flags), ranges: fn(&ElementChange) -> &[Range]| {
        changes.iter().flat_map(move |change| elements_of(&change.set, ranges(change), (kind, flags)))
    };
    // What goes first makes room for what comes: they may overlap.
    let all = messages(REMOVE, |change| &change.remove).chain(messages(ADD, |change| &change.add));
    socket.transaction(all.collect())
}

/// Deletes our table, if it is there.
pub(super) fn delete_table(socket: &mut Netfilter) -> io::Result<()> {
    let name = || Attributes::default().text(IN_TABLE, TABLE);
    socket.transaction(vec![message(NEW_TABLE, CREATE, name()), message(DELETE_TABLE, 0, name())])
}

/// Inserts rules at the head of a chain, in this order.
pub(super) fn insert_rules(socket: &mut Netfilter, chain: &ChainName, rules: &[Rule]) -> io::Result<()> {
    let insert = |rule: &Rule| {
        let body = Attributes::default().text(IN_TABLE, &chain.table).text(RULE_CHAIN, &chain.chain);
        let family = protocol_number(chain.family);
        Message { family, ..message(NEW_RULE, CREATE, rule_body(body, rule)) }
    };
    // Each goes before all that stand there, so the last is first.
    socket.transaction(rules.iter().rev().map(insert).collect())
}

/// Deletes a rule by its handle, if it is there.
pub(super) fn delete_rule(socket: &mut Netfilter, chain: &ChainName, handle: u64) -> io::Result<()> {
    let body = Attributes::default()
        .text(IN_TABLE, &chain.table)
        .text(RULE_CHAIN, &chain.chain)
        .be64(RULE_HANDLE, handle);
    let family = protocol_number(chain.family);
    match socket.transaction(vec![Message { family, ..message(DELETE_RULE, 0, body) }]) {
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn new_set(set: &Set, id: u32) -> Message {
    let (kind, length) = match set.family {
        Family::V4 => (TYPE_IPV4, 4),
        Family::V6 => (TYPE_IPV6, 16),
    };
    let body = Attributes::default()
        .text(IN_TABLE, TABLE)
        .text(SET_NAME, &set.name)
        .be32(SET_FLAGS, INTERVAL)
        .be32(SET_KEY_TYPE, kind)
        .be32(SET_KEY_LENGTH, length)
        .be32(SET_ID, id);
    message(NEW_SET, CREATE, body)
}

/// Message type and flags that put elements into a set.
const ADD: (u8, u16) = (NEW_ELEMENTS, CREATE);

/// The same that take them out.
const REMOVE: (u8, u16) = (DELETE_ELEMENTS, 0);

fn elements_of(set: &str, ranges: &[Range], (kind, flags): (u8, u16)) -> Vec<Message> {
    let mark = |key: Vec<u8>, flags: u32| {
        let key = Attributes::default().raw(expression::DATA_VALUE, &key);
        let element = Attributes::default().nested(ELEMENT_KEY, &key);
        if flags == 0 { element } else { element.be32(ELEMENT_FLAGS, flags) }
    };
    let marks = ranges.iter().flat_map(|range| {
        let end = after(&expression::octets(range.last)).map(|key| mark(key, INTERVAL_END));
        std::iter::once(mark(expression::octets(range.first), 0)).chain(end)
    });
    let mut messages = Vec::new();
    let mut list = Attributes::default();
    let mut count = 0;
    let mut flush = |list: &Attributes| {
        if !list.is_empty() {
            let body = Attributes::default().text(IN_TABLE, TABLE).text(ELEMENTS_SET, set);
            messages.push(message(kind, flags, body.nested(ELEMENTS_LIST, list)));
        }
    };
    for mark in marks {
        list = list.nested(LIST_ELEMENT, &mark);
        count += 1;
        if count % ELEMENTS_PER_MESSAGE == 0 {
            flush(&std::mem::take(&mut list));
        }
    }
    flush(&list);
    messages
}

/// The next address; the last has none.
fn after(octets: &[u8]) -> Option<Vec<u8>> {
    let mut next = octets.to_vec();
    for octet in next.iter_mut().rev() {
        *octet = octet.wrapping_add(1);
        if *octet != 0 {
            return Some(next);
        }
    }
    None
}

fn new_chain(chain: &Chain) -> Message {
    let hook = Attributes::default()
        .be32(HOOK_NUMBER, chain.hook)
        .be32(HOOK_PRIORITY, chain.priority.cast_unsigned());
    let body = Attributes::default()
        .text(IN_TABLE, TABLE)
        .text(CHAIN_NAME, &chain.name)
        .nested(CHAIN_HOOK, &hook)
        .be32(CHAIN_POLICY, u32::from(!chain.policy_drop))
        .text(CHAIN_TYPE, &chain.kind);
    message(NEW_CHAIN, CREATE, body)
}

fn rule_body(body: Attributes, rule: &Rule) -> Attributes {
    let body = body.nested(RULE_EXPRESSIONS, &expression::encode(&rule.parts));
    if rule.comment.is_empty() {
        return body;
    }
    let mut text = rule.comment.clone().into_bytes();
    // One byte of length, terminator included.
    text.truncate(usize::from(u8::MAX) - 1);
    text.push(0);
    let mut data = vec![COMMENT, u8::try_from(text.len()).unwrap_or(u8::MAX)];
    data.extend(text);
    body.raw(RULE_USERDATA, &data)
}

#[cfg(test)]
mod tests {
    use cni_shim::netlink::attribute;
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::read::{comment, pair, parse_element, parse_rule};
    use super::*;
    use crate::core::plan::ruleset::{Part, Range, ranges};

    /// The ranges that the kernel would report for these messages.
    fn read_back(set: &Set) -> Vec<Range> {
        let mut marks = Vec::new();
        for message in elements_of(&set.name, &set.ranges, ADD) {
            let body = message.body.bytes();
            let list = attribute::find(&body, ELEMENTS_LIST).unwrap();
            marks.extend(attribute::each(list).filter_map(|(_, element)| parse_element(element)));
        }
        marks.reverse();
        pair(set.family, marks)
    }

    proptest! {
        #[test]
        fn sets_survive_encode_then_decode(
            v4 in proptest::collection::vec((any::<[u8; 4]>(), 0u8..=32), 0..20),
            v6 in proptest::collection::vec((any::<[u8; 16]>(), 0u8..=128), 0..20),
        ) {
            let nets: Vec<IpNet> = v4.into_iter().map(|(octets, length)| IpNet::new(octets.into(), length).unwrap())
                .chain(v6.into_iter().map(|(octets, length)| IpNet::new(octets.into(), length).unwrap()))
                .collect();
            for family in [Family::V4, Family::V6] {
                let set = Set { name: "own".to_owned(), family, ranges: ranges(family, &nets) };
                prop_assert_eq!(read_back(&set), set.ranges);
            }
        }

        #[test]
        fn comments_survive_encode_then_decode(comment in "[ -~]{0,100}") {
            let rule = Rule { comment, parts: vec![Part::Counter] };
            prop_assert_eq!(parse_rule(&rule_body(Attributes::default(), &rule).bytes()), rule);
        }
    }

    #[test]
    fn ten_thousand_ranges_are_split_into_messages_that_fit() {
        let nets: Vec<IpNet> = (0u32..10_000)
            .map(|at| IpNet::new(std::net::Ipv4Addr::from_bits(at << 9).into(), 24).unwrap())
            .collect();
        let set = Set { name: "cluster4".to_owned(), family: Family::V4, ranges: ranges(Family::V4, &nets) };
        assert_eq!(set.ranges.len(), 10_000);
        for message in elements_of(&set.name, &set.ranges, ADD) {
            assert!(message.body.len() < usize::from(u16::MAX));
        }
        assert_eq!(read_back(&set), set.ranges);
    }

    #[test]
    fn a_comment_behind_other_user_data_is_found() {
        assert_eq!(comment(&[1, 2, 9, 9, 0, 3, b'h', b'i', 0]).as_deref(), Some("hi"));
        assert_eq!(comment(&[1, 200, 9]), None);
    }
}
