//! Nodes from a real API server: what the daemon reads, writes and tells, and what trouble with the server does not do.

mod announce;
mod faults;
mod follow;
mod outage;

use std::time::Duration;

use serde_json::Value;
use tests::kubernetes::ControlPlane;
use tests::{Lab, Node, Pod, eventually};

use crate::nodes::peers;

/// A watch may have to run into its end first, which is after a minute.
const DEADLINE: Duration = Duration::from_secs(100);

/// Longer than the longest wait between two attempts.
const LAB_DEADLINE: Duration = Duration::from_secs(400);

/// A lab with an API server, the rights of the shipped manifest, and a Node object for each node.
struct Rig {
    lab: Lab,
    plane: ControlPlane,
}

impl Rig {
    /// So many nodes, each with its Node object, and a daemon that follows them.
    fn start(nodes: usize) -> Self {
        let rig = Self::without_nodes(nodes);
        for node in rig.lab.nodes() {
            rig.plane.create_node(&node.manifest());
            node.use_kubeconfig(&rig.kubeconfig());
        }
        rig.lab.start_daemons();
        rig
    }

    fn without_nodes(nodes: usize) -> Self {
        let lab = Lab::builder().nodes(nodes).deadline(LAB_DEADLINE).start();
        let plane = ControlPlane::builder(&lab).without_controllers().start();
        plane.apply(&rights());
        Self { lab, plane }
    }

    fn token(&self) -> String {
        self.plane.service_account_token("overlayd", "overlayd", Duration::from_secs(3600))
    }

    /// What the daemon's service account may show the API server.
    fn kubeconfig(&self) -> String {
        self.plane.kubeconfig_with(&self.plane.url(), &self.token())
    }

    /// A pod on each of the first two nodes, and a stream between them.
    fn pods(&self) -> (Pod, Pod) {
        (self.lab.node(1).add_pod("near"), self.lab.node(2).add_pod("far"))
    }

    fn annotations(&self, node: &str) -> Value {
        self.plane.get(&["node", node])["metadata"]["annotations"].clone()
    }

    /// Reasons and notes of the Events on a Node.
    fn events(&self, node: &str) -> Vec<(String, String)> {
        let selector = format!("involvedObject.kind=Node,involvedObject.name={node}");
        let events = self.plane.get(&["events", "-n", "default", "--field-selector", &selector]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let items = events["items"].as_array().cloned().unwrap_or_default();
        items.iter().map(|event| (text(&event["reason"]), text(&event["message"]))).collect()
    }
}

/// The objects of the shipped manifest that say who the daemon is and what it may do.
fn rights() -> String {
    let manifest = include_str!("../../../deploy/overlayd.yaml");
    let kinds = ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"];
    let wanted = |document: &&str| kinds.iter().any(|kind| document.contains(&format!("\nkind: {kind}\n")));
    let documents: Vec<&str> = manifest.split("\n---\n").filter(wanted).collect();
    assert_eq!(documents.len(), kinds.len(), "the manifest holds each of {kinds:?} once");
    documents.join("\n---\n")
}

#[track_caller]
fn await_peers(node: &Node, wanted: &[&str]) {
    eventually(&format!("{} has the peers {wanted:?}", node.name()), DEADLINE, || peers(node) == wanted);
}

#[track_caller]
fn await_in_step(node: &Node) {
    eventually("the source is well", DEADLINE, || node.status().nodes.in_step);
}

/// Waits until the status names a trouble with these words.
#[track_caller]
fn await_trouble(node: &Node, words: &str) {
    eventually(&format!("{} tells of {words:?}", node.name()), DEADLINE, || {
        node.status().nodes.trouble.is_some_and(|trouble| trouble.contains(words))
    });
    let status = node.status();
    assert!(status.source.contains(words), "people are told too: {}", status.source);
}
