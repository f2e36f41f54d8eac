//! What the kernel holds: our tables as values, and the forward chains of others.

use std::io;

use super::super::expression;
use super::super::netfilter::{Message, Netfilter, errno};
use super::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TYPE, COMMENT, ELEMENT_FLAGS, ELEMENT_KEY, ELEMENTS_LIST,
    ELEMENTS_SET, GET_CHAIN, GET_ELEMENTS, GET_GENERATION, GET_RULE, GET_SET, GET_TABLE, HOOK_FORWARD,
    HOOK_NUMBER, HOOK_PRIORITY, IN_TABLE, INET, INTERVAL_END, IPV4, IPV6, RULE_CHAIN, RULE_EXPRESSIONS,
    RULE_HANDLE, RULE_USERDATA, SET_KEY_LENGTH, SET_NAME, message, protocol_number, uplink,
};
use crate::core::plan::UplinkTable;
use crate::core::plan::ruleset::{
    Chain, ChainName, FORWARD_TAG, Family, ForwardChain, Part, Range, Rule, Ruleset, Set, TABLE, TableFamily,
};
use cni_shim::netlink::attribute::{self, Attributes};

/// What a read finds.
#[derive(Clone, Debug, Default)]
pub(in crate::kernel) struct State {
    pub(in crate::kernel) table: Option<Ruleset>,
    pub(in crate::kernel) uplink_table: Option<UplinkTable>,
    pub(in crate::kernel) forward_chains: Vec<ForwardChain>,
}

/// Reads our table and the forward chains of others; the last result again while nobody changed any rule.
#[derive(Debug, Default)]
pub(in crate::kernel) struct Reader {
    last: Option<(u32, State)>,
}

impl Reader {
    pub(in crate::kernel) fn read(&mut self, socket: &mut Netfilter) -> io::Result<State> {
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

pub(super) fn parse_rule(bytes: &[u8]) -> Rule {
    let parts = expression::decode(attribute::find(bytes, RULE_EXPRESSIONS).unwrap_or_default());
    let comment = attribute::find(bytes, RULE_USERDATA).and_then(comment).unwrap_or_default();
    Rule { comment, parts }
}

/// The comment among a rule's user data: a list of type, length, value.
pub(super) fn comment(mut data: &[u8]) -> Option<String> {
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
pub(super) fn parse_element(element: &[u8]) -> Option<(u128, bool)> {
    let key = attribute::find(attribute::find(element, ELEMENT_KEY)?, expression::DATA_VALUE)?;
    let number = key.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
    let ends = attribute::be32(element, ELEMENT_FLAGS).unwrap_or(0) & INTERVAL_END != 0;
    Some((number, ends))
}

/// Ranges from interval marks: each begins an interval or ends the one before it, exclusively. One without an end goes
/// up to the last address.
pub(super) fn pair(family: Family, mut marks: Vec<(u128, bool)>) -> Vec<Range> {
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
