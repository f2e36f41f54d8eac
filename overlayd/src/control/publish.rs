//! Writes the snapshot that status, readiness and metrics are read from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Control;
use crate::core::cluster::Peer;
use crate::core::desired::uplink::why_none;
use crate::core::status::{LeaseStatus, PeerStatus, RefusedStatus, SilenceWatch, Status, age};
use crate::core::table::PeerTraffic;
use crate::datapath::TUNNEL_GSO;
use crate::edge::board::Readiness;

/// Peers that are listened to in one second: their counters are spread over as many cache lines as there are workers. Trouble is
/// told after some forty seconds, so each of 5,000 peers may wait twenty for its turn.
const LISTEN: usize = 250;

/// Time that a snapshot costs for each peer, a hundred times over: so making them unasked stays below a hundredth of a CPU.
const SNAPSHOT_BREATH: Duration = Duration::from_millis(10);

/// One watch per peer, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Silence {
    watches: BTreeMap<String, Watched>,
    next: usize,
}

#[derive(Debug, Default)]
struct Watched {
    watch: SilenceWatch,
    trouble: Option<String>,
}

impl Control {
    /// Looks whether pods can be served, and lets those know who act upon it.
    pub(super) fn judge(&mut self) {
        let mut reasons = self.not_ready_reasons();
        self.conflist
            .serving
            .send_if_modified(|serving| std::mem::replace(serving, reasons.is_empty()) != reasons.is_empty());
        reasons.extend(self.conflist.problem());
        self.announce(reasons.is_empty());
        let before = self.board.readiness();
        if before.ready != reasons.is_empty() {
            self.asked = true;
            match reasons.is_empty() {
                true => tracing::info!("ready"),
                false => tracing::warn!(reasons = reasons.join("; "), "not ready"),
            }
        }
        if before.ready != reasons.is_empty() || before.reasons != reasons {
            self.board.set_readiness(Readiness { ready: reasons.is_empty(), reasons });
        }
    }

    /// Publishes the snapshot if somebody asked for it, or if there is news and it was not made a moment ago.
    pub(super) fn publish_if_due(&mut self) {
        let peers = u32::try_from(self.book.cluster().peers.len()).unwrap_or(u32::MAX);
        let rested = self.published.is_none_or(|at| at.elapsed() >= SNAPSHOT_BREATH * peers);
        if std::mem::take(&mut self.asked) || (self.publish_due && rested) {
            self.publish_due = false;
            let readiness = self.board.readiness();
            let status = self.snapshot(&readiness);
            self.board.publish(status);
            self.published = Some(Instant::now());
        }
    }

    /// Listens to the next peers: one whose one direction stays silent is in trouble.
    pub(super) fn listen(&mut self) {
        let now = self.epoch.elapsed();
        let peers = &self.book.cluster().peers;
        let count = peers.len();
        if self.silence.next >= count {
            self.silence.next = 0;
            let names: BTreeSet<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
            self.silence.watches.retain(|name, _| names.contains(name.as_str()));
        }
        for peer in peers.iter().skip(self.silence.next).take(LISTEN) {
            let Some(counters) = self.tunnel.counters().peers.get(&peer.name) else { continue };
            let watched = match self.silence.watches.get_mut(&peer.name) {
                Some(watched) => watched,
                None => self.silence.watches.entry(peer.name.clone()).or_default(),
            };
            let underlay = || underlays(peer).join(" or ");
            watched.trouble = watched.watch.observe(counters.sum(), now, self.config.port, underlay);
        }
        self.silence.next += LISTEN;
    }

    /// Offloads by name, with what the workers cannot know.
    fn offloads(&self) -> BTreeMap<String, String> {
        let mut offloads = self.tunnel.offloads();
        if self.tunnel.lacks_uplink(&offloads) {
            let why = self.reconciler.uplink_refusal().unwrap_or_else(|| why_none(&self.config));
            offloads.insert(TUNNEL_GSO.to_owned(), format!("off: {why}"));
        }
        offloads
    }

    fn snapshot(&self, readiness: &Readiness) -> Status {
        let own = self.book.cluster().own.as_ref();
        let underlay_v4 = own.and_then(|own| own.underlay_v4).map(|address| address.to_string());
        let underlay_v6 = own.and_then(|own| own.underlay_v6).map(|address| address.to_string());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.node_name.clone(),
            pid: std::process::id(),
            mode: "island".to_owned(),
            ready: readiness.ready,
            not_ready_reasons: readiness.reasons.clone(),
            device: self.config.device.clone(),
            mtu: self.mtu().unwrap_or(0),
            port: self.config.port,
            vni: self.config.vni,
            underlay: underlay_v4.into_iter().chain(underlay_v6).collect(),
            pod_cidrs: own.map(|own| texts(&own.pod_cidrs)).unwrap_or_default(),
            tunnel_addresses: own.map(|own| texts(&own.tunnel_addresses())).unwrap_or_default(),
            source: self.source_words(),
            nodes: self.source_status(),
            workers: self.config.workers,
            offloads: self.offloads(),
            peers: self.peers(),
            refused: self.refused(),
            leases: self.lease_list(),
            conflicts: self.conflicts(),
            conflist: self.conflist.status().cloned(),
            drops: self
                .tunnel
                .drops()
                .into_iter()
                .map(|(why, count)| (why.name().to_owned(), count))
                .collect(),
            reconcile: self.reconciler.numbers().clone(),
            table: self.tunnel.numbers().clone(),
            last_error: self
                .last_error
                .as_ref()
                .map(|(at, error)| format!("{error} ({} ago)", age(at.elapsed()))),
        }
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let now = self.epoch.elapsed();
        let path_mtus = self.believed_path_mtus();
        let status = |peer: &Peer| {
            let traffic = self.tunnel.counters().peers.get(&peer.name).map(|counters| counters.sum());
            let mtu = self.peer_mtu(peer, &path_mtus).unwrap_or(0);
            let trouble = self.silence.watches.get(&peer.name).and_then(|watched| watched.trouble.clone());
            PeerStatus { trouble, ..peer_status(peer, mtu, traffic.unwrap_or_default(), now) }
        };
        self.book.cluster().peers.iter().map(status).collect()
    }

    fn refused(&self) -> Vec<RefusedStatus> {
        let refused =
            |node: &String, reason: &String| RefusedStatus { node: node.clone(), reason: reason.clone() };
        self.book.cluster().refused.iter().map(|refusal| refused(&refusal.node, &refusal.reason)).collect()
    }

    fn lease_list(&self) -> Vec<LeaseStatus> {
        let Some(leases) = &self.leases else { return Vec::new() };
        let attached = leases.attached().map(|lease| LeaseStatus {
            veth: lease.veth.to_owned(),
            container: lease.alias.container.clone(),
            ifname: lease.alias.ifname.clone(),
            addresses: texts(&lease.alias.addresses),
        });
        let in_flight = leases.in_flight().map(|(attachment, addresses)| LeaseStatus {
            veth: String::new(),
            container: attachment.container.clone(),
            ifname: attachment.ifname.clone(),
            addresses: texts(addresses),
        });
        attached.chain(in_flight).collect()
    }
}

/// What is told of one peer, apart from trouble. `now` is time since the datapath's epoch.
fn peer_status(peer: &Peer, mtu: u32, traffic: PeerTraffic, now: Duration) -> PeerStatus {
    let age_ms = |last_ms: Option<u64>| last_ms.map(|last| milliseconds(now).saturating_sub(last));
    PeerStatus {
        name: peer.name.clone(),
        underlay: underlays(peer),
        pod_cidrs: peer.paths.iter().flat_map(|path| texts(&path.pod_cidrs)).collect(),
        mtu,
        tx_packets: traffic.tx.packets,
        tx_bytes: traffic.tx.bytes,
        tx_age_ms: age_ms(traffic.tx.last_ms),
        rx_packets: traffic.rx.packets,
        rx_bytes: traffic.rx.bytes,
        rx_age_ms: age_ms(traffic.rx.last_ms),
        trouble: None,
    }
}

/// The addresses of its ways, each once.
fn underlays(peer: &Peer) -> Vec<String> {
    let all: BTreeSet<String> = peer.paths.iter().map(|path| path.underlay.to_string()).collect();
    all.into_iter().collect()
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
