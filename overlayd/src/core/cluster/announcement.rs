//! What our own Node object should say about us.
//!
//! Level-triggered: derived from what we are and what the Node says now; what is right already is not written again.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::annotations::{AnnotationPrefix, Family, overwriting_address};
use super::{Book, Own};
use crate::core::config::Config;
use crate::core::node::NodeObject;

/// Reason of the condition `NetworkUnavailable`: one word in camel case, as the API demands.
const CONDITION_REASON: &str = "OverlaydIsUp";

/// The difference between what the Node says and what it should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Name of our Node.
    pub node: String,
    /// Annotations to set, or to remove where there is no value.
    pub annotations: BTreeMap<String, Option<String>>,
    /// Whether the condition `NetworkUnavailable` must be set to False.
    pub network_is_available: bool,
}

impl Announcement {
    /// The strategic merge patch of the Node. `now` is the time in RFC 3339, whole seconds.
    #[must_use]
    pub fn patch(&self, now: &str) -> Value {
        let mut patch = json!({"metadata": {"annotations": self.annotations}});
        if self.network_is_available
            && let Some(patch) = patch.as_object_mut()
        {
            let condition = json!({
                "type": "NetworkUnavailable",
                "status": "False",
                "reason": CONDITION_REASON,
                "message": "overlayd is running on this node",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            });
            patch.insert("status".to_owned(), json!({"conditions": [condition]}));
        }
        patch
    }
}

/// What is to be written into our own Node; `None` if all is as it should be, or nothing can be told yet. The condition
/// waits until pods can be served (`ready`), and is never taken back.
#[must_use]
pub fn announcement(config: &Config, book: &Book, ready: bool) -> Option<Announcement> {
    // What a cache says of our Node is no ground to write on.
    if !book.synced() {
        return None;
    }
    let own = book.cluster().own.as_ref()?;
    let node = book.node(&own.name)?;
    let prefix = AnnotationPrefix::parse(&config.annotation_prefix).unwrap_or_default();
    let differs = |(key, wish): &(String, Option<String>)| node.annotations.get(key) != wish.as_ref();
    let annotations: BTreeMap<_, _> =
        wished(config, &prefix, node, own).into_iter().filter(differs).collect();
    let network_is_available = ready && node.network_unavailable.as_deref() != Some("False");
    (network_is_available || !annotations.is_empty()).then(|| Announcement {
        node: own.name.clone(),
        annotations,
        network_is_available,
    })
}

/// Every annotation of ours with its value. With flannel's prefix the bytes are flannel's: it compares and parses them
/// as text.
fn wished(
    config: &Config,
    prefix: &AnnotationPrefix,
    node: &NodeObject,
    own: &Own,
) -> Vec<(String, Option<String>)> {
    let vtep = format!(r#"{{"VNI":{},"VtepMAC":"{}"}}"#, config.vni, own.mac);
    let published = |family: Family, local: Option<String>| {
        let overwrite = overwriting_address(prefix, node, family).ok().flatten();
        local.map(|local| overwrite.map_or(local, |address| address.to_string()))
    };
    let v4 = published(Family::V4, own.underlay_v4.map(|address| address.to_string()));
    let v6 = published(Family::V6, own.underlay_v6.map(|address| address.to_string()));
    let mut wished = vec![("backend-type", Some("vxlan".to_owned()))];
    if prefix.is_flannel() {
        // flannel has one VTEP for each family of pods.
        let serves = |is_v6: bool| own.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6() == is_v6);
        let v4 = v4.filter(|_| serves(false));
        let v6 = v6.filter(|_| serves(true));
        wished.push(("kube-subnet-manager", Some("true".to_owned())));
        wished.push(("backend-data", v4.as_ref().map(|_| vtep.clone())));
        wished.push(("backend-v6-data", v6.as_ref().map(|_| vtep)));
        wished.extend([("public-ip", v4), ("public-ipv6", v6)]);
    } else {
        wished.extend([("backend-data", Some(vtep)), ("public-ip", v4), ("public-ipv6", v6)]);
    }
    wished.into_iter().map(|(suffix, value)| (prefix.key(suffix), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::NodeEvent;
    use super::super::tests::{config, node};
    use super::*;

    /// What is announced of this Node, which is believed.
    fn announced(settings: &[(&str, &str)], node: &NodeObject, ready: bool) -> Option<Announcement> {
        let config = config(&[settings, &[("api_server", "https://192.0.2.9")]].concat());
        let mut book = Book::default();
        book.apply(NodeEvent::Listed(vec![node.clone()]));
        let _ = book.derive(&config);
        announcement(&config, &book, ready)
    }

    /// The Node after the announcement.
    fn merged(node: &NodeObject, announcement: &Announcement) -> NodeObject {
        let mut node = node.clone();
        for (key, value) in &announcement.annotations {
            match value {
                Some(value) => node.annotations.insert(key.clone(), value.clone()),
                None => node.annotations.remove(key),
            };
        }
        if announcement.network_is_available {
            node.network_unavailable = Some("False".into());
        }
        node
    }

    fn dual() -> NodeObject {
        node("own", &["10.244.0.0/24", "fd00::/64"], &["192.0.2.1", "2001:db8::1"])
    }

    const FLANNEL: (&str, &str) = ("annotation_prefix", "flannel.alpha.coreos.com");

    #[test]
    fn flannel_reads_its_own_bytes() {
        let announcement = announced(&[FLANNEL], &dual(), true).unwrap();
        let mac = super::super::vtep_mac("own");
        let vtep = format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}");
        let wish = |suffix: &str, value: &str| {
            (format!("flannel.alpha.coreos.com/{suffix}"), Some(value.to_owned()))
        };
        assert_eq!(
            announcement.annotations,
            [
                wish("backend-type", "vxlan"),
                wish("backend-data", &vtep),
                wish("backend-v6-data", &vtep),
                wish("kube-subnet-manager", "true"),
                wish("public-ip", "192.0.2.1"),
                wish("public-ipv6", "2001:db8::1"),
            ]
            .into()
        );
        assert!(announcement.network_is_available);
    }

    #[test]
    fn what_was_announced_is_not_announced_again() {
        for settings in [&[][..], &[FLANNEL]] {
            let first = announced(settings, &dual(), false).unwrap();
            assert!(!first.network_is_available, "not ready yet");
            let node = merged(&dual(), &first);
            assert_eq!(announced(settings, &node, false), None);
            let second = announced(settings, &node, true).unwrap();
            assert!(second.annotations.is_empty() && second.network_is_available);
            assert_eq!(announced(settings, &merged(&node, &second), true), None);
            assert_eq!(announced(settings, &merged(&node, &second), false), None, "never taken back");
        }
    }

    #[test]
    fn an_address_that_changed_or_went_is_corrected() {
        let old = merged(&dual(), &announced(&[], &dual(), true).unwrap());
        let moved = NodeObject { internal_ips: vec!["192.0.2.77".into()], ..old };
        let announcement = announced(&[], &moved, true).unwrap();
        assert_eq!(
            announcement.annotations,
            [
                ("overlayd.io/public-ip".to_owned(), Some("192.0.2.77".to_owned())),
                ("overlayd.io/public-ipv6".to_owned(), None),
            ]
            .into()
        );
    }

    #[test]
    fn an_overwriting_address_is_published_and_a_chosen_one_is_bound() {
        let mut node = node("own", &["10.244.0.0/24"], &["192.0.2.1"]);
        node.annotations.insert("overlayd.io/public-ip-overwrite".into(), "203.0.113.5".into());
        let announcement = announced(&[], &node, true).unwrap();
        assert_eq!(announcement.annotations["overlayd.io/public-ip"].as_deref(), Some("203.0.113.5"));
        node.annotations.clear();
        node.annotations.insert("overlayd.io/node-public-ip".into(), "198.51.100.1".into());
        let announcement = announced(&[], &node, true).unwrap();
        assert_eq!(announcement.annotations["overlayd.io/public-ip"].as_deref(), Some("198.51.100.1"));
    }

    #[test]
    fn a_single_stack_node_announces_one_family() {
        let node = node("own", &["10.244.0.0/24"], &["192.0.2.1", "2001:db8::1"]);
        let announcement = announced(&[FLANNEL], &node, true).unwrap();
        assert!(!announcement.annotations.keys().any(|key| key.contains("v6")), "{announcement:?}");
    }

    #[test]
    fn nothing_is_announced_from_a_cache_or_without_a_pod_cidr() {
        let config = config(&[("api_server", "https://192.0.2.9")]);
        let mut book = Book::default();
        book.seed(vec![dual()]);
        let _ = book.derive(&config);
        assert_eq!(announcement(&config, &book, true), None);
        assert_eq!(announced(&[], &node("own", &[], &["192.0.2.1"]), true), None);
    }

    #[test]
    fn the_patch_is_a_strategic_merge() {
        let announcement = Announcement {
            node: "own".into(),
            annotations: [("a/b".to_owned(), Some("c".to_owned())), ("a/d".to_owned(), None)].into(),
            network_is_available: true,
        };
        let patch = announcement.patch("2026-11-25T23:00:00Z");
        assert_eq!(patch["metadata"]["annotations"], json!({"a/b": "c", "a/d": null}));
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(condition["type"], "NetworkUnavailable");
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["lastTransitionTime"], "2026-11-25T23:00:00Z");
        let silent = Announcement { network_is_available: false, ..announcement };
        assert!(silent.patch("").get("status").is_none());
    }
}
