//! The snapshot as OpenMetrics text.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::core::status::Status;

/// Content type of the OpenMetrics text format 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter<u64, AtomicU64>>;

/// Renders every number of the snapshot. The registry lives for one page: the snapshot is the only state.
///
/// # Errors
/// If formatting fails.
pub fn render(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("overlayd");
    traffic(&mut registry, status);
    let drops = counters(&mut registry, "drops", "Packets dropped by the datapath, by reason");
    for (reason, count) in &status.drops {
        drops.get_or_create(&vec![("reason", reason.clone())]).inc_by(*count);
    }
    gauge(&mut registry, "ready", "1 if pods can be served", u64::from(status.ready));
    let source = &status.nodes;
    gauge(&mut registry, "nodes", "Nodes known, our own and refused ones included", source.nodes);
    gauge(
        &mut registry,
        "source_in_step",
        "1 if a complete list of Nodes came and their source is not in trouble",
        u64::from(source.in_step),
    );
    let seconds = |milliseconds: Option<u64>| milliseconds.unwrap_or(0) / 1000;
    gauge(
        &mut registry,
        "source_trouble_seconds",
        "For how long the source of Nodes is in trouble, 0 if it is not",
        seconds(source.trouble_ms),
    );
    gauge(
        &mut registry,
        "source_cache_age_seconds",
        "Age of the cached Nodes that serve until the first list, 0 after it",
        seconds(source.cached_ms),
    );
    gauge(&mut registry, "peers", "Peers known", status.peers.len());
    let troubled = status.peers.iter().filter(|peer| peer.trouble.is_some()).count();
    gauge(&mut registry, "peers_troubled", "Peers with one silent direction", troubled);
    gauge(
        &mut registry,
        "refused_nodes",
        "Nodes, or parts of them, that are not believed",
        status.refused.len(),
    );
    gauge(&mut registry, "leases", "Pod address leases, in flight included", status.leases.len());
    gauge(&mut registry, "conflicts", "Foreign kernel objects in our way", status.conflicts.len());
    gauge(&mut registry, "mtu_bytes", "Inner MTU, 0 while unknown", status.mtu);
    let rounds = counters(&mut registry, "reconcile_rounds", "Reconcile rounds by result");
    for (result, count) in [("succeeded", status.reconcile.succeeded), ("failed", status.reconcile.failed)] {
        rounds.get_or_create(&vec![("result", result.to_owned())]).inc_by(count);
    }
    counter(&mut registry, "reconcile_changes", "Kernel changes applied", status.reconcile.changes);
    counter(&mut registry, "table_swaps", "Peer tables handed to the workers", status.table.swaps);
    gauge(
        &mut registry,
        "table_change_slowest_microseconds",
        "Longest time from the news of a Node's change to the table that holds it",
        status.table.slowest_us,
    );
    counter(
        &mut registry,
        "conntrack_deleted",
        "Conntrack entries deleted after a repair of the table",
        status.reconcile.conntrack_deleted,
    );
    let build = Family::<Labels, Gauge>::default();
    registry.register("build_info", "Version of the daemon", build.clone());
    build.get_or_create(&vec![("version", status.version.clone())]).set(1);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn traffic(registry: &mut Registry, status: &Status) {
    let packets = counters(registry, "packets", "Inner packets by direction and peer");
    let bytes = counters(registry, "bytes", "Inner bytes by direction and peer");
    for peer in &status.peers {
        for (direction, count, size) in
            [("tx", peer.tx_packets, peer.tx_bytes), ("rx", peer.rx_packets, peer.rx_bytes)]
        {
            let labels = vec![("direction", direction.to_owned()), ("peer", peer.name.clone())];
            packets.get_or_create(&labels).inc_by(count);
            bytes.get_or_create(&labels).inc_by(size);
        }
    }
}

fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64, AtomicU64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: impl TryInto<i64>) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::status::{ReconcileStatus, RefusedStatus, SourceStatus};

    #[test]
    fn every_kind_of_number_is_on_the_page() {
        let status = Status {
            version: "1".to_owned(),
            ready: true,
            mtu: 1450,
            nodes: SourceStatus {
                in_step: true,
                nodes: 9,
                trouble_ms: Some(61_000),
                cached_ms: Some(5_000),
                ..SourceStatus::default()
            },
            refused: vec![RefusedStatus::default(); 2],
            drops: [("no_peer".to_owned(), 3)].into(),
            reconcile: ReconcileStatus { succeeded: 4, failed: 5, changes: 6, conntrack_deleted: 7 },
            ..Status::default()
        };
        let page = render(&status).unwrap();
        for line in [
            "overlayd_ready 1",
            "overlayd_mtu_bytes 1450",
            "overlayd_nodes 9",
            "overlayd_source_in_step 1",
            "overlayd_source_trouble_seconds 61",
            "overlayd_source_cache_age_seconds 5",
            "overlayd_refused_nodes 2",
            "overlayd_drops_total{reason=\"no_peer\"} 3",
            "overlayd_reconcile_rounds_total{result=\"succeeded\"} 4",
            "overlayd_reconcile_rounds_total{result=\"failed\"} 5",
            "overlayd_reconcile_changes_total 6",
            "overlayd_conntrack_deleted_total 7",
            "overlayd_build_info{version=\"1\"} 1",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
        }
    }
}
