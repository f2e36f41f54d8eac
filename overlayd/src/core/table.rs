//! The immutable peer table that workers read: inner destination to peer, outer source to peer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cluster::{Own, Peer};

/// Totals of one direction of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Inner packets (segments of a super-packet count each).
    pub packets: u64,
    /// Inner bytes.
    pub bytes: u64,
    /// When the last one passed, in milliseconds since the datapath's epoch.
    pub last_ms: Option<u64>,
}

/// Both directions of one peer, summed over the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Towards the peer.
    pub tx: Traffic,
    /// From the peer.
    pub rx: Traffic,
}

/// Counters of one peer: one cache line per worker and direction.
#[derive(Debug)]
pub struct PeerCounters {}

impl PeerCounters {
    /// Sums over the workers.
    #[must_use]
    pub fn sum(&self) -> PeerTraffic {
        todo!()
    }
}

/// Counters by peer name: they survive table swaps. Owned by `control`.
#[derive(Debug, Default)]
pub struct CounterBook {
    /// By peer name.
    pub peers: BTreeMap<String, Arc<PeerCounters>>,
}

/// The table.
#[derive(Debug)]
pub struct Table {}

impl Table {
    /// Builds a table for `workers` workers. Counters of peers that are gone are dropped from the book.
    #[must_use]
    pub fn build(own: &Own, peers: &[Peer], vni: u32, workers: usize, counters: &mut CounterBook) -> Self {
        let _ = (own, peers, vni, workers, counters);
        todo!()
    }

    /// Whether both tables forward alike (counters aside).
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        let _ = other;
        todo!()
    }
}
