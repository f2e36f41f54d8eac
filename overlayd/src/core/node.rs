//! The part of a Kubernetes Node object that we read.

use std::collections::BTreeMap;

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
}

/// Reads YAML or JSON: one Node, a List, a NodeList, or several documents of these. Other kinds are an error.
///
/// # Errors
/// Where and why the text is not that. A text without any Node document is an error too.
pub fn parse_nodes(text: &str) -> Result<Vec<NodeObject>, NodeTextError> {
    let _ = text;
    todo!()
}

/// Writes Node objects as a YAML List that [`parse_nodes`] reads back to the same values.
#[must_use]
pub fn emit_nodes(nodes: &[NodeObject]) -> String {
    let _ = nodes;
    todo!()
}

/// Why a text is not Node objects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NodeTextError(pub String);
