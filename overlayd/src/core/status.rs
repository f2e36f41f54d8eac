//! What the daemon tells about itself: one value for `overlayd status`, `/readyz` and `/metrics`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The whole picture. The JSON of `overlayd status -o json` is exactly this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Node name.
    pub node: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Mode of egress: "island".
    pub mode: String,
    /// Whether pods can be served.
    pub ready: bool,
    /// Why not, one sentence each; empty when ready.
    pub not_ready_reasons: Vec<String>,
    /// TUN device.
    pub device: String,
    /// Inner MTU in bytes, 0 while unknown.
    pub mtu: u32,
    /// UDP port of the tunnel.
    pub port: u16,
    /// VNI.
    pub vni: u32,
    /// Own underlay addresses.
    pub underlay: Vec<String>,
    /// Own pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// Own tunnel addresses.
    pub tunnel_addresses: Vec<String>,
    /// Where the Nodes come from and how old they are, in words.
    pub source: String,
    /// Datapath workers.
    pub workers: usize,
    /// Offloads in use, by name, with "on", "off" or why it was stepped down.
    pub offloads: BTreeMap<String, String>,
    /// Peers by name.
    pub peers: Vec<PeerStatus>,
    /// Nodes refused and why.
    pub refused: Vec<RefusedStatus>,
    /// Leases.
    pub leases: Vec<LeaseStatus>,
    /// Foreign objects in our way.
    pub conflicts: Vec<ConflictStatus>,
    /// Dropped packets by reason; every reason is present.
    pub drops: BTreeMap<String, u64>,
    /// Kernel changes applied since the start, and failed rounds.
    pub reconcile: ReconcileStatus,
    /// Last error in words with its age, if any.
    pub last_error: Option<String>,
}

/// One peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Node name.
    pub name: String,
    /// Underlay addresses in use.
    pub underlay: Vec<String>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// Inner MTU towards it in bytes.
    pub mtu: u32,
    /// Inner packets sent.
    pub tx_packets: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Milliseconds since the last packet sent.
    pub tx_age_ms: Option<u64>,
    /// Inner packets received.
    pub rx_packets: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Milliseconds since the last packet received.
    pub rx_age_ms: Option<u64>,
    /// In words, when one direction is silent.
    pub trouble: Option<String>,
}

/// A refused Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStatus {
    /// Node name.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// One lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Host veth, empty while in flight.
    pub veth: String,
    /// Container id.
    pub container: String,
    /// Interface in the pod.
    pub ifname: String,
    /// Addresses.
    pub addresses: Vec<String>,
}

/// A conflict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictStatus {
    /// What stands in the way.
    pub object: String,
    /// What to do.
    pub remedy: String,
}

/// Reconcile results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileStatus {
    /// Rounds that ended without error.
    pub succeeded: u64,
    /// Rounds that ended with an error.
    pub failed: u64,
    /// Kernel changes applied.
    pub changes: u64,
    /// Conntrack entries deleted after a repair of the table.
    pub conntrack_deleted: u64,
}
