//! Node objects as `kubectl get nodes -o yaml` prints them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

/// What a Node object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.creationTimestamp`.
    pub created: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
}

impl Manifest {
    pub(crate) fn value(&self) -> Value {
        let mut addresses: Vec<Value> = self
            .internal_ips
            .iter()
            .map(|address| json!({"address": address.to_string(), "type": "InternalIP"}))
            .collect();
        addresses.push(json!({"address": self.name, "type": "Hostname"}));
        let mut annotations = self.annotations.clone();
        annotations.insert("node.alpha.kubernetes.io/ttl".into(), "0".into());
        let mut spec = json!({});
        if let Some(first) = self.pod_cidrs.first() {
            let all: Vec<String> = self.pod_cidrs.iter().map(ToString::to_string).collect();
            spec = json!({"podCIDR": first.to_string(), "podCIDRs": all});
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "annotations": annotations,
                "creationTimestamp": self.created,
                "labels": {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"},
                "name": self.name,
                "resourceVersion": "1021",
                "uid": uid(&self.name),
            },
            "spec": spec,
            "status": {
                "addresses": addresses,
                "capacity": {"cpu": "2", "pods": "110"},
                "conditions": [{
                    "lastHeartbeatTime": "2026-01-01T00:05:00Z",
                    "lastTransitionTime": "2026-01-01T00:00:10Z",
                    "message": "kubelet is posting ready status",
                    "reason": "KubeletReady",
                    "status": "True",
                    "type": "Ready",
                }],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux"},
            },
        })
    }
}

/// A UUID that depends on the name alone.
fn uid(name: &str) -> String {
    let mut rng = fastrand::Rng::with_seed(
        name.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())),
    );
    let tail = rng.u64(..) & 0xffff_ffff_ffff;
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{tail:012x}",
        rng.u32(..),
        rng.u16(..),
        rng.u16(..4096),
        rng.u16(..4096)
    )
}

/// The YAML of a List.
///
/// # Panics
/// Never: the value holds only strings, numbers, lists and maps with string keys.
#[must_use]
pub fn yaml(nodes: &[Manifest]) -> String {
    let items: Vec<Value> = nodes.iter().map(Manifest::value).collect();
    let list =
        json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}});
    #[expect(clippy::expect_used, reason = "a JSON value always has a YAML form")]
    let text = serde_saphyr::to_string(&list).expect("JSON values have a YAML form");
    text
}
