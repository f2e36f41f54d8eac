//! Writes the snapshot that status, readiness and metrics are read from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Control;
use crate::core::cluster::Peer;
use crate::core::leases::Leases;
use crate::core::status::{
    ConflictStatus, LeaseStatus, PeerStatus, RefusedStatus, SilenceWatch, Status, age,
};
use crate::core::table::PeerTraffic;

/// One watch per peer.
#[derive(Debug, Default)]
pub(super) struct Silence(BTreeMap<String, SilenceWatch>);

impl Control {
    /// Publishes the snapshot.
    pub(super) fn publish(&mut self) {
        let mut reasons = self.not_ready_reasons();
        self.conflist
            .serving
            .send_if_modified(|serving| std::mem::replace(serving, reasons.is_empty()) != reasons.is_empty());
        reasons.extend(self.conflist.problem());
        let was_ready = self.board.status().ready;
        if was_ready != reasons.is_empty() {
            match reasons.is_empty() {
                true => tracing::info!("ready"),
                false => tracing::warn!(reasons = reasons.join("; "), "not ready"),
            }
        }
        self.announce(reasons.is_empty());
        self.tell_strays();
        let peers = self.peers();
        let status = self.snapshot(reasons, peers);
        self.board.publish(status);
    }

    fn snapshot(&self, reasons: Vec<String>, peers: Vec<PeerStatus>) -> Status {
        let own = self.cluster.own.as_ref();
        let underlay_v4 = own.and_then(|own| own.underlay_v4).map(|address| address.to_string());
        let underlay_v6 = own.and_then(|own| own.underlay_v6).map(|address| address.to_string());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.node_name.clone(),
            pid: std::process::id(),
            mode: "island".to_owned(),
            ready: reasons.is_empty(),
            not_ready_reasons: reasons,
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
            offloads: self.tunnel.offloads(),
            peers,
            refused: self.refused(),
            leases: self.lease_list(),
            conflicts: self.conflict_list(),
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

    fn peers(&mut self) -> Vec<PeerStatus> {
        let now = self.epoch.elapsed();
        let names: BTreeSet<&str> = self.cluster.peers.iter().map(|peer| peer.name.as_str()).collect();
        self.silence.0.retain(|name, _| names.contains(name.as_str()));
        let path_mtus = self.believed_path_mtus();
        let mut peers = Vec::with_capacity(self.cluster.peers.len());
        for peer in &self.cluster.peers {
            let traffic = self.tunnel.counters().peers.get(&peer.name).map(|counters| counters.sum());
            let mtu = self.peer_mtu(peer, &path_mtus).unwrap_or(0);
            let mut status = peer_status(peer, mtu, traffic.unwrap_or_default(), now);
            let watch = self.silence.0.entry(peer.name.clone()).or_default();
            let underlay = status.underlay.join(" or ");
            status.trouble =
                traffic.and_then(|traffic| watch.observe(traffic, now, (self.config.port, &underlay)));
            peers.push(status);
        }
        peers
    }

    fn refused(&self) -> Vec<RefusedStatus> {
        let refused =
            |node: &String, reason: &String| RefusedStatus { node: node.clone(), reason: reason.clone() };
        self.cluster.refused.iter().map(|refusal| refused(&refusal.node, &refusal.reason)).collect()
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

    fn conflict_list(&self) -> Vec<ConflictStatus> {
        let foreign = self.reconciler.conflicts().iter();
        let foreign = foreign.map(|conflict| ConflictStatus {
            object: conflict.object.clone(),
            remedy: conflict.remedy.clone(),
        });
        let doubled = self.leases.iter().flat_map(Leases::conflicts).map(|conflict| ConflictStatus {
            object: format!("pod address {} of the veths {}", conflict.address, conflict.veths.join(" and ")),
            remedy: "delete the pods behind all of these veths but one".to_owned(),
        });
        let strays = self.strays();
        let strays = (!strays.is_empty()).then(|| ConflictStatus {
            object: format!("pods with addresses outside this Node's pod CIDRs: {}", strays.join(", ")),
            remedy:
                "delete these pods: the Node was made anew with other CIDRs, and only this node reaches them"
                    .to_owned(),
        });
        foreign.chain(doubled).chain(strays).chain(self.conflist.conflicts()).collect()
    }
}

/// What is told of one peer, apart from trouble. `now` is time since the datapath's epoch.
fn peer_status(peer: &Peer, mtu: u32, traffic: PeerTraffic, now: Duration) -> PeerStatus {
    let age_ms = |last_ms: Option<u64>| last_ms.map(|last| milliseconds(now).saturating_sub(last));
    let underlay: BTreeSet<String> = peer.paths.iter().map(|path| path.underlay.to_string()).collect();
    PeerStatus {
        name: peer.name.clone(),
        underlay: underlay.into_iter().collect(),
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

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
