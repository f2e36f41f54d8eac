//! The part of a Kubernetes Node object that we read.
//!
//! Texts are what `kubectl get nodes -o yaml` (or `json`) prints, or written by hand in that form. Fields
//! that we do not know are skipped; values are taken as written and judged later, in
//! [`cluster`](super::cluster), where a bad one costs only its own Node. What cannot be told apart from a
//! mistake in the text as a whole (another kind, no name, one name twice) is an error: half a list must
//! not pass for the whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A Node as the API server or a file gives it, not yet believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeObject {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; may be empty in a file.
    pub uid: String,
    /// `metadata.creationTimestamp` as written (RFC 3339 sorts as text); may be empty in a file.
    pub created: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec.podCIDRs`, or the one `spec.podCIDR`.
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<String>,
    /// Status of the condition `NetworkUnavailable` in `status.conditions`, if there is one.
    pub network_unavailable: Option<String>,
}

/// A Node as the API server sends it, and the place in the history of the cluster that it marks.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "Document")]
pub struct ApiNode {
    /// What we read of it.
    pub node: NodeObject,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

impl TryFrom<Document> for ApiNode {
    type Error = NodeTextError;

    fn try_from(mut document: Document) -> Result<Self, NodeTextError> {
        let version = document.metadata.as_mut().and_then(|metadata| metadata.resource_version.take());
        Ok(Self {
            node: document.into_node("an object of the API server")?,
            resource_version: version.unwrap_or_default(),
        })
    }
}

/// Reads YAML or JSON: one Node, a List, a NodeList, or several documents of these. Other kinds are an error.
/// A list that is explicitly empty is no Nodes.
///
/// # Errors
/// Where and why the text is not that. A text without any Node document is an error too.
pub fn parse_nodes(text: &str) -> Result<Vec<NodeObject>, NodeTextError> {
    let documents: Vec<Document> = serde_saphyr::from_multiple_with_options(text, options())
        .map_err(|error| NodeTextError(format!("not YAML or JSON of Nodes: {error}")))?;
    if documents.is_empty() {
        return Err(NodeTextError("there is no Node in the text".into()));
    }
    let mut nodes = Vec::new();
    for (document, place) in documents.into_iter().zip(1..) {
        document.read(&format!("document {place}"), &mut nodes)?;
    }
    let mut names = BTreeSet::new();
    match nodes.iter().find(|node| !names.insert(&node.name)) {
        Some(twice) => Err(NodeTextError(format!("there are two Nodes named {:?}", twice.name))),
        None => Ok(nodes),
    }
}

/// Writes Node objects as a YAML List that [`parse_nodes`] reads back to the same values.
#[must_use]
pub fn emit_nodes(nodes: &[NodeObject]) -> String {
    let list = Document {
        api_version: Some("v1".into()),
        kind: Some("List".into()),
        items: Some(nodes.iter().map(Document::of).collect()),
        ..Document::default()
    };
    let options = serde_saphyr::ser_options! { quote_all: true, prefer_block_scalars: false };
    #[expect(clippy::expect_used, reason = "maps, lists and strings can always be written to a string")]
    serde_saphyr::to_string_with_options(&list, options).expect("plain data can be written")
}

/// Limits for a cluster of ten thousand Nodes with everything that kubectl prints of them. They grow with
/// the text, whose size its reader bounds; what aliases may multiply stays at the library's limits.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 100_000_000,
            max_documents: 100_000,
            max_total_scalar_bytes: 1 << 30,
        },
    }
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<Vec<Self>>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creation_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Default, Deserialize, Serialize)]
struct Spec {
    #[serde(rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    pod_cidrs: Option<Vec<Option<String>>>,
}

#[derive(Default, Deserialize, Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<Address>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conditions: Option<Vec<Condition>>,
}

/// The condition that we read.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

#[derive(Default, Deserialize, Serialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: Option<String>,
    status: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
struct Address {
    #[serde(rename = "type")]
    kind: Option<String>,
    address: Option<String>,
}

impl Document {
    fn read(self, place: &str, nodes: &mut Vec<NodeObject>) -> Result<(), NodeTextError> {
        let kind = self.kind.as_deref().unwrap_or_default();
        if kind == "Node" {
            nodes.push(self.into_node(place)?);
            return Ok(());
        }
        if !matches!(kind, "List" | "NodeList") {
            return Err(self.wrong(place));
        }
        // The API server writes no kind on the items of a list of one kind.
        let bare_items = kind == "NodeList";
        let items = self.items.ok_or_else(|| NodeTextError(format!("{place} is a list without items")))?;
        for (item, number) in items.into_iter().zip(1..) {
            let place = format!("{place}, item {number}");
            match item.kind.as_deref() {
                Some("Node") => nodes.push(item.into_node(&place)?),
                None if bare_items => nodes.push(item.into_node(&place)?),
                _ => return Err(item.wrong(&place)),
            }
        }
        Ok(())
    }

    fn wrong(&self, place: &str) -> NodeTextError {
        let name = self.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default();
        let named = if name.is_empty() { String::new() } else { format!(" named {name:?}") };
        NodeTextError(match &self.kind {
            Some(kind) => format!("{place}{named} is of kind {kind:?}, not a Node"),
            None => format!("{place}{named} has no kind, so it is not a Node"),
        })
    }

    fn into_node(self, place: &str) -> Result<NodeObject, NodeTextError> {
        let metadata = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let name = metadata.name.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| NodeTextError(format!("{place} is a Node without metadata.name")))?;
        let mut pod_cidrs: Vec<String> = spec.pod_cidrs.into_iter().flatten().flatten().collect();
        if pod_cidrs.is_empty() {
            pod_cidrs.extend(spec.pod_cidr);
        }
        let status = self.status.unwrap_or_default();
        let addresses = status.addresses.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let condition =
            conditions.into_iter().find(|condition| condition.kind.as_deref() == Some(NETWORK_UNAVAILABLE));
        let internal = addresses.into_iter().filter(|address| address.kind.as_deref() == Some("InternalIP"));
        let annotations = metadata.annotations.unwrap_or_default();
        Ok(NodeObject {
            name,
            uid: metadata.uid.unwrap_or_default(),
            created: metadata.creation_timestamp.unwrap_or_default(),
            annotations: annotations.into_iter().filter_map(|(key, text)| Some((key, text?))).collect(),
            pod_cidrs,
            internal_ips: internal.filter_map(|address| address.address).collect(),
            network_unavailable: condition.and_then(|condition| condition.status),
        })
    }

    fn of(node: &NodeObject) -> Self {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let address = |ip: &String| Address { kind: Some("InternalIP".into()), address: Some(ip.clone()) };
        let annotations = node.annotations.iter().map(|(key, text)| (key.clone(), Some(text.clone())));
        let condition = |status: &String| {
            vec![Condition { kind: Some(NETWORK_UNAVAILABLE.into()), status: Some(status.clone()) }]
        };
        Self {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            metadata: Some(Metadata {
                name: Some(node.name.clone()),
                uid: text(&node.uid),
                creation_timestamp: text(&node.created),
                annotations: Some(annotations.collect()),
                resource_version: None,
            }),
            spec: Some(Spec {
                pod_cidr: None,
                pod_cidrs: Some(node.pod_cidrs.iter().cloned().map(Some).collect()),
            }),
            status: Some(Status {
                addresses: Some(node.internal_ips.iter().map(address).collect()),
                conditions: node.network_unavailable.as_ref().map(condition),
            }),
            items: None,
        }
    }
}

/// Why a text is not Node objects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NodeTextError(pub String);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODE: &str = r#"
apiVersion: v1
kind: Node
metadata:
  annotations:
    overlayd.io/backend-data: '{"VNI":1,"VtepMAC":"c2:11:22:33:44:55"}'
    node.alpha.kubernetes.io/ttl: "0"
    bare/number: 7
    bare/null:
  creationTimestamp: "2026-08-01T10:00:00Z"
  labels: {kubernetes.io/os: linux}
  name: worker-1
  uid: 6f0c9a
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs:
  - 10.244.1.0/24
  - fd00:1::/64
  taints: [{effect: NoSchedule, key: a}]
status:
  addresses:
  - {address: 192.0.2.7, type: InternalIP}
  - {address: worker-1, type: Hostname}
  - {address: "2001:db8::7", type: InternalIP}
  conditions:
  - {type: Ready, status: "True"}
  - {type: NetworkUnavailable, status: "False", reason: Up}
  images: [{names: [a, b], sizeBytes: 123}]
"#;

    fn worker_1() -> NodeObject {
        NodeObject {
            name: "worker-1".into(),
            uid: "6f0c9a".into(),
            created: "2026-08-01T10:00:00Z".into(),
            annotations: BTreeMap::from(
                [
                    ("overlayd.io/backend-data", r#"{"VNI":1,"VtepMAC":"c2:11:22:33:44:55"}"#),
                    ("node.alpha.kubernetes.io/ttl", "0"),
                    ("bare/number", "7"),
                ]
                .map(|(key, text)| (key.to_owned(), text.to_owned())),
            ),
            pod_cidrs: vec!["10.244.1.0/24".into(), "fd00:1::/64".into()],
            internal_ips: vec!["192.0.2.7".into(), "2001:db8::7".into()],
            network_unavailable: Some("False".into()),
        }
    }

    fn bare(name: &str) -> NodeObject {
        NodeObject { name: name.into(), ..NodeObject::default() }
    }

    fn problem(text: &str) -> String {
        parse_nodes(text).unwrap_err().0
    }

    #[test]
    fn one_node_is_read() {
        assert_eq!(parse_nodes(NODE), Ok(vec![worker_1()]));
    }

    #[test]
    fn lists_and_documents_are_read() {
        let list =
            "kind: List\nitems:\n- {kind: Node, metadata: {name: a}}\n- {kind: Node, metadata: {name: b}}\n";
        assert_eq!(parse_nodes(list), Ok(vec![bare("a"), bare("b")]));
        let api = "kind: NodeList\nitems:\n- metadata: {name: a}\n";
        assert_eq!(parse_nodes(api), Ok(vec![bare("a")]));
        let several = format!("---\n{api}---\nkind: Node\nmetadata: {{name: b}}\n---\n");
        assert_eq!(parse_nodes(&several), Ok(vec![bare("a"), bare("b")]));
        assert_eq!(parse_nodes("kind: List\nitems: []\n"), Ok(vec![]));
    }

    #[test]
    fn json_is_read() {
        let json = "{\n    \"apiVersion\": \"v1\",\n    \"items\": [\n        {\"kind\": \"Node\", \"metadata\": \
                    {\"name\": \"a\", \"annotations\": {\"k\": \"\\u00e9 \\/ \\\"q\\\"\"}}}\n    ],\n    \"kind\": \"List\"\n}\n";
        let annotations = [("k".to_owned(), "\u{e9} / \"q\"".to_owned())].into();
        assert_eq!(parse_nodes(json), Ok(vec![NodeObject { annotations, ..bare("a") }]));
    }

    #[test]
    fn the_single_pod_cidr_serves_where_the_list_is_missing() {
        let node = parse_nodes("kind: Node\nmetadata: {name: a}\nspec: {podCIDR: 10.0.0.0/24}\n").unwrap();
        assert_eq!(node[0].pod_cidrs, ["10.0.0.0/24"]);
    }

    #[test]
    fn an_object_of_the_api_server_is_read_with_its_place_in_history() {
        let json = r#"{"kind": "Node", "metadata": {"name": "a", "resourceVersion": "17", "managedFields": [{}]},
            "spec": {"podCIDRs": null}, "status": {"images": [{"names": ["x"], "sizeBytes": 1}], "addresses": null}}"#;
        let node: ApiNode = serde_json::from_str(json).unwrap();
        assert_eq!(node, ApiNode { node: bare("a"), resource_version: "17".into() });
        assert!(serde_json::from_str::<ApiNode>(r#"{"metadata": {}}"#).is_err());
    }

    #[test]
    fn what_is_not_nodes_is_named() {
        assert!(problem("").contains("no Node"));
        assert!(problem("# nothing\n---\n").contains("no Node"));
        assert_eq!(
            problem("kind: Pod\nmetadata: {name: web}\n"),
            r#"document 1 named "web" is of kind "Pod", not a Node"#
        );
        assert_eq!(
            problem("kind: Node\nmetadata: {name: a}\n---\nmetadata: {name: b}\n"),
            r#"document 2 named "b" has no kind, so it is not a Node"#
        );
        assert_eq!(
            problem("kind: List\nitems:\n- {kind: Node, metadata: {name: a}}\n- {kind: Secret}\n"),
            r#"document 1, item 2 is of kind "Secret", not a Node"#
        );
        assert_eq!(problem("kind: Node\n"), "document 1 is a Node without metadata.name");
        assert_eq!(problem("kind: NodeList\n"), "document 1 is a list without items");
        assert!(
            problem("kind: Node\nmetadata: {name: a}\n---\nkind: Node\nmetadata: {name: a}\n")
                .contains("two")
        );
        assert!(problem("kind: [").contains("not YAML"));
        assert!(problem("just text").contains("not YAML"));
    }

    #[test]
    fn aliases_cannot_multiply_without_end() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        text.push_str("kind: Node\nmetadata: {name: a}\n");
        assert!(problem(&text).contains("not YAML"));
    }

    prop_compose! {
        fn nodes()(
            names in prop::collection::btree_set("\\PC{1,12}", 0..4),
            text in "(?s).{0,20}",
            annotations in prop::collection::btree_map("(?s).{0,8}", any::<String>(), 0..4),
            pod_cidrs in prop::collection::vec("[0-9a-f:./~]{0,12}", 0..3),
            internal_ips in prop::collection::vec("(true|null|~|1e3|0x1f|1\\.2|[0-9.:]{0,9})", 0..3),
            network_unavailable in prop::option::of("(True|False|Unknown|\\PC{0,5})"),
        ) -> Vec<NodeObject> {
            let node = |name| NodeObject {
                name,
                uid: text.clone(),
                created: text.clone(),
                annotations: annotations.clone(),
                pod_cidrs: pod_cidrs.clone(),
                internal_ips: internal_ips.clone(),
                network_unavailable: network_unavailable.clone(),
            };
            names.into_iter().map(node).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn nodes_survive_emit_then_parse(nodes in nodes()) {
            prop_assert_eq!(parse_nodes(&emit_nodes(&nodes)), Ok(nodes));
        }

        #[test]
        fn no_text_makes_parse_panic(text in any::<String>()) {
            let _ = parse_nodes(&text);
            let _ = parse_nodes(&format!("kind: Node\nmetadata: {text}"));
        }
    }
}
