//! What a Node says about itself: annotations before spec and status.

use std::net::IpAddr;

use serde_json::Value;
use wire::packet::MacAddr;

use crate::core::node::NodeObject;

/// flannel's own prefix: with it, its rules hold.
const FLANNEL: &str = "flannel.alpha.coreos.com/";

/// The text before the names of annotations, by flannel's rules: at most one slash, appended if there is
/// none; then a dash, if it ends in neither slash nor dash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationPrefix(String);

impl Default for AnnotationPrefix {
    fn default() -> Self {
        Self("overlayd.io/".into())
    }
}

impl AnnotationPrefix {
    /// Reads a prefix as configured; `None` if no annotation could have it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut prefix = text.to_owned();
        if !prefix.contains('/') {
            prefix.push('/');
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        let (domain, name) = prefix.split_once('/')?;
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_name = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_');
        let good = domain.split('.').all(is_label) && name.bytes().all(is_name) && name != "-";
        good.then_some(Self(prefix))
    }

    /// The full name of an annotation.
    #[must_use]
    pub fn key(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.0)
    }

    /// Whether this is flannel's own prefix.
    #[must_use]
    pub fn is_flannel(&self) -> bool {
        self.0 == FLANNEL
    }

    /// Whether an annotation of this name is one of ours.
    #[must_use]
    pub fn holds(&self, key: &str) -> bool {
        key.starts_with(&self.0)
    }

    pub(super) fn get<'n>(&self, node: &'n NodeObject, suffix: &str) -> Option<&'n str> {
        node.annotations.get(&self.key(suffix)).map(|text| text.trim())
    }
}

/// IP version of an address, a CIDR or a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::core) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn suffix(self, v4: &'static str, v6: &'static str) -> &'static str {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

/// Pod CIDRs as written.
pub(super) fn pod_cidrs<'n>(prefix: &AnnotationPrefix, node: &'n NodeObject) -> Vec<&'n str> {
    let filled = |text: &&str| !text.is_empty();
    match prefix.get(node, "pod-cidrs") {
        Some(list) => list.split(',').map(str::trim).filter(filled).collect(),
        None => node.pod_cidrs.iter().map(|text| text.trim()).filter(filled).collect(),
    }
}

/// Where peers send outer packets to: the address that an administrator published, else the one that
/// the node published, else the node's InternalIP.
pub(super) fn public_address(
    prefix: &AnnotationPrefix,
    node: &NodeObject,
    family: Family,
) -> Result<Option<IpAddr>, String> {
    if let Some(address) = overwriting_address(prefix, node, family)? {
        return Ok(Some(address));
    }
    let published = family.suffix("public-ip", "public-ipv6");
    match prefix.get(node, published).filter(|text| !text.is_empty()) {
        Some(text) => annotated(prefix, published, text, family).map(Some),
        None => internal_address(node, family),
    }
}

/// The address before which a NAT device stands, as an administrator published it.
pub(in crate::core) fn overwriting_address(
    prefix: &AnnotationPrefix,
    node: &NodeObject,
    family: Family,
) -> Result<Option<IpAddr>, String> {
    let suffix = family.suffix("public-ip-overwrite", "public-ipv6-overwrite");
    let text = prefix.get(node, suffix).filter(|text| !text.is_empty());
    text.map(|text| annotated(prefix, suffix, text, family)).transpose()
}

/// Who wrote the `public-ip` of our own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Publisher {
    /// The operator, in a file: it says what our address is.
    Operator,
    /// This daemon, into the Node object, from what follows here: it may be out of date.
    Ourselves,
}

/// Where our own sockets can be bound: the address that an administrator chose, else the one that an administrator
/// published, but not an overwriting one, which belongs to a NAT device before us; else the node's InternalIP.
pub(super) fn local_address(
    prefix: &AnnotationPrefix,
    node: &NodeObject,
    family: Family,
    publisher: Publisher,
) -> Result<Option<IpAddr>, String> {
    let chosen = family.suffix("node-public-ip", "node-public-ipv6");
    if let Some(text) = prefix.get(node, chosen).filter(|text| !text.is_empty()) {
        return annotated(prefix, chosen, text, family).map(Some);
    }
    let overwrite = prefix.get(node, family.suffix("public-ip-overwrite", "public-ipv6-overwrite"));
    let suffix = family.suffix("public-ip", "public-ipv6");
    match prefix.get(node, suffix).filter(|text| !text.is_empty() && publisher == Publisher::Operator) {
        Some(text) if overwrite != Some(text) => annotated(prefix, suffix, text, family).map(Some),
        _ => internal_address(node, family),
    }
}

fn annotated(prefix: &AnnotationPrefix, suffix: &str, text: &str, family: Family) -> Result<IpAddr, String> {
    let key = prefix.key(suffix);
    let address = text.parse().map_err(|_| format!("{key} {text:?} is not an IP address"))?;
    if Family::of(address) != family {
        return Err(format!("{key} {address} is of the other IP version"));
    }
    usable(address).map(|()| address).map_err(|why| format!("{key} {address} {why}"))
}

fn internal_address(node: &NodeObject, family: Family) -> Result<Option<IpAddr>, String> {
    let parsed = node.internal_ips.iter().filter_map(|text| text.trim().parse::<IpAddr>().ok());
    let Some(address) = parsed.into_iter().find(|address| Family::of(*address) == family) else {
        return Ok(None);
    };
    usable(address).map(|()| Some(address)).map_err(|why| format!("InternalIP {address} {why}"))
}

/// Whether outer packets can go to this address.
fn usable(address: IpAddr) -> Result<(), &'static str> {
    match address {
        _ if address.is_unspecified() => Err("is the unspecified address"),
        _ if address.is_loopback() => Err("is a loopback address"),
        _ if address.is_multicast() => Err("is a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Err("is the broadcast address"),
        // 0.0.0.0/8 is "this network", 240.0.0.0/4 reserved (RFC 6890, section 2.2.2).
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => Err("is a reserved address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err("is link-local, so it needs an interface"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err("is an IPv4 address in IPv6 clothes"),
        _ => Ok(()),
    }
}

/// One VTEP as a Node announces it (`backend-data`), each part only if it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BackendData {
    pub(super) vni: Option<u32>,
    pub(super) mac: Option<MacAddr>,
}

/// Reads `backend-data` or `backend-v6-data`. Names of fields match in any case and unknown ones are
/// ignored, as Go's decoder does; absent and `null` are no data.
pub(super) fn backend_data(
    prefix: &AnnotationPrefix,
    node: &NodeObject,
    family: Family,
) -> Result<Option<BackendData>, String> {
    let suffix = family.suffix("backend-data", "backend-v6-data");
    let Some(text) = prefix.get(node, suffix).filter(|text| !text.is_empty()) else { return Ok(None) };
    let bad = |what: &str| format!("{} {} {what}", prefix.key(suffix), shorten(text));
    let value: Value = serde_json::from_str(text).map_err(|_| bad("is not JSON"))?;
    let fields = match &value {
        Value::Null => return Ok(None),
        Value::Object(fields) => fields,
        _ => return Err(bad("is not a JSON object")),
    };
    let field = |name: &str| {
        let mut matching = fields.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        matching.next_back().map(|(_, value)| value).filter(|value| !value.is_null())
    };
    let vni = field("VNI").map(|value| {
        value
            .as_u64()
            .and_then(|vni| u32::try_from(vni).ok())
            .ok_or_else(|| bad("has no whole number as VNI"))
    });
    let mac = field("VtepMAC").map(|value| {
        let mac: Option<MacAddr> = value.as_str().and_then(|text| text.parse().ok());
        mac.filter(|mac| mac.is_unicast()).ok_or_else(|| bad("has no unicast Ethernet address as VtepMAC"))
    });
    Ok(Some(BackendData { vni: vni.transpose()?, mac: mac.transpose()? }))
}

/// A hostile value in a sentence, quoted and not longer than a line.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_completed_as_flannel_does() {
        let complete = |text| AnnotationPrefix::parse(text).map(|prefix| prefix.key("x"));
        assert_eq!(complete("overlayd.io").as_deref(), Some("overlayd.io/x"));
        assert_eq!(complete("overlayd.io/").as_deref(), Some("overlayd.io/x"));
        assert_eq!(complete("example.com/net").as_deref(), Some("example.com/net-x"));
        assert_eq!(complete("example.com/net-").as_deref(), Some("example.com/net-x"));
        assert_eq!(complete("example.com/a_b").as_deref(), Some("example.com/a_b-x"));
        for bad in ["", "/", "a/b/c", "Example.com", "example..com", "-a.com", "a.com/N", "a.com/-", "a b"] {
            assert_eq!(complete(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_flannels_own_prefix_is_flannels() {
        let is_flannel = |text| AnnotationPrefix::parse(text).unwrap().is_flannel();
        assert!(is_flannel("flannel.alpha.coreos.com") && is_flannel("flannel.alpha.coreos.com/"));
        assert!(!is_flannel("overlayd.io") && !is_flannel("flannel.alpha.coreos.com/x"));
    }

    fn data(text: &str) -> Result<Option<BackendData>, String> {
        let prefix = AnnotationPrefix::parse("overlayd.io").unwrap();
        let annotations = [("overlayd.io/backend-data".to_owned(), text.to_owned())].into();
        backend_data(&prefix, &NodeObject { annotations, ..NodeObject::default() }, Family::V4)
    }

    #[test]
    fn backend_data_is_read_as_go_reads_it() {
        let mac = "c2:11:22:33:44:55".parse().unwrap();
        let full = Ok(Some(BackendData { vni: Some(1), mac: Some(mac) }));
        assert_eq!(data(r#"{"VNI":1,"VtepMAC":"c2:11:22:33:44:55"}"#), full);
        assert_eq!(data(r#"{"vtepmac":"C2:11:22:33:44:55","vni":1,"Later":[1]}"#), full);
        assert_eq!(data("null"), Ok(None));
        assert_eq!(data(""), Ok(None));
        assert_eq!(data("{}"), Ok(Some(BackendData::default())));
    }

    #[test]
    fn bad_backend_data_is_named() {
        for bad in [
            "{",
            "[]",
            "1",
            r#"{"VNI":"1"}"#,
            r#"{"VNI":-1}"#,
            r#"{"VNI":4294967296}"#,
            r#"{"VtepMAC":"01:00:5e:00:00:01"}"#,
            r#"{"VtepMAC":"00:00:00:00:00:00"}"#,
            r#"{"VtepMAC":"c2:11"}"#,
            r#"{"VtepMAC":7}"#,
        ] {
            let problem = data(bad).unwrap_err();
            assert!(problem.starts_with("overlayd.io/backend-data "), "{problem}");
        }
    }

    #[test]
    fn long_hostile_values_are_cut() {
        assert!(shorten(&"\n".repeat(10_000)).len() < 200);
        assert_eq!(shorten("a\nb"), r#""a\nb""#);
    }
}
