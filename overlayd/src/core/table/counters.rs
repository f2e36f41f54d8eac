//! What passed to and from each peer: written by workers without locks, read by anyone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
pub struct PeerCounters {
    workers: Box<[Lanes]>,
}

/// Both directions as one worker saw them.
#[derive(Debug, Default)]
struct Lanes {
    tx: Lane,
    rx: Lane,
}

/// One direction as one worker saw it. Only that worker writes, so a load and a store make an addition.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(in crate::core) struct Lane {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Time of the last packet plus one; 0 = none yet.
    last_ms: AtomicU64,
}

impl Lane {
    #[inline]
    pub(in crate::core) fn add(&self, packets: u64, bytes: u64, now_ms: u64) {
        let (p, b) = (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        self.packets.store(p.wrapping_add(packets), Ordering::Relaxed);
        self.bytes.store(b.wrapping_add(bytes), Ordering::Relaxed);
        self.last_ms.store(now_ms.saturating_add(1), Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            last_ms: self.last_ms.load(Ordering::Relaxed).checked_sub(1),
        }
    }

    fn start_from(&self, total: Traffic) {
        self.packets.store(total.packets, Ordering::Relaxed);
        self.bytes.store(total.bytes, Ordering::Relaxed);
        self.last_ms.store(total.last_ms.map_or(0, |ms| ms.saturating_add(1)), Ordering::Relaxed);
    }
}

impl PeerCounters {
    /// Zeroed counters for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers.max(1)).map(|_| Lanes::default()).collect() }
    }

    /// Sums over the workers.
    #[must_use]
    pub fn sum(&self) -> PeerTraffic {
        self.workers.iter().fold(PeerTraffic::default(), |total, lanes| PeerTraffic {
            tx: total.tx.plus(lanes.tx.read()),
            rx: total.rx.plus(lanes.rx.read()),
        })
    }

    /// The same totals with room for more workers.
    fn widened(&self, workers: usize) -> Self {
        let wider = Self::new(workers);
        let total = self.sum();
        if let Some(lanes) = wider.workers.first() {
            lanes.tx.start_from(total.tx);
            lanes.rx.start_from(total.rx);
        }
        wider
    }

    #[inline]
    pub(in crate::core) fn tx(&self, worker: usize) -> Option<&Lane> {
        self.workers.get(worker).map(|lanes| &lanes.tx)
    }

    #[inline]
    pub(in crate::core) fn rx(&self, worker: usize) -> Option<&Lane> {
        self.workers.get(worker).map(|lanes| &lanes.rx)
    }
}

impl Traffic {
    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
            last_ms: self.last_ms.max(other.last_ms),
        }
    }
}

/// Counters by peer name: they survive table swaps. Owned by `control`.
#[derive(Debug, Default)]
pub struct CounterBook {
    /// By peer name.
    pub peers: BTreeMap<String, Arc<PeerCounters>>,
}

impl CounterBook {
    /// The counters of this peer, with room for this many workers.
    pub(super) fn counters(&mut self, name: &str, workers: usize) -> Arc<PeerCounters> {
        match self.peers.get_mut(name) {
            Some(counters) => {
                if counters.workers.len() < workers {
                    *counters = Arc::new(counters.widened(workers));
                }
                Arc::clone(counters)
            }
            None => {
                let counters = Arc::new(PeerCounters::new(workers));
                self.peers.insert(name.to_owned(), Arc::clone(&counters));
                counters
            }
        }
    }
}
