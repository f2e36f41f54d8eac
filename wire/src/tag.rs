//! What the CNI plugin and the daemon must agree on to recognise their own kernel objects.
//!
//! The host end of a pod's veth pair *is* the lease: its name is derived from the attachment, so that
//! a deletion needs no lookup, and its alias says who holds which addresses, so that a daemon that
//! starts knows every lease without a file. Everything else that goes with a pod (host routes, both
//! MAC addresses) follows from these two.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::ipc::Attachment;
use crate::packet::MacAddr;

/// Name prefix of the host end of every pod's veth pair.
pub const VETH_PREFIX: &str = "ovp";

/// Device group (`IFLA_GROUP`) of the host end of every pod's veth pair: "ovld" in ASCII.
pub const VETH_GROUP: u32 = 0x6f76_6c64;

/// `rtm_protocol` of every route that is ours. Neither `<linux/rtnetlink.h>` nor iproute2's `rt_protos`
/// has this number.
pub const ROUTE_PROTOCOL: u8 = 111;

/// Metric of the host routes to pods. One for all, so that a second route to the same address is `EEXIST`.
pub const POD_ROUTE_METRIC: u32 = 1;

/// The gateway that IPv4 pods see: link-local, on no wire, answered by a permanent neighbour entry.
pub const GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);

/// The gateway that IPv6 pods see.
pub const GATEWAY_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Longest container id in bytes: with it an alias of one address per family fits [`ALIAS_LIMIT`].
pub const CONTAINER_LIMIT: usize = 128;

/// Longest alias in bytes: `IFALIASZ` (`<linux/if.h>`) less the terminator.
pub const ALIAS_LIMIT: usize = 255;

/// Longest interface name in bytes: `IFNAMSIZ` (`<linux/if.h>`) less the terminator.
pub const IFNAME_LIMIT: usize = 15;

/// Where the daemon listens, and the plugin looks for it, unless their configurations say otherwise.
pub const DEFAULT_SOCKET: &str = "/run/overlayd/cni.sock";

const ALIAS_PREFIX: &str = "overlayd:";

/// Whether this is a network name or container id by the CNI specification: an ASCII letter or digit,
/// then letters, digits, `_`, `.` and `-`.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
}

/// Whether the kernel (`dev_valid_name` in `net/core/dev.c`) and the CNI specification take this as the
/// name of an interface.
#[must_use]
pub fn is_interface_name(text: &str) -> bool {
    (1..=IFNAME_LIMIT).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.chars().any(|c| matches!(c, '/' | ':' | '\0') || c.is_whitespace())
}

/// Name of the host end of this attachment's veth pair: prefix and 12 hex digits of SHA-256 over
/// network, container and interface name. Fits `IFNAMSIZ` (15 bytes).
#[must_use]
pub fn veth_name(attachment: &Attachment) -> String {
    let Attachment { network, container, ifname } = attachment;
    let digest = digest_of(&[network, container, ifname]);
    VETH_PREFIX.chars().chain(hex(&digest).take(12)).collect()
}

/// MAC address of the host end of the veth pair with this name. A function of the name alone, so that
/// the pod's permanent neighbour entry of its gateway stays right for as long as the link lives.
#[must_use]
pub fn host_mac(veth_name: &str) -> MacAddr {
    mac("host", veth_name)
}

/// MAC address of the pod's end of the veth pair whose host end has this name: the daemon restores the
/// host's permanent neighbour entry of a pod from the link alone.
#[must_use]
pub fn pod_mac(veth_name: &str) -> MacAddr {
    mac("pod", veth_name)
}

/// Alternative name of a host veth whose pod has this MAC instead of [`pod_mac`]: what was asked for must outlive the
/// daemon too, and neither the link nor its alias has room for it.
#[must_use]
pub fn mac_altname(veth_name: &str, mac: MacAddr) -> String {
    format!("{veth_name}-{}", hex(&mac.0).collect::<String>())
}

/// The MAC in an alternative name; `None` if it is not [`mac_altname`]'s for this veth.
#[must_use]
pub fn parse_mac_altname(veth_name: &str, altname: &str) -> Option<MacAddr> {
    let digits = altname.strip_prefix(veth_name)?.strip_prefix('-')?;
    let mut mac = [0; 6];
    for (at, byte) in mac.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    // Comparing with our own writing refuses every other spelling.
    (mac_altname(veth_name, MacAddr(mac)) == altname).then_some(MacAddr(mac))
}

/// What stands in the alias (`IFLA_IFALIAS`) of a host veth: the lease itself.
///
/// As text: `overlayd:` network hash `:` container `:` ifname `:` addresses joined by commas. None of
/// the first three can hold a colon, so the addresses are whatever follows the fourth one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// 16 hex digits of SHA-256 of the CNI network's name.
    pub network_hash: String,
    /// Container id.
    pub container: String,
    /// Interface name inside the pod.
    pub ifname: String,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

impl Alias {
    /// The alias of an attachment that holds these addresses.
    #[must_use]
    pub fn new(attachment: &Attachment, addresses: &[IpAddr]) -> Self {
        let mut addresses = addresses.to_vec();
        addresses.sort_by_key(IpAddr::is_ipv6);
        Self {
            network_hash: network_hash(&attachment.network),
            container: attachment.container.clone(),
            ifname: attachment.ifname.clone(),
            addresses,
        }
    }

    /// The text for the kernel, at most 255 bytes (`IFALIASZ` less the terminator) for a container id of
    /// at most [`CONTAINER_LIMIT`] bytes and one address per family.
    #[must_use]
    pub fn emit(&self) -> String {
        let Self { network_hash, container, ifname, addresses } = self;
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("{ALIAS_PREFIX}{network_hash}:{container}:{ifname}:{}", addresses.join(","))
    }

    /// Reads a text back; `None` if it is not exactly ours: what [`Alias::emit`] writes for a lease that
    /// the plugin could have made.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > ALIAS_LIMIT {
            return None;
        }
        let mut fields = text.strip_prefix(ALIAS_PREFIX)?.splitn(4, ':');
        let alias = Self {
            network_hash: fields.next()?.to_owned(),
            container: fields.next()?.to_owned(),
            ifname: fields.next()?.to_owned(),
            addresses: fields.next()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?,
        };
        // Comparing with our own writing refuses every other spelling of an address.
        (alias.is_possible() && alias.emit() == text).then_some(alias)
    }

    fn is_possible(&self) -> bool {
        let Self { network_hash, container, ifname, addresses } = self;
        network_hash.len() == 16
            && network_hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
            && container.len() <= CONTAINER_LIMIT
            && is_identifier(container)
            && is_interface_name(ifname)
            && !addresses.is_empty()
            && addresses.is_sorted_by_key(IpAddr::is_ipv6)
    }
}

/// What stands in an alias for the name of a CNI network: 16 hex digits of its SHA-256.
#[must_use]
pub fn network_hash(network: &str) -> String {
    hex(&Sha256::digest(network)).take(16).collect()
}

/// SHA-256 over the parts, each preceded by its length: ("ab", "c") and ("a", "bc") differ.
fn digest_of(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn mac(end: &str, veth_name: &str) -> MacAddr {
    let [a, b, c, d, e, f, ..] = digest_of(&[end, veth_name]);
    MacAddr::local([a, b, c, d, e, f])
}

fn hex(bytes: &[u8]) -> impl Iterator<Item = char> {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(move |byte| [digit(byte >> 4), digit(byte & 0x0f)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attachment(network: &str, container: &str, ifname: &str) -> Attachment {
        Attachment { network: network.into(), container: container.into(), ifname: ifname.into() }
    }

    fn addresses(text: &[&str]) -> Vec<IpAddr> {
        text.iter().map(|a| a.parse().unwrap()).collect()
    }

    /// What another build of the plugin or the daemon wrote must stay readable: a running pod's veth
    /// outlives both. These texts never change.
    #[test]
    fn names_and_aliases_are_what_they_always_were() {
        let eth0 = attachment("overlayd", "c1", "eth0");
        assert_eq!(veth_name(&eth0), "ovp31fc8ade7d25");
        assert_eq!(
            Alias::new(&eth0, &addresses(&["fd00::5", "10.1.0.5"])).emit(),
            "overlayd:aa61d515f219561a:c1:eth0:10.1.0.5,fd00::5",
        );
        assert_eq!(host_mac("ovp0123456789ab").to_string(), "de:06:84:13:fa:80");
        assert_eq!(pod_mac("ovp0123456789ab").to_string(), "1e:ca:ec:93:7f:e8");
        let mac = MacAddr([2, 0, 0, 0, 0, 0xab]);
        assert_eq!(mac_altname("ovp0123456789ab", mac), "ovp0123456789ab-0200000000ab");
        assert_eq!(parse_mac_altname("ovp0123456789ab", "ovp0123456789ab-0200000000ab"), Some(mac));
        for odd in
            ["", "ovp0123456789ab", "ovp0123456789ab-0200000000AB", "ovp0123456789ab-0200000000ab0", "x"]
        {
            assert_eq!(parse_mac_altname("ovp0123456789ab", odd), None, "{odd}");
        }
    }

    #[test]
    fn parts_of_a_name_do_not_run_into_one_another() {
        assert_ne!(veth_name(&attachment("a", "bc", "d")), veth_name(&attachment("ab", "c", "d")));
        assert_ne!(veth_name(&attachment("a", "b", "cd")), veth_name(&attachment("a", "bc", "d")));
    }

    #[test]
    fn the_route_protocol_has_no_name_elsewhere() {
        // /etc/iproute2/rt_protos and <linux/rtnetlink.h>.
        let named =
            [0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 42, 84, 99, 186, 187, 188, 189, 192];
        assert!(!named.contains(&ROUTE_PROTOCOL));
    }

    #[test]
    fn the_longest_alias_fits_the_kernel() {
        let long = attachment("overlayd", &"c".repeat(CONTAINER_LIMIT), "fifteen-bytes-1");
        let alias =
            Alias::new(&long, &addresses(&["255.255.255.255", "1111:2222:3333:4444:5555:6666:7777:8888"]));
        let text = alias.emit();
        assert!(text.len() <= ALIAS_LIMIT, "{}", text.len());
        assert_eq!(Alias::parse(&text), Some(alias));
    }

    #[test]
    fn other_texts_are_not_ours() {
        let hash = network_hash("overlayd");
        let good = format!("overlayd:{hash}:c1:eth0:10.1.0.5,fd00::5");
        assert!(Alias::parse(&good).is_some());
        for bad in [
            String::new(),
            "overlayd:".into(),
            format!("overlayd:{hash}"),
            format!("overlayd:{hash}:c1:eth0"),
            format!("overlayd:{hash}:c1:eth0:"),
            format!("overlayd:{hash}:c1:eth0:10.1.0.5,"),
            format!("overlayd:{hash}:c1:eth0:10.1.0.5 "),
            format!("overlayd:{hash}:c1:eth0:fd00::5,10.1.0.5"),
            format!("overlayd:{hash}:c1:eth0:FD00::5"),
            format!("overlayd:{hash}:c1:eth0:fd00:0::5"),
            format!("overlayd:{hash}:c1:eth0:10.1.0.05"),
            format!("overlayd:{hash}:c1::10.1.0.5"),
            format!("overlayd:{hash}::eth0:10.1.0.5"),
            format!("overlayd:{hash}:-c1:eth0:10.1.0.5"),
            format!("overlayd:{hash}:c1:sixteen-bytes-16:10.1.0.5"),
            format!("overlayd:{hash}:{}:eth0:10.1.0.5", "c".repeat(CONTAINER_LIMIT + 1)),
            format!("overlayd:{}:c1:eth0:10.1.0.5", hash.to_uppercase()),
            format!("overlayd:{}:c1:eth0:10.1.0.5", &hash[1..]),
            format!(" {good}"),
            good.to_uppercase(),
        ] {
            assert_eq!(Alias::parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "a", "fifteen-bytes-1", "a.b", "..."] {
            assert!(is_interface_name(good), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "a:1", "a b", "a\n", "sixteen-bytes-16", "a\u{a0}b", "a\0b"] {
            assert!(!is_interface_name(bad), "{bad:?}");
        }
    }

    prop_compose! {
        fn attachments()(
            network in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,20}",
            container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}",
            ifname in "[a-zA-Z0-9._-]{3,15}",
        ) -> Attachment {
            Attachment { network, container, ifname }
        }
    }

    prop_compose! {
        fn leases()(v4 in any::<std::net::Ipv4Addr>(), v6 in any::<std::net::Ipv6Addr>(), which in 0..3)
            -> Vec<IpAddr> {
            match which {
                0 => vec![v4.into()],
                1 => vec![v6.into()],
                _ => vec![v6.into(), v4.into()],
            }
        }
    }

    proptest! {
        #[test]
        fn every_alias_survives_emit_then_parse(attachment in attachments(), addresses in leases()) {
            let alias = Alias::new(&attachment, &addresses);
            let text = alias.emit();
            prop_assert!(text.len() <= ALIAS_LIMIT);
            prop_assert_eq!(Alias::parse(&text), Some(alias));
        }

        #[test]
        fn what_parses_is_written_the_same(
            text in r"(overlayd:)?[0-9a-f]{15,17}:[a-z0-9.:-]{0,12}:[a-z0-9/ ]{0,6}:[0-9a-fA-F:.,]{0,24}",
        ) {
            if let Some(alias) = Alias::parse(&text) {
                prop_assert_eq!(alias.emit(), text);
            }
        }

        #[test]
        fn no_text_makes_parse_panic(text in any::<String>()) {
            let _ = Alias::parse(&text);
            let _ = Alias::parse(&format!("{ALIAS_PREFIX}{text}"));
        }

        #[test]
        fn names_are_tagged_and_valid(attachment in attachments()) {
            let name = veth_name(&attachment);
            prop_assert!(is_interface_name(&name));
            prop_assert!(name.starts_with(VETH_PREFIX));
            prop_assert_eq!(name.len(), IFNAME_LIMIT);
            prop_assert_ne!(host_mac(&name), pod_mac(&name));
            prop_assert!(host_mac(&name).is_unicast() && pod_mac(&name).is_unicast());
        }
    }
}
