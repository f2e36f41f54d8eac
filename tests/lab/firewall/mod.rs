//! Other people's nf_tables rules (`linux/netfilter/nf_tables.h`): a table as kube-proxy would make it, and what the
//! kernel holds, byte by byte. Written over netlink, so that no `nft` is needed where the tests run.

#[doc(hidden)]
pub mod message;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use self::message::{
    APPEND, CREATE, DELETE_TABLE, INET, IPV4, IPV6, attribute, attributes, be32, find, nested, octets, text,
    transaction, until_nul,
};
pub use self::message::{NEW_CHAIN, NEW_RULE, NEW_TABLE};

/// `enum nf_inet_hooks`.
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// `enum nf_ip_hook_priorities`: mangle, destination NAT, source NAT.
const MANGLE: i32 = -150;
const NAT_DST: i32 = -100;
const NAT_SRC: i32 = 100;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A table as kube-proxy would make it, of one family.
#[derive(Clone, Debug)]
#[must_use]
pub struct Table {
    name: String,
    v6: bool,
    redirects: Vec<(SocketAddr, SocketAddr)>,
    marks: Vec<(IpAddr, u32)>,
    masqueraded: Option<u32>,
}

impl Table {
    /// A table `ip NAME`, or `ip6 NAME`. It has all its chains, whatever rules follow.
    pub fn new(name: &str, v6: bool) -> Self {
        Self { name: name.to_owned(), v6, redirects: Vec::new(), marks: Vec::new(), masqueraded: None }
    }

    /// What comes in for `from`, or starts here, TCP and UDP, goes to `to`: a Service's address or a node port.
    pub fn redirect(mut self, from: SocketAddr, to: SocketAddr) -> Self {
        self.redirects.push((from, to));
        self
    }

    /// What comes in for `destination` gets this mark.
    pub fn mark(mut self, destination: IpAddr, mark: u32) -> Self {
        self.marks.push((destination, mark));
        self
    }

    /// What has one of these mark bits is masqueraded.
    pub fn masquerade_marked(mut self, bits: u32) -> Self {
        self.masqueraded = Some(bits);
        self
    }

    /// The transaction that makes it.
    pub(crate) fn transaction(&self) -> Vec<u8> {
        let family = if self.v6 { IPV6 } else { IPV4 };
        let name = text(1, &self.name);
        let mut messages = vec![(NEW_TABLE, CREATE, name.clone())];
        for (chain, kind, hook, priority) in [
            ("mark", "filter", PREROUTING, MANGLE),
            ("services", "nat", PREROUTING, NAT_DST),
            ("services-local", "nat", OUTPUT, NAT_DST),
            ("postrouting", "nat", POSTROUTING, NAT_SRC),
        ] {
            // NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY; NFTA_CHAIN_NAME, _HOOK, _TYPE.
            let hook = [be32(1, hook), be32(2, priority.cast_unsigned())].concat();
            let body = [name.clone(), text(3, chain), nested(4, &hook), text(7, kind)].concat();
            messages.push((NEW_CHAIN, CREATE, body));
        }
        let mut rule = |chain: &str, expressions: Vec<Vec<u8>>| {
            // NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS.
            let body = [name.clone(), text(2, chain), nested(4, &expressions.concat())].concat();
            messages.push((NEW_RULE, CREATE | APPEND, body));
        };
        for (destination, mark) in &self.marks {
            let mut parts = destination_is(*destination);
            parts.push(immediate(1, &mark.to_ne_bytes()));
            // NFTA_META_KEY NFT_META_MARK, NFTA_META_SREG.
            parts.push(expression("meta", &[be32(2, 3), be32(3, 1)].concat()));
            rule("mark", parts);
        }
        for (from, to) in &self.redirects {
            for (chain, protocol) in
                [("services", TCP), ("services", UDP), ("services-local", TCP), ("services-local", UDP)]
            {
                let mut parts = destination_is(from.ip());
                // NFT_META_L4PROTO; NFT_PAYLOAD_TRANSPORT_HEADER, the port's offset and length.
                parts.push(expression("meta", &[be32(1, 1), be32(2, 16)].concat()));
                parts.push(equals(&[protocol]));
                parts.push(payload(2, 2, 2));
                parts.push(equals(&from.port().to_be_bytes()));
                parts.push(immediate(1, &octets(to.ip())));
                parts.push(immediate(2, &to.port().to_be_bytes()));
                // NFTA_NAT_TYPE NFT_NAT_DNAT, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN.
                let nat = [be32(1, 1), be32(2, family.into()), be32(3, 1), be32(5, 2)].concat();
                parts.push(expression("nat", &nat));
                rule(chain, parts);
            }
        }
        if let Some(bits) = self.masqueraded {
            // NFT_META_MARK; NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR; not equal to nothing.
            let data = |bytes: &[u8]| attribute(1, bytes);
            let and = [nested(4, &data(&bits.to_ne_bytes())), nested(5, &data(&[0; 4]))].concat();
            rule(
                "postrouting",
                vec![
                    expression("meta", &[be32(1, 1), be32(2, 3)].concat()),
                    expression("bitwise", &[be32(1, 1), be32(2, 1), be32(3, 4), and].concat()),
                    expression("cmp", &[be32(1, 1), be32(2, 1), nested(3, &data(&[0; 4]))].concat()),
                    expression("masq", &[]),
                ],
            );
        }
        transaction(family, &messages)
    }
}

/// The transaction that deletes a table of the `inet` family.
pub(crate) fn deletion(table: &str) -> Vec<u8> {
    transaction(INET, &[(DELETE_TABLE, 0, text(1, table))])
}

/// `NFTA_LIST_ELEM` of `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)].concat())
}

/// `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`.
fn payload(base: u32, offset: u32, length: u32) -> Vec<u8> {
    expression("payload", &[be32(1, 1), be32(2, base), be32(3, offset), be32(4, length)].concat())
}

/// `NFTA_CMP_SREG`, `_OP` `NFT_CMP_EQ`, `_DATA`.
fn equals(value: &[u8]) -> Vec<u8> {
    expression("cmp", &[be32(1, 1), be32(2, 0), nested(3, &attribute(1, value))].concat())
}

/// `NFTA_IMMEDIATE_DREG`, `_DATA`.
fn immediate(register: u32, value: &[u8]) -> Vec<u8> {
    expression("immediate", &[be32(1, register), nested(2, &attribute(1, value))].concat())
}

/// Where IPv4 (RFC 791) and IPv6 (RFC 8200) have the destination, and that it is this.
fn destination_is(address: IpAddr) -> Vec<Vec<u8>> {
    let (offset, length) = if address.is_ipv4() { (16, 4) } else { (24, 16) };
    vec![payload(1, offset, length), equals(&octets(address))]
}

/// A table, chain, rule or set as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// What it is: the number of the message that makes such a thing.
    pub kind: u8,
    /// `NFPROTO_*` of the table.
    pub family: u8,
    /// All attributes: name, handle, expressions.
    pub attributes: Vec<u8>,
}

impl Object {
    /// The table that it is or is in.
    #[must_use]
    pub fn table(&self) -> String {
        find(&self.attributes, 1).map(until_nul).unwrap_or_default()
    }

    /// Name and data of each expression of a rule.
    #[must_use]
    pub fn expressions(&self) -> Vec<(String, Vec<u8>)> {
        let list = find(&self.attributes, 4).filter(|_| self.kind == NEW_RULE).unwrap_or_default();
        let one = |expression| {
            let name = find(expression, 1).map(until_nul).unwrap_or_default();
            (name, find(expression, 2).unwrap_or_default().to_vec())
        };
        attributes(list).map(|(_, expression)| one(expression)).collect()
    }
}
