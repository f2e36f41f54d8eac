//! Connection tracking entries: which ones go bare to the outside, and their removal (`linux/netfilter/nfnetlink_conntrack.h`).

use std::io;
use std::net::IpAddr;

use super::expression::address;
use super::netfilter::{CONNTRACK, Message, Netfilter, errno};
use crate::core::plan::ruleset::{Range, covers};
use cni_shim::netlink::attribute::{self, Attributes};

/// `IPCTNL_MSG_CT_GET` and `_DELETE`.
const GET: u8 = 1;
const DELETE: u8 = 2;

/// `enum ctattr_type`.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// `CTA_TUPLE_IP`; inside it source and destination: `CTA_IP_V4_SRC` 1, `_V4_DST` 2, `_V6_SRC` 3, `_V6_DST` 4.
const TUPLE_ADDRESSES: u16 = 1;

/// Deletes the entries from `sources` to destinations outside `exempt` whose source was never translated.
/// Both lists are ascending per family. Returns how many were deleted.
pub(super) fn forget_bare(socket: &mut Netfilter, sources: &[Range], exempt: &[Range]) -> io::Result<u64> {
    let everything =
        Message { subsystem: CONNTRACK, kind: GET, flags: 0, family: 0, body: Attributes::default() };
    let bare = socket.dump(everything, |family, entry| {
        let named = || {
            let mut name = Attributes::default().raw(TUPLE_ORIGINAL, attribute::find(entry, TUPLE_ORIGINAL)?);
            for kind in [ID, ZONE] {
                if let Some(value) = attribute::find(entry, kind) {
                    name = name.raw(kind, value);
                }
            }
            Some((family, name))
        };
        if is_bare(entry, sources, exempt)? { named() } else { None }
    })?;
    let mut deleted = 0;
    for (family, body) in bare {
        match socket.request(Message { subsystem: CONNTRACK, kind: DELETE, flags: 0, family, body }) {
            Ok(()) => deleted += 1,
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

fn is_bare(entry: &[u8], sources: &[Range], exempt: &[Range]) -> Option<bool> {
    let (source, _) = ends(attribute::find(entry, TUPLE_ORIGINAL)?)?;
    // The reply's ends are those after translation.
    let (destination, seen_source) = ends(attribute::find(entry, TUPLE_REPLY)?)?;
    let within =
        |ranges: &[Range], address| family_of(ranges, address).any(|range| covers(&[range], address));
    Some(seen_source == source && within(sources, source) && !within(exempt, destination))
}

fn family_of(ranges: &[Range], address: IpAddr) -> impl Iterator<Item = Range> {
    ranges.iter().copied().filter(move |range| range.first.is_ipv4() == address.is_ipv4())
}

fn ends(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let addresses = attribute::find(tuple, TUPLE_ADDRESSES)?;
    let either =
        |v4, v6| attribute::find(addresses, v4).or_else(|| attribute::find(addresses, v6)).and_then(address);
    Some((either(1, 3)?, either(2, 4)?))
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::core::plan::ruleset::{Family, ranges};

    fn tuple(source: &str, destination: &str) -> Attributes {
        let octets = |text: &str| super::super::expression::octets(text.parse().unwrap());
        let v6 = u16::from(source.contains(':')) * 2;
        let addresses = Attributes::default().raw(1 + v6, &octets(source)).raw(2 + v6, &octets(destination));
        Attributes::default().nested(TUPLE_ADDRESSES, &addresses)
    }

    fn bare(original: (&str, &str), reply: (&str, &str)) -> bool {
        let entry = Attributes::default()
            .nested(TUPLE_ORIGINAL, &tuple(original.0, original.1))
            .nested(TUPLE_REPLY, &tuple(reply.0, reply.1))
            .bytes();
        let nets = |texts: &[&str]| -> Vec<Range> {
            let nets: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
            [Family::V4, Family::V6].into_iter().flat_map(|family| ranges(family, &nets)).collect()
        };
        let sources = nets(&["10.244.1.0/24", "fd00:1::/64"]);
        let exempt = nets(&["10.244.0.0/16", "192.0.2.1/32", "fd00::/16"]);
        is_bare(&entry, &sources, &exempt).unwrap()
    }

    #[test]
    fn only_untranslated_flows_to_the_outside_are_bare() {
        let pod = "10.244.1.5";
        assert!(bare((pod, "198.51.100.1"), ("198.51.100.1", pod)));
        assert!(!bare((pod, "198.51.100.1"), ("198.51.100.1", "192.0.2.1")), "has source NAT");
        assert!(!bare((pod, "10.244.2.9"), ("10.244.2.9", pod)), "pod to pod");
        assert!(!bare((pod, "192.0.2.1"), ("192.0.2.1", pod)), "pod to own node");
        assert!(!bare((pod, "10.96.0.1"), ("10.244.2.9", pod)), "service with a pod behind");
        assert!(bare((pod, "10.96.0.1"), ("192.0.2.2", pod)), "service with another node behind");
        assert!(!bare(("192.0.2.1", "198.51.100.1"), ("198.51.100.1", "192.0.2.1")), "not a pod");
        assert!(bare(("fd00:1::5", "2001:db8::1"), ("2001:db8::1", "fd00:1::5")));
    }
}
