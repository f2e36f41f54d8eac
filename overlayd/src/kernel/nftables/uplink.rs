//! Our table of the `netdev` family: frames that enter by the TAP device leave by an uplink, each to the neighbour that its IP
//! header names (`nft_fwd_netdev`).

use std::io;

use super::super::expression::{
    self, DATA_VALUE, EQUAL, EXPRESSION_DATA, EXPRESSION_NAME, NETWORK, REGISTER, compare, destination_at,
};
use super::super::netfilter::{APPEND, CREATE, Message, Netfilter, errno};
use super::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TYPE, DELETE_TABLE, GET_CHAIN, GET_RULE, GET_TABLE,
    HOOK_NUMBER, HOOK_PRIORITY, IN_TABLE, IPV4, IPV6, NEW_CHAIN, NEW_RULE, NEW_TABLE, RULE_CHAIN,
    RULE_EXPRESSIONS, message,
};
use crate::core::plan::UplinkTable;
use crate::core::plan::ruleset::{Family, TABLE};
use cni_shim::netlink::attribute::{self, Attributes};
use wire::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// `NFPROTO_NETDEV` of `linux/netfilter.h`, and its hook `NF_NETDEV_INGRESS`.
const NETDEV: u8 = 5;
const HOOK_INGRESS: u32 = 0;

const CHAIN: &str = "launch";

/// `NFTA_TABLE_FLAGS` and `NFT_TABLE_F_OWNER`: only this socket may change the table, and it goes with the socket.
const TABLE_FLAGS: u16 = 2;
const OWNED: u32 = 2;

/// `NFTA_HOOK_DEV`.
const HOOK_DEVICE: u16 = 3;

/// `NF_DROP`.
const POLICY_DROP: u32 = 0;

/// `NFT_META_PROTOCOL`: the EtherType.
const META_PROTOCOL: u32 = 1;

/// `NFT_REG_2`.
const SECOND_REGISTER: u32 = 2;

/// `NFTA_FWD_SREG_DEV`, `_SREG_ADDR`, `_NFPROTO`.
const FORWARD_LINK: u16 = 1;
const FORWARD_ADDRESS: u16 = 2;
const FORWARD_FAMILY: u16 = 3;

/// EtherType and `NFPROTO_*` of a family.
fn numbers(family: Family) -> (u16, u8) {
    match family {
        Family::V4 => (ETHERTYPE_IPV4, IPV4),
        Family::V6 => (ETHERTYPE_IPV6, IPV6),
    }
}

fn in_table() -> Attributes {
    Attributes::default().text(IN_TABLE, TABLE)
}

fn netdev(kind: u8, flags: u16, body: Attributes) -> Message {
    Message { family: NETDEV, ..message(kind, flags, body) }
}

/// What the table does, if it is there; one that was not made by [`replace`] does nothing that we want.
pub(super) fn read(socket: &mut Netfilter) -> io::Result<Option<UplinkTable>> {
    match socket.get(netdev(GET_TABLE, 0, in_table())) {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(None),
        // The second is a kernel without this family.
        Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => return Ok(None),
        Err(error) => return Err(error),
    }
    let is_ours = |object: &[u8]| attribute::text(object, IN_TABLE).as_deref() == Some(TABLE);
    let devices = socket.dump(netdev(GET_CHAIN, 0, in_table()), |_, chain| {
        let hook = attribute::find(chain, CHAIN_HOOK)?;
        is_ours(chain).then(|| attribute::text(hook, HOOK_DEVICE).unwrap_or_default())
    })?;
    let links = socket.dump(netdev(GET_RULE, 0, in_table()), |_, rule| {
        is_ours(rule).then(|| decode(attribute::find(rule, RULE_EXPRESSIONS).unwrap_or_default()))
    })?;
    let table = match (devices.as_slice(), links.into_iter().collect::<Option<Vec<_>>>()) {
        ([device], Some(links)) => UplinkTable { device: device.clone(), links },
        _ => UplinkTable::default(),
    };
    Ok(Some(table))
}

/// Puts this in the place of the table, in one transaction: frames find the old way or the new one.
pub(in crate::kernel) fn replace(socket: &mut Netfilter, table: &UplinkTable) -> io::Result<()> {
    let hook = Attributes::default()
        .be32(HOOK_NUMBER, HOOK_INGRESS)
        .be32(HOOK_PRIORITY, 0)
        .text(HOOK_DEVICE, &table.device);
    let chain = in_table()
        .text(CHAIN_NAME, CHAIN)
        .nested(CHAIN_HOOK, &hook)
        .be32(CHAIN_POLICY, POLICY_DROP)
        .text(CHAIN_TYPE, "filter");
    let rules = table.links.iter().map(|(family, link)| {
        let body = in_table().text(RULE_CHAIN, CHAIN);
        netdev(NEW_RULE, CREATE | APPEND, body.nested(RULE_EXPRESSIONS, &encode(*family, *link)))
    });
    // Creating it first makes the deletion succeed whether or not it was there.
    let mut messages =
        vec![new_table(), netdev(DELETE_TABLE, 0, in_table()), new_table(), netdev(NEW_CHAIN, CREATE, chain)];
    messages.extend(rules);
    socket.transaction(messages)
}

fn new_table() -> Message {
    netdev(NEW_TABLE, CREATE, in_table().be32(TABLE_FLAGS, OWNED))
}

/// Packets of this family, counted, to their destination address by this link.
fn encode(family: Family, link: u32) -> Attributes {
    let (ethertype, protocol) = numbers(family);
    let number = |at, value| Attributes::default().be32(at, value);
    let list =
        expression::expression(Attributes::default(), "meta", &number(1, REGISTER).be32(2, META_PROTOCOL));
    let list = compare(list, EQUAL, &ethertype.to_be_bytes());
    let list = expression::expression(list, "counter", &Attributes::default());
    let link = Attributes::default().raw(DATA_VALUE, &link.to_ne_bytes());
    let list = expression::expression(list, "immediate", &number(1, REGISTER).nested(2, &link));
    let (offset, length) = destination_at(family);
    let load = number(1, SECOND_REGISTER).be32(2, NETWORK).be32(3, offset).be32(4, length);
    let list = expression::expression(list, "payload", &load);
    let forward = number(FORWARD_LINK, REGISTER)
        .be32(FORWARD_ADDRESS, SECOND_REGISTER)
        .be32(FORWARD_FAMILY, u32::from(protocol));
    expression::expression(list, "fwd", &forward)
}

/// The family and link of a rule as [`encode`] makes it.
fn decode(list: &[u8]) -> Option<(Family, u32)> {
    let parts: Vec<(String, &[u8])> = attribute::each(list)
        .map(|(_, one)| {
            let name = attribute::text(one, EXPRESSION_NAME).unwrap_or_default();
            (name, attribute::find(one, EXPRESSION_DATA).unwrap_or_default())
        })
        .collect();
    let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    if names != ["meta", "cmp", "counter", "immediate", "payload", "fwd"] {
        return None;
    }
    let value = |at: usize, kind| attribute::find(attribute::find(parts.get(at)?.1, kind)?, DATA_VALUE);
    let ethertype = u16::from_be_bytes(value(1, 3)?.try_into().ok()?);
    let family = [Family::V4, Family::V6].into_iter().find(|family| numbers(*family).0 == ethertype)?;
    let link = u32::from_ne_bytes(value(3, 2)?.try_into().ok()?);
    let offset = attribute::be32(parts.get(4)?.1, 3)?;
    (offset == destination_at(family).0).then_some((family, link))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rules_survive_encode_then_decode(v6: bool, link: u32) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            prop_assert_eq!(decode(&encode(family, link).bytes()), Some((family, link)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes);
        }
    }

    #[test]
    fn another_rule_is_none_of_ours() {
        let accept = expression::encode(&[crate::core::plan::ruleset::Part::Counter]).bytes();
        assert_eq!(decode(&accept), None);
    }
}
