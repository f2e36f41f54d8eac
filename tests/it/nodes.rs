//! The file of Nodes, live: what changes in it changes the overlay, what is wrong in it costs itself, and trouble
//! with the file costs nothing.

use std::net::IpAddr;
use std::time::Duration;

use tests::manifest::yaml;
use tests::node::{ADMIN, NODES_FILE};
use tests::{Lab, Manifest, Node, eventually};

const DEADLINE: Duration = Duration::from_secs(20);

/// Names of the peers that this node's daemon tells.
pub(crate) fn peers(node: &Node) -> Vec<String> {
    let peers = node.try_status().map(|status| status.peers).unwrap_or_default();
    peers.into_iter().map(|peer| peer.name).collect()
}

#[track_caller]
fn await_peers(node: &Node, wanted: &[&str]) {
    eventually(&format!("{} has the peers {wanted:?}", node.name()), DEADLINE, || peers(node) == wanted);
}

/// The routes of this node to this network, as lines.
fn routes(node: &Node, cidr: &str) -> Vec<String> {
    let wanted = format!(" {cidr} ");
    node.objects().into_iter().filter(|line| line.starts_with("route ") && line.contains(&wanted)).collect()
}

#[test]
fn a_node_is_added_and_removed_without_a_lost_packet_between_the_others() {
    let lab = Lab::builder().nodes(3).start();
    let all = lab.manifests();
    lab.write_nodes(&all[..2]);
    lab.node(3).write_nodes(&all);
    lab.start_daemons();
    let [one, two, three] = [1, 2, 3].map(|number| lab.node(number));
    let [a, b, c] = [&one, &two, &three].map(|node| node.add_pod("pod"));
    let (b_server, c_server) = (b.serve(), c.serve());
    let (tcp, udp) = (a.tcp_stream(b_server.v4()), a.udp_stream(b_server.v4()));
    udp.wait_echoes(3);
    await_peers(&one, &["node-2"]);
    let before = one.objects();
    assert!(!a.tcp(c_server.v4()).ok, "node-3 is not known yet");

    lab.write_nodes(&all);
    await_peers(&one, &["node-2", "node-3"]);
    await_peers(&two, &["node-1", "node-3"]);
    eventually("the route to node-3 is there", DEADLINE, || routes(&one, "10.244.3.0/24").len() == 2);
    assert_eq!(a.tcp_source(c_server.v4()), a.v4());
    assert_eq!(b.tcp_source(c_server.v4()), b.v4());

    lab.write_nodes(&all[..2]);
    await_peers(&one, &["node-2"]);
    eventually("all of node-3 is gone", DEADLINE, || one.objects() == before);
    assert!(!a.tcp(c_server.v4()).ok);
    udp.wait_echoes(3);
    for stream in [tcp.stop(), udp.stop()] {
        assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{stream:?}");
    }
}

#[test]
fn a_changed_pod_cidr_moves_the_routes() {
    let lab = Lab::with_nodes(3);
    let [one, two, three] = [1, 2, 3].map(|number| lab.node(number));
    let (a, c) = (one.add_pod("a"), three.add_pod("c"));
    let c_server = c.serve();
    let stream = a.udp_stream(c_server.v4());
    let mut manifests = lab.manifests();
    manifests[1].pod_cidrs = vec!["10.244.42.0/24".parse().unwrap()];
    lab.write_nodes(&manifests);
    eventually("the routes to node-2 have moved", DEADLINE, || {
        routes(&one, "10.244.2.0/24").is_empty() && routes(&one, "10.244.42.0/24").len() == 2
    });
    eventually("node-2 serves its new pod CIDR", DEADLINE, || {
        let status = two.status();
        status.ready && status.tunnel_addresses == ["10.244.42.0"]
    });
    let b = two.add_pod("b");
    assert!(b.v4().to_string().starts_with("10.244.42."), "{}", b.v4());
    let b_server = b.serve();
    assert_eq!(a.tcp_source(b_server.v4()), a.v4());
    assert_eq!(b.tcp_source(c_server.v4()), b.v4());
    assert_eq!(two.tcp_source(c_server.v4()).to_string(), "10.244.42.0");
    let stream = stream.stop();
    assert_eq!(stream.answered, stream.sent, "{stream:?}");
}

#[test]
fn a_node_that_changes_its_underlay_address_is_found_at_the_new_one() {
    let lab = Lab::with_nodes(3);
    let [one, two, three] = [1, 2, 3].map(|number| lab.node(number));
    let [a, b, c] = [&one, &two, &three].map(|node| node.add_pod("pod"));
    let (a_server, b_server, c_server, outside) = (a.serve(), b.serve(), c.serve(), lab.outside().serve());
    let undisturbed = a.udp_stream(c_server.v4());
    let moved = a.tcp_stream(b_server.v4());
    moved.wait_echoes(3);
    let new: IpAddr = "192.0.2.112".parse().unwrap();
    let mut manifests = lab.manifests();
    manifests[1].internal_ips = vec![new];
    two.delete_address("eth0", "192.0.2.12/24".parse().unwrap());
    two.add_address("eth0", "192.0.2.112/24".parse().unwrap());
    two.add_route("0.0.0.0/0".parse().unwrap(), "192.0.2.1".parse().unwrap());
    lab.write_nodes(&manifests);
    for node in [&one, &three] {
        eventually("the peer has moved", DEADLINE, || {
            node.status().peers.iter().any(|peer| peer.name == "node-2" && peer.underlay == ["192.0.2.112"])
        });
    }
    eventually("node-2 has moved", DEADLINE, || {
        let status = two.status();
        status.ready && status.underlay == ["192.0.2.112"]
    });
    two.wait_log("our own underlay address changed: the datapath starts anew");
    moved.wait_echoes(3);
    assert_eq!(b.tcp_source(a_server.v4()), b.v4());
    assert_eq!(c.tcp_source(b_server.v4()), c.v4());
    assert_eq!(b.tcp_source(outside.v4()), new);
    let moved = moved.stop();
    assert_eq!((moved.answered, &moved.error), (moved.sent, &None), "{moved:?}");
    let undisturbed = undisturbed.stop();
    assert_eq!(undisturbed.answered, undisturbed.sent, "{undisturbed:?}");
}

#[test]
fn a_file_that_is_cut_off_emptied_or_gone_changes_nothing() {
    let lab = Lab::with_nodes(2);
    let (one, manifests) = (lab.node(1), lab.manifests());
    let (a, b) = (one.add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    let stream = a.udp_stream(server.v4());
    stream.wait_echoes(3);
    let (before, changes) = (one.objects(), one.status().reconcile.changes);
    let whole = yaml(&manifests);
    // In the middle of a key, so that what is left is no YAML.
    let cut = whole.rfind("internal").or_else(|| whole.rfind("InternalIP")).unwrap() + 4;
    let half = format!("{}\n  \"", &whole[..cut]);
    let breakages: [(&str, &dyn Fn()); 3] = [
        ("cut off", &|| one.write_file(NODES_FILE, half.clone())),
        ("emptied", &|| one.write_file(NODES_FILE, "")),
        ("deleted", &|| one.remove_file(NODES_FILE)),
    ];
    for (what, breakage) in breakages {
        breakage();
        eventually(what, DEADLINE, || {
            one.status().nodes.trouble.is_some_and(|trouble| trouble.starts_with("/run/lab/nodes.yaml: "))
        });
        let status = one.status();
        assert!(status.ready, "{what}: {status:?}");
        assert_eq!(peers(&one), ["node-2"], "{what}");
        assert_eq!(one.objects(), before, "{what}");
        assert_eq!(a.tcp_source(server.v4()), a.v4(), "{what}");
        one.write_nodes(&manifests);
        eventually("the trouble is over", DEADLINE, || !one.status().source.contains("trouble"));
    }
    assert_eq!(one.status().reconcile.changes, changes, "{}", one.log());
    let stream = stream.stop();
    assert_eq!(stream.answered, stream.sent, "{stream:?}");
}

#[test]
fn a_config_map_that_swaps_its_symbolic_link_is_read_again_as_yaml_or_json() {
    let lab = Lab::builder().nodes(3).start();
    let (one, all) = (lab.node(1), lab.manifests());
    let value: serde_json::Value = serde_saphyr::from_str(&yaml(&all)).unwrap();
    assert_eq!(value["kind"], "List");
    one.write_file("/run/lab/v1/nodes.yaml", yaml(&all[..2]));
    one.write_file("/run/lab/v2/nodes.yaml", value.to_string());
    one.write_file("/run/lab/v3/nodes.yaml", yaml(&all[..1]));
    one.symlink("v1", "/run/lab/..data");
    one.symlink("..data/nodes.yaml", NODES_FILE);
    one.start_daemon();
    await_peers(&one, &["node-2"]);
    one.symlink("v2", "/run/lab/..data");
    await_peers(&one, &["node-2", "node-3"]);
    one.symlink("v3", "/run/lab/..data");
    await_peers(&one, &[]);
    // And an ordinary file in the place of the link.
    one.write_nodes(&all);
    await_peers(&one, &["node-2", "node-3"]);
}

/// A Node that is not to be believed, and a part of the reason. Its claims are good but for what spoils it.
fn bad(number: u8, reason: &'static str, spoil: impl FnOnce(&mut Manifest)) -> (Manifest, &'static str) {
    let mut manifest = Manifest {
        name: format!("bad-{number:02}"),
        created: "2026-02-01T00:00:00Z".into(),
        annotations: std::collections::BTreeMap::new(),
        pod_cidrs: vec![format!("10.77.{number}.0/24").parse().unwrap()],
        internal_ips: vec![format!("192.0.2.{}", 100 + number).parse().unwrap()],
    };
    spoil(&mut manifest);
    (manifest, reason)
}

fn bad_nodes() -> Vec<(Manifest, &'static str)> {
    let cidr = |text: &'static str| move |node: &mut Manifest| node.pod_cidrs = vec![text.parse().unwrap()];
    let address =
        |text: &'static str| move |node: &mut Manifest| node.internal_ips = vec![text.parse().unwrap()];
    let annotate = |key: &'static str, text: &'static str| {
        move |node: &mut Manifest| drop(node.annotations.insert(format!("overlayd.io/{key}"), text.into()))
    };
    vec![
        bad(1, "has no pod CIDR yet", |node| node.pod_cidrs.clear()),
        bad(2, "pod CIDR 10.244.1.128/25 overlaps 10.244.1.0/24 of this node", cidr("10.244.1.128/25")),
        bad(3, "pod CIDR 10.244.0.0/16 overlaps", cidr("10.244.0.0/16")),
        bad(4, "pod CIDR 10.244.2.0/25 overlaps 10.244.2.0/24 of node node-2", cidr("10.244.2.0/25")),
        bad(5, "pod CIDR 192.0.2.0/24 covers 192.0.2.", cidr("192.0.2.0/24")),
        bad(6, "224.0.0.0/24", cidr("224.0.0.0/24")),
        bad(7, "0.0.0.0", address("0.0.0.0")),
        bad(8, "127.0.0.1", address("127.0.0.1")),
        bad(9, "224.0.0.5", address("224.0.0.5")),
        bad(10, "address 192.0.2.11 is that of this node", address("192.0.2.11")),
        bad(11, "address 192.0.2.12 is that of node node-2", address("192.0.2.12")),
        bad(12, "not a CIDR", annotate("pod-cidrs", "${POD_CIDR}")),
        bad(13, "is not an IP address", annotate("public-ip", "localhost; rm -rf /")),
        bad(14, "0.0.0.0/0 is too wide", cidr("0.0.0.0/0")),
    ]
}

#[test]
fn each_bad_node_is_refused_with_one_line_and_the_good_ones_work() {
    let lab = Lab::builder().nodes(2).start();
    let (one, bad) = (lab.node(1), bad_nodes());
    let mut manifests = lab.manifests();
    manifests.extend(bad.iter().map(|(node, _)| node.clone()));
    // The order in the file must not matter: the bad ones come first.
    manifests.reverse();
    lab.write_nodes(&manifests);
    lab.start_daemons();
    let status = one.status();
    let refused: Vec<&str> = status.refused.iter().map(|refused| refused.node.as_str()).collect();
    let wanted: Vec<&str> = bad.iter().map(|(node, _)| node.name.as_str()).collect();
    assert_eq!(refused, wanted, "{:#?}", status.refused);
    for (refused, (node, reason)) in status.refused.iter().zip(&bad) {
        assert!(refused.reason.contains(reason), "{}: {} has no {reason:?}", node.name, refused.reason);
    }
    assert_eq!(peers(&one), ["node-2"]);
    let metrics = one.http(ADMIN, "/metrics").unwrap().body;
    let gauge = format!("overlayd_refused_nodes {}", bad.len());
    assert!(metrics.lines().any(|line| line == gauge), "{metrics}");

    let (a, b) = (one.add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    assert_eq!(a.tcp_source(server.v4()), a.v4());

    // Read again with another good Node, younger than all, that has what two bad ones claim in vain: it is
    // believed, and what was told once is not told again.
    let mut good = lab.manifests()[0].clone();
    good.name = "node-9".into();
    good.created = "2026-03-01T00:00:00Z".into();
    good.pod_cidrs = vec!["10.77.7.0/24".parse().unwrap()];
    good.internal_ips = vec!["192.0.2.101".parse().unwrap()];
    manifests.push(good);
    one.write_nodes(&manifests);
    await_peers(&one, &["node-2", "node-9"]);
    let log = one.log();
    for (node, _) in &bad {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&node.name)).collect();
        assert!(lines.len() == 1 && lines[0].contains("node refused"), "{}: {lines:#?}", node.name);
    }

    // One that is mended is a peer, and no longer refused.
    let mended = manifests.iter_mut().find(|node| node.name == "bad-08").unwrap();
    mended.internal_ips = vec!["192.0.2.77".parse().unwrap()];
    one.write_nodes(&manifests);
    await_peers(&one, &["bad-08", "node-2", "node-9"]);
    assert_eq!(one.status().refused.len(), bad.len() - 1);
}

/// What `/readyz` says while it is red.
fn why_not_ready(node: &Node) -> String {
    match node.http(ADMIN, "/readyz") {
        Ok(answer) if answer.status == 503 => answer.body,
        _ => String::new(),
    }
}

#[test]
fn a_node_without_a_node_object_or_pod_cidr_says_so_until_it_has_one() {
    let lab = Lab::builder().nodes(2).start();
    let (one, all) = (lab.node(1), lab.manifests());
    one.write_nodes(&all[1..]);
    one.launch_daemon(&[]);
    eventually("the missing Node is named", DEADLINE, || {
        why_not_ready(&one).contains("there is no Node named node-1")
    });
    let refused = one.try_add_pod("early").unwrap_err().to_string();
    assert!(refused.contains("there is no Node named node-1"), "{refused}");

    let mut without = all.clone();
    without[0].pod_cidrs.clear();
    one.write_nodes(&without);
    eventually("the flags that help are named", DEADLINE, || {
        let why = why_not_ready(&one);
        why.contains("kube-controller-manager")
            && why.contains("--allocate-node-cidrs=true")
            && why.contains("--cluster-cidr")
    });
    assert!(!one.status().ready);

    one.write_nodes(&all);
    one.wait_ready();
    lab.node(2).start_daemon();
    let (a, b) = (one.add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    assert_eq!(a.tcp_source(server.v4()), a.v4());
}
