//! Tables, chains, sets and rules to and from nf_tables messages (`linux/netfilter/nf_tables.h`).

use std::io;

use super::netfilter::{APPEND, CREATE, Message, NFTABLES, Netfilter, errno};
use super::{expression, uplink};
use crate::core::plan::UplinkTable;
use crate::core::plan::ruleset::{
    Chain, ChainName, ElementChange, FORWARD_TAG, Family, ForwardChain, Part, Range, Rule, Ruleset, Set,
    TABLE, TableFamily,
};
use cni_shim::netlink::attribute::{self, Attributes};

/// `enum nf_tables_msg_types`.
pub(super) const NEW_TABLE: u8 = 0;
pub(super) const GET_TABLE: u8 = 1;
pub(super) const DELETE_TABLE: u8 = 2;
pub(super) const NEW_CHAIN: u8 = 3;
pub(super) const GET_CHAIN: u8 = 4;
pub(super) const NEW_RULE: u8 = 6;
pub(super) const GET_RULE: u8 = 7;
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
pub(super) const IN_TABLE: u16 = 1;

/// `NFTA_CHAIN_NAME`, `_HOOK`, `_POLICY`, `_TYPE`; inside the hook `NFTA_HOOK_HOOKNUM`, `_PRIORITY`.
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

/// `NFTA_RULE_CHAIN`, `_HANDLE`, `_EXPRESSIONS`, `_USERDATA`.
pub(super) const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
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

/// What a read finds.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) table: Option<Ruleset>,
    pub(super) uplink_table: Option<UplinkTable>,
    pub(super) forward_chains: Vec<ForwardChain>,
}

/// Reads our table and the forward chains of others; the last result again while nobody changed any rule.
#[derive(Debug, Default)]
pub(super) struct Reader {
    last: Option<(u32, State)>,
}

impl Reader {
    pub(super) fn read(&mut self, socket: &mut Netfilter) -> io::Result<State> {
        // Asked for before the dumps: a change during them has a greater number and makes the next read complete.
        let generation = generation(socket)?;
        if let Some((_, state)) = self.last.as_ref().filter(|(known, _)| Some(*known) == generation) {
            return Ok(state.clone());
        }
        let state = read(socket)?;
        self.last = generation.map(|generation| (generation, state.clone()));
        Ok(state)
    }
}

pub(super) fn message(kind: u8, flags: u16, body: Attributes) -> Message {
    Message { subsystem: NFTABLES, kind, flags, family: INET, body }
}

/// `NFTA_GEN_ID`: counts transactions.
fn generation(socket: &mut Netfilter) -> io::Result<Option<u32>> {
    let answer = socket.get(message(GET_GENERATION, 0, Attributes::default()))?;
    Ok(answer.and_then(|answer| attribute::be32(&answer, 1)))
}

fn read(socket: &mut Netfilter) -> io::Result<State> {
    let present = match socket.get(message(GET_TABLE, 0, Attributes::default().text(IN_TABLE, TABLE))) {
        Ok(answer) => answer.is_some(),
        Err(error) if errno(&error) == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    let everybody = Message { family: 0, ..message(GET_CHAIN, 0, Attributes::default()) };
    let chains =
        socket.dump(everybody, |family, chain| Some((table_family(family)?, SeenChain::parse(chain)?)))?;
    let mut state = State { uplink_table: uplink::read(socket)?, ..State::default() };
    let mut ours = Vec::new();
    for (family, chain) in chains {
        if family == TableFamily::Inet && chain.table == TABLE {
            ours.push(chain.chain);
        } else if chain.chain.hook == HOOK_FORWARD && chain.chain.kind == "filter" {
            state.forward_chains.extend(forward_chain(socket, family, chain)?);
        }
    }
    if !present {
        return Ok(state);
    }
    ours.sort_by(|one, other| one.name.cmp(&other.name));
    let in_table = || Attributes::default().text(IN_TABLE, TABLE);
    let rules = socket.dump(message(GET_RULE, 0, in_table()), |family, rule| {
        let in_ours = family == INET && attribute::text(rule, IN_TABLE).as_deref() == Some(TABLE);
        in_ours.then(|| (attribute::text(rule, RULE_CHAIN).unwrap_or_default(), parse_rule(rule)))
    })?;
    for (name, rule) in rules {
        if let Some(chain) = ours.iter_mut().find(|chain| chain.name == name) {
            chain.rules.push(rule);
        }
    }
    let mut sets = socket.dump(message(GET_SET, 0, in_table()), |family, set| {
        let in_ours = family == INET && attribute::text(set, IN_TABLE).as_deref() == Some(TABLE);
        let family = if attribute::be32(set, SET_KEY_LENGTH) == Some(16) { Family::V6 } else { Family::V4 };
        let name = attribute::text(set, SET_NAME)?;
        in_ours.then_some(Set { name, family, ranges: Vec::new() })
    })?;
    for set in &mut sets {
        set.ranges = elements(socket, set)?;
    }
    sets.sort();
    state.table = Some(Ruleset { sets, chains: ours });
    Ok(state)
}

fn table_family(family: u8) -> Option<TableFamily> {
    match family {
        IPV4 => Some(TableFamily::Ip),
        IPV6 => Some(TableFamily::Ip6),
        INET => Some(TableFamily::Inet),
        _ => None,
    }
}

fn protocol_number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Ip => IPV4,
        TableFamily::Ip6 => IPV6,
        TableFamily::Inet => INET,
    }
}

struct SeenChain {
    table: String,
    chain: Chain,
}

impl SeenChain {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let hook = attribute::find(bytes, CHAIN_HOOK).unwrap_or_default();
        let chain = Chain {
            name: attribute::text(bytes, CHAIN_NAME)?,
            kind: attribute::text(bytes, CHAIN_TYPE).unwrap_or_default(),
            // A chain without a hook is only jumped to; no hook has this number.
            hook: attribute::be32(hook, HOOK_NUMBER).unwrap_or(u32::MAX),
            priority: attribute::be32(hook, HOOK_PRIORITY).unwrap_or(0).cast_signed(),
            // NF_DROP is 0, NF_ACCEPT 1.
            policy_drop: attribute::be32(bytes, CHAIN_POLICY) == Some(0),
            rules: Vec::new(),
        };
        Some(Self { table: attribute::text(bytes, IN_TABLE)?, chain })
    }
}

/// A foreign forward chain, if it matters: it drops by policy, or has rules of ours.
fn forward_chain(
    socket: &mut Netfilter,
    family: TableFamily,
    seen: SeenChain,
) -> io::Result<Option<ForwardChain>> {
    let name = ChainName { family, table: seen.table, chain: seen.chain.name };
    let body = Attributes::default().text(IN_TABLE, &name.table).text(RULE_CHAIN, &name.chain);
    let request = Message { family: protocol_number(family), ..message(GET_RULE, 0, body) };
    let rules = socket.dump(request, |_, rule| {
        let here = attribute::text(rule, IN_TABLE).as_ref() == Some(&name.table)
            && attribute::text(rule, RULE_CHAIN).as_ref() == Some(&name.chain);
        here.then(|| (attribute::be64(rule, RULE_HANDLE).unwrap_or(0), parse_rule(rule)))
    })?;
    let mut chain =
        ForwardChain { name, policy_drop: seen.chain.policy_drop, ours: Vec::new(), by_hand: Vec::new() };
    for (handle, rule) in rules {
        if rule.comment == FORWARD_TAG {
            chain.ours.push((handle, rule));
        } else if !rule.parts.iter().any(|part| matches!(part, Part::Foreign(_))) {
            chain.by_hand.push(rule);
        }
    }
    Ok((chain.policy_drop || !chain.ours.is_empty()).then_some(chain))
}

fn parse_rule(bytes: &[u8]) -> Rule {
    let parts = expression::decode(attribute::find(bytes, RULE_EXPRESSIONS).unwrap_or_default());
    let comment = attribute::find(bytes, RULE_USERDATA).and_then(comment).unwrap_or_default();
    Rule { comment, parts }
}

/// The comment among a rule's user data: a list of type, length, value.
fn comment(mut data: &[u8]) -> Option<String> {
    loop {
        let [kind, length, rest @ ..] = data else { return None };
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return Some(attribute::until_nul(value));
        }
        data = rest.get(usize::from(*length)..)?;
    }
}

fn elements(socket: &mut Netfilter, set: &Set) -> io::Result<Vec<Range>> {
    let body = Attributes::default().text(IN_TABLE, TABLE).text(ELEMENTS_SET, &set.name);
    let lists = socket.dump(message(GET_ELEMENTS, 0, body), |_, list| {
        let elements = attribute::find(list, ELEMENTS_LIST)?;
        Some(attribute::each(elements).filter_map(|(_, element)| parse_element(element)).collect::<Vec<_>>())
    })?;
    Ok(pair(set.family, lists.concat()))
}

/// Key and whether it ends an interval.
fn parse_element(element: &[u8]) -> Option<(u128, bool)> {
    let key = attribute::find(attribute::find(element, ELEMENT_KEY)?, expression::DATA_VALUE)?;
    let number = key.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
    let ends = attribute::be32(element, ELEMENT_FLAGS).unwrap_or(0) & INTERVAL_END != 0;
    Some((number, ends))
}

/// Ranges from interval marks: each begins an interval or ends the one before it, exclusively. One without an end goes
/// up to the last address.
fn pair(family: Family, mut marks: Vec<(u128, bool)>) -> Vec<Range> {
    // An end before a beginning of the same key.
    marks.sort_unstable_by_key(|(key, ends)| (*key, !ends));
    let highest = if family == Family::V4 { u128::from(u32::MAX) } else { u128::MAX };
    let mut ranges = Vec::with_capacity(marks.len() / 2 + 1);
    let mut open: Option<u128> = None;
    for (key, ends) in marks {
        match (open, ends) {
            (Some(first), true) => {
                ranges.extend(range(family, first, key.saturating_sub(1)));
                open = None;
            }
            (None, false) => open = Some(key),
            _ => {}
        }
    }
    ranges.extend(open.and_then(|first| range(family, first, highest)));
    ranges
}

fn range(family: Family, first: u128, last: u128) -> Option<Range> {
    let length = if family == Family::V4 { 4 } else { 16 };
    let address = |number: u128| expression::address(number.to_be_bytes().get(16 - length..)?);
    Some(Range { first: address(first)?, last: address(last)? })
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
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::core::plan::ruleset::ranges;

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
