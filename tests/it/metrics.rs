//! The numbers: OpenMetrics that parse, are complete, and move by exactly what was sent.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "what surprises a test's helper fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use overlayd::core::forward::DropReason;
use tests::node::ADMIN;
use tests::{Lab, Node, eventually, packet};
use wire::packet::MacAddr;

const SOON: Duration = Duration::from_secs(30);

/// Sample (name with labels as printed) to value.
type Samples = BTreeMap<String, f64>;

fn samples(node: &Node) -> Samples {
    let answer = node.http(ADMIN, "/metrics").unwrap();
    assert_eq!(answer.status, 200);
    parse(&answer.body)
}

/// Reads the OpenMetrics text format 1.0 as far as counters and gauges go, strictly.
fn parse(text: &str) -> Samples {
    let body = text.strip_suffix("# EOF\n").expect("the page ends with # EOF and a newline");
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut found = Samples::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type has a name");
            assert!(types.insert(name, kind).is_none(), "{name} is declared twice");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.split_once(' ').is_some_and(|(_, help)| !help.is_empty()), "{line}");
            continue;
        }
        assert!(!line.starts_with('#') && !line.is_empty(), "unexpected line {line:?}");
        let (sample, value) = line.rsplit_once(' ').expect("a sample has a value");
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels.strip_suffix('}').expect("labels end");
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (_, text) = label.split_once('=').expect("a label has a value");
            assert!(text.len() >= 2 && text.starts_with('"') && text.ends_with('"'), "{line}");
        }
        let family = name.strip_suffix("_total").filter(|family| types.contains_key(family)).unwrap_or(name);
        let kind = types.get(family).copied().unwrap_or_else(|| panic!("{name} has no type"));
        assert_eq!(name.ends_with("_total"), kind == "counter", "{line} is a {kind}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(found.insert(sample.to_owned(), value).is_none(), "{sample} stands there twice");
    }
    found
}

#[track_caller]
fn one(samples: &Samples, sample: &str) -> f64 {
    match samples.get(sample) {
        Some(value) => *value,
        None => panic!("no {sample} among {:?}", samples.keys()),
    }
}

#[test]
fn every_number_is_there_from_the_start() {
    let lab = Lab::builder().nodes(3).start();
    let node = lab.node(1);
    let mut liar = lab.node(3).manifest();
    liar.internal_ips = vec!["127.0.0.1".parse().unwrap()];
    node.write_nodes(&[node.manifest(), lab.node(2).manifest(), liar]);
    node.start_daemon();
    let _pods = [node.add_pod("one"), node.add_pod("two")];
    eventually("both leases are counted", SOON, || one(&samples(&node), "overlayd_leases") == 2.0);
    let page = samples(&node);
    let reasons: BTreeSet<String> = page
        .keys()
        .filter_map(|key| key.strip_prefix("overlayd_drops_total{reason=\""))
        .map(|rest| rest.trim_end_matches("\"}").to_owned())
        .collect();
    assert_eq!(reasons, DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect());
    for direction in ["tx", "rx"] {
        for number in ["packets", "bytes"] {
            let sample = format!("overlayd_{number}_total{{direction=\"{direction}\",peer=\"node-2\"}}");
            assert_eq!(one(&page, &sample), 0.0, "{sample}");
        }
    }
    for (sample, value) in [
        ("overlayd_ready", 1.0),
        ("overlayd_peers", 1.0),
        ("overlayd_peers_troubled", 0.0),
        ("overlayd_refused_nodes", 1.0),
        ("overlayd_conflicts", 0.0),
        ("overlayd_mtu_bytes", 1450.0),
        ("overlayd_reconcile_rounds_total{result=\"failed\"}", 0.0),
    ] {
        assert_eq!(one(&page, sample), value, "{sample}");
    }
    assert!(one(&page, "overlayd_reconcile_rounds_total{result=\"succeeded\"}") >= 1.0);
    // At least the device's address, the route to the peer and the table.
    assert!(one(&page, "overlayd_reconcile_changes_total") >= 3.0);
}

/// All drops but those that a node's own multicast (IPv6 solicitations) causes at any time.
fn drops(page: &Samples) -> BTreeMap<String, f64> {
    let is_drop = |key: &str| key.starts_with("overlayd_drops_total") && !key.contains("egress_not_unicast");
    page.iter().filter(|(key, _)| is_drop(key)).map(|(key, value)| (key.clone(), *value)).collect()
}

#[test]
fn counters_move_by_exactly_what_was_sent() {
    const GOOD: u32 = 25;
    const PAYLOAD: usize = 100;
    // IPv4 and UDP headers.
    const LENGTH: f64 = (20 + 8 + PAYLOAD) as f64;
    let lab = Lab::with_nodes(2);
    let (a, b) = (lab.node(1), lab.node(2));
    let (client, target) = (a.add_pod("client"), b.add_pod("target"));
    // It reads datagrams that it does not know, and says nothing.
    let listener = target.serve();
    let (before_a, before_b) = (samples(&a), samples(&b));
    for _ in 0..GOOD {
        client.inject_udp((client.v4(), 7).into(), listener.v4(), &[0; PAYLOAD]);
    }
    let hostile = |source: SocketAddr, vni: u32| {
        let inner = packet::udp((client.v4(), 7).into(), listener.v4(), &[0; PAYLOAD]);
        let frame = packet::vxlan(vni, MacAddr([2; 6]), MacAddr([2; 6]), &inner);
        a.inject_udp(source, (b.v4(), 8472).into(), &frame);
    };
    for _ in 0..5 {
        hostile((a.v4(), 4000).into(), 77);
    }
    for _ in 0..3 {
        hostile("192.0.2.99:4000".parse().unwrap(), 1);
    }

    let traffic = |direction: &str, peer: &str| {
        [("packets", f64::from(GOOD)), ("bytes", f64::from(GOOD) * LENGTH)].map(|(number, count)| {
            (format!("overlayd_{number}_total{{direction=\"{direction}\",peer=\"{peer}\"}}"), count)
        })
    };
    let sent = traffic("tx", "node-2");
    let received = traffic("rx", "node-1");
    let moved = |now: &Samples, before: &Samples, sample: &str| one(now, sample) - one(before, sample);
    let wrong_vni = "overlayd_drops_total{reason=\"wrong_vni\"}".to_owned();
    let unknown = "overlayd_drops_total{reason=\"unknown_source\"}".to_owned();
    eventually("all is counted", SOON, || {
        let (now_a, now_b) = (samples(&a), samples(&b));
        moved(&now_a, &before_a, &sent[0].0) >= f64::from(GOOD)
            && moved(&now_b, &before_b, &received[0].0) >= f64::from(GOOD)
            && moved(&now_b, &before_b, &unknown) >= 3.0
    });
    let (now_a, now_b) = (samples(&a), samples(&b));
    for (now, before, expected) in [(&now_a, &before_a, &sent), (&now_b, &before_b, &received)] {
        for (sample, count) in expected {
            assert_eq!(moved(now, before, sample), *count, "{sample}");
        }
    }
    for (silent, now) in [(traffic("rx", "node-2"), &now_a), (traffic("tx", "node-1"), &now_b)] {
        for (sample, _) in silent {
            assert_eq!(one(now, &sample), 0.0, "{sample}");
        }
    }
    assert_eq!(drops(&now_a), drops(&before_a));
    let mut expected = drops(&before_b);
    expected.insert(wrong_vni, 5.0);
    expected.insert(unknown, 3.0);
    assert_eq!(drops(&now_b), expected);
}
