//! Rule parts to and from nf_tables expressions (`linux/netfilter/nf_tables.h`).
//!
//! A match is a load into register 1 (`meta` or `payload`), perhaps a mask (`bitwise`), and a test (`cmp` or
//! `lookup`). Reading follows the same pattern; what does not fit becomes [`Part::Foreign`].

use std::net::IpAddr;

use crate::core::plan::ruleset::{Device, Family, Membership, Part};
use cni_shim::netlink::attribute::{self, Attributes};

/// `NFT_REG_1`; `NFT_REG_VERDICT` is 0.
pub(super) const REGISTER: u32 = 1;

/// `enum nft_meta_keys`.
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

/// `enum nft_payload_bases`.
pub(super) const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` of `linux/netfilter.h`.
const PROTO_IPV4: u8 = 2;
const PROTO_IPV6: u8 = 10;

/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
pub(super) const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

/// `NF_DROP`, `NF_ACCEPT`, and `NFT_RETURN` (-5).
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const RETURN: u32 = u32::MAX - 4;

/// `NFT_LOOKUP_F_INV`.
const INVERSE: u32 = 1;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of `linux/netfilter/nf_nat.h`.
const RANDOM_FULLY: u32 = 1 << 4;

/// `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`, `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CODE`.
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

/// Offset and length of source and destination address in the network header (RFC 791, 3.1; RFC 8200, 3).
fn source_at(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    }
}

pub(super) fn destination_at(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (16, 4),
        Family::V6 => (24, 16),
    }
}

/// The address in network order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address from network order, by its length.
pub(super) fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from).or_else(v4)
}

/// The parts as a list of expressions.
pub(super) fn encode(parts: &[Part]) -> Attributes {
    parts.iter().fold(Attributes::default(), encode_part)
}

fn encode_part(list: Attributes, part: &Part) -> Attributes {
    match part {
        Part::Family(Family::V4) => compare(meta(list, META_NFPROTO), EQUAL, &[PROTO_IPV4]),
        Part::Family(Family::V6) => compare(meta(list, META_NFPROTO), EQUAL, &[PROTO_IPV6]),
        Part::Protocol(protocol) => compare(meta(list, META_L4PROTO), EQUAL, &[*protocol]),
        Part::MarkBits(bits) => {
            // Marks are numbers in host order.
            let masked = mask(meta(list, META_MARK), &bits.to_ne_bytes());
            compare(masked, UNEQUAL, &[0; 4])
        }
        Part::InDevice(device) => compare(meta(list, META_IIFNAME), EQUAL, &device_name(device)),
        Part::OutDevice(device) => compare(meta(list, META_OIFNAME), EQUAL, &device_name(device)),
        Part::Source(address) => {
            let load = payload(list, NETWORK, source_at(Family::of(*address)));
            compare(load, EQUAL, &octets(*address))
        }
        Part::Destination(address) => {
            let load = payload(list, NETWORK, destination_at(Family::of(*address)));
            compare(load, EQUAL, &octets(*address))
        }
        Part::SourceIn(member) => lookup(payload(list, NETWORK, source_at(member.family)), member),
        Part::DestinationIn(member) => lookup(payload(list, NETWORK, destination_at(member.family)), member),
        Part::DestinationPort(port) => compare(payload(list, TRANSPORT, (2, 2)), EQUAL, &port.to_be_bytes()),
        Part::Counter => expression(list, "counter", &Attributes::default()),
        Part::Accept => verdict(list, ACCEPT),
        Part::Drop => verdict(list, DROP),
        Part::Return => verdict(list, RETURN),
        Part::Notrack => expression(list, "notrack", &Attributes::default()),
        Part::Masquerade { fully_random: true } => {
            expression(list, "masq", &Attributes::default().be32(1, RANDOM_FULLY))
        }
        Part::Masquerade { fully_random: false } => expression(list, "masq", &Attributes::default()),
        // Never wanted; as an expression of that name it would be refused by the kernel.
        Part::Foreign(name) => expression(list, name, &Attributes::default()),
    }
}

pub(super) fn expression(list: Attributes, name: &str, data: &Attributes) -> Attributes {
    let one = Attributes::default().text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, data);
    list.nested(LIST_ELEMENT, &one)
}

/// `NFTA_META_DREG`, `NFTA_META_KEY`.
fn meta(list: Attributes, key: u32) -> Attributes {
    expression(list, "meta", &Attributes::default().be32(1, REGISTER).be32(2, key))
}

/// `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`.
fn payload(list: Attributes, base: u32, (offset, length): (u32, u32)) -> Attributes {
    let data = Attributes::default().be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, length);
    expression(list, "payload", &data)
}

/// `NFTA_BITWISE_SREG`, `_DREG`, `_LEN`, `_MASK`, `_XOR`.
fn mask(list: Attributes, bits: &[u8; 4]) -> Attributes {
    let value = |bytes: &[u8]| Attributes::default().raw(DATA_VALUE, bytes);
    let data = Attributes::default().be32(1, REGISTER).be32(2, REGISTER).be32(3, 4);
    expression(list, "bitwise", &data.nested(4, &value(bits)).nested(5, &value(&[0; 4])))
}

/// `NFTA_CMP_SREG`, `_OP`, `_DATA`.
pub(super) fn compare(list: Attributes, operator: u32, with: &[u8]) -> Attributes {
    let data = Attributes::default().be32(1, REGISTER).be32(2, operator);
    expression(list, "cmp", &data.nested(3, &Attributes::default().raw(DATA_VALUE, with)))
}

/// `NFTA_LOOKUP_SET`, `_SREG`, `_FLAGS`.
fn lookup(list: Attributes, member: &Membership) -> Attributes {
    let data = Attributes::default().text(1, &member.set).be32(2, REGISTER);
    let data = if member.inside { data } else { data.be32(5, INVERSE) };
    expression(list, "lookup", &data)
}

/// `NFTA_IMMEDIATE_DREG`, `_DATA`.
fn verdict(list: Attributes, code: u32) -> Attributes {
    let code = Attributes::default().be32(VERDICT_CODE, code);
    let data = Attributes::default().be32(1, 0).nested(2, &Attributes::default().nested(DATA_VERDICT, &code));
    expression(list, "immediate", &data)
}

/// With the terminator the whole name must match, without it only the beginning.
fn device_name(device: &Device) -> Vec<u8> {
    match device {
        Device::Named(name) => name.bytes().chain([0]).collect(),
        Device::Prefixed(prefix) => prefix.clone().into_bytes(),
    }
}

/// What register 1 holds.
#[derive(Clone, Copy)]
enum Loaded {
    Meta(u32),
    Payload(u32, u32, u32),
}

/// A list of expressions as parts.
pub(super) fn decode(list: &[u8]) -> Vec<Part> {
    let mut reader = Reader::default();
    for (_, one) in attribute::each(list) {
        let name = attribute::text(one, EXPRESSION_NAME).unwrap_or_default();
        let data = attribute::find(one, EXPRESSION_DATA).unwrap_or_default();
        if reader.read(&name, data).is_none() {
            reader.parts.push(Part::Foreign(name));
        }
    }
    reader.parts
}

#[derive(Default)]
struct Reader {
    parts: Vec<Part>,
    loaded: Option<Loaded>,
    mask: Option<u32>,
}

impl Reader {
    /// `None` if it is not of our vocabulary.
    fn read(&mut self, name: &str, data: &[u8]) -> Option<()> {
        let number = |kind| attribute::be32(data, kind);
        let part = match name {
            "meta" if number(1) == Some(REGISTER) => return self.load(Loaded::Meta(number(2)?)),
            "payload" if number(1) == Some(REGISTER) => {
                return self.load(Loaded::Payload(number(2)?, number(3)?, number(4)?));
            }
            "bitwise" if number(1) == Some(REGISTER) && number(2) == Some(REGISTER) => {
                let value = |kind| -> Option<[u8; 4]> {
                    attribute::find(attribute::find(data, kind)?, DATA_VALUE)?.try_into().ok()
                };
                if value(5)? != [0; 4] || self.mask.is_some() {
                    return None;
                }
                self.mask = Some(u32::from_ne_bytes(value(4)?));
                return Some(());
            }
            "cmp" if number(1) == Some(REGISTER) => {
                let with = attribute::find(attribute::find(data, 3)?, DATA_VALUE)?;
                self.compared(number(2)?, with)?
            }
            "lookup" if number(2) == Some(REGISTER) => {
                let inside = number(5).unwrap_or(0) & INVERSE == 0;
                self.looked_up(attribute::text(data, 1)?, inside)?
            }
            "counter" => Part::Counter,
            "notrack" => Part::Notrack,
            "masq" => match number(1).unwrap_or(0) {
                0 => Part::Masquerade { fully_random: false },
                RANDOM_FULLY => Part::Masquerade { fully_random: true },
                _ => return None,
            },
            "immediate" if number(1) == Some(0) => {
                let verdict = attribute::find(attribute::find(data, 2)?, DATA_VERDICT)?;
                match attribute::be32(verdict, VERDICT_CODE)? {
                    ACCEPT => Part::Accept,
                    DROP => Part::Drop,
                    RETURN => Part::Return,
                    _ => return None,
                }
            }
            _ => return None,
        };
        self.parts.push(part);
        Some(())
    }

    fn load(&mut self, what: Loaded) -> Option<()> {
        (self.loaded, self.mask) = (Some(what), None);
        Some(())
    }

    fn compared(&mut self, operator: u32, with: &[u8]) -> Option<Part> {
        let (loaded, mask) = (self.loaded?, self.mask.take());
        if let (Loaded::Meta(META_MARK), Some(bits)) = (loaded, mask) {
            return (operator == UNEQUAL && with == [0; 4]).then_some(Part::MarkBits(bits));
        }
        if operator != EQUAL || mask.is_some() {
            return None;
        }
        match loaded {
            Loaded::Meta(META_NFPROTO) => match with {
                [PROTO_IPV4] => Some(Part::Family(Family::V4)),
                [PROTO_IPV6] => Some(Part::Family(Family::V6)),
                _ => None,
            },
            Loaded::Meta(META_L4PROTO) => {
                <[u8; 1]>::try_from(with).ok().map(|[protocol]| Part::Protocol(protocol))
            }
            Loaded::Meta(META_IIFNAME) => Some(Part::InDevice(device(with))),
            Loaded::Meta(META_OIFNAME) => Some(Part::OutDevice(device(with))),
            Loaded::Payload(TRANSPORT, 2, 2) => {
                with.try_into().ok().map(|port| Part::DestinationPort(u16::from_be_bytes(port)))
            }
            Loaded::Payload(NETWORK, offset, length) => {
                let address = address(with)?;
                let family = Family::of(address);
                if (offset, length) == source_at(family) {
                    Some(Part::Source(address))
                } else {
                    ((offset, length) == destination_at(family)).then_some(Part::Destination(address))
                }
            }
            _ => None,
        }
    }

    fn looked_up(&mut self, set: String, inside: bool) -> Option<Part> {
        let Loaded::Payload(NETWORK, offset, length) = self.loaded? else { return None };
        if self.mask.is_some() {
            return None;
        }
        let family = if length == 4 { Family::V4 } else { Family::V6 };
        let member = Membership { set, family, inside };
        if (offset, length) == source_at(family) {
            Some(Part::SourceIn(member))
        } else {
            ((offset, length) == destination_at(family)).then_some(Part::DestinationIn(member))
        }
    }
}

fn device(name: &[u8]) -> Device {
    let text = attribute::until_nul(name);
    if name.contains(&0) { Device::Named(text) } else { Device::Prefixed(text) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_part() -> impl Strategy<Value = Part> {
        let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
        let address =
            prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        let device = ("[a-z]{1,15}", any::<bool>())
            .prop_map(|(name, whole)| if whole { Device::Named(name) } else { Device::Prefixed(name) });
        let member = ("[a-z]{1,12}", family.clone(), any::<bool>())
            .prop_map(|(set, family, inside)| Membership { set, family, inside });
        prop_oneof![
            family.prop_map(Part::Family),
            any::<u8>().prop_map(Part::Protocol),
            any::<u32>().prop_map(Part::MarkBits),
            device.clone().prop_map(Part::InDevice),
            device.prop_map(Part::OutDevice),
            address.clone().prop_map(Part::Source),
            address.prop_map(Part::Destination),
            member.clone().prop_map(Part::SourceIn),
            member.prop_map(Part::DestinationIn),
            any::<u16>().prop_map(Part::DestinationPort),
            any::<bool>().prop_map(|fully_random| Part::Masquerade { fully_random }),
            Just(Part::Counter),
            Just(Part::Accept),
            Just(Part::Drop),
            Just(Part::Return),
            Just(Part::Notrack),
        ]
    }

    proptest! {
        #[test]
        fn parts_survive_encode_then_decode(parts in proptest::collection::vec(any_part(), 0..8)) {
            let bytes = encode(&parts).bytes();
            prop_assert_eq!(decode(&bytes), parts);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes);
        }
    }

    #[test]
    fn what_is_not_ours_reads_as_foreign() {
        let list = expression(Attributes::default(), "limit", &Attributes::default());
        let list = compare(meta(list, META_MARK), EQUAL, &[0, 0, 0, 1]);
        assert_eq!(
            decode(&list.bytes()),
            [Part::Foreign("limit".to_owned()), Part::Foreign("cmp".to_owned())]
        );
    }
}
