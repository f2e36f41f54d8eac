//! Daemons die, are killed, and come back: what runs goes on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tests::{Lab, Node, eventually};

const DEADLINE: Duration = Duration::from_secs(20);

/// The addresses that the daemon believes are in use.
fn leased(node: &Node) -> BTreeSet<IpAddr> {
    let leases = node.status().leases;
    leases.iter().flat_map(|lease| &lease.addresses).map(|address| address.parse().unwrap()).collect()
}

/// The addresses that it believes are in use once it has seen so many.
#[track_caller]
fn await_leased(node: &Node, count: usize) -> BTreeSet<IpAddr> {
    eventually("the pods are in the status", DEADLINE, || leased(node).len() == count);
    leased(node)
}

#[test]
fn a_killed_daemon_hurts_nobody_on_its_node_and_loses_no_byte_across() {
    let lab = Lab::with_nodes(2);
    let node = lab.node(1);
    let (near, next, far) = (node.add_pod("near"), node.add_pod("next"), lab.node(2).add_pod("far"));
    let (next_server, far_server, outside) = (next.serve(), far.serve(), lab.outside().serve());
    let across = near.tcp_stream(far_server.v4());
    let within = near.udp_stream(next_server.v4());
    let probe = node.udp_stream(next_server.v4());
    let egress = near.tcp_stream(outside.v4());
    across.wait_echoes(5);
    let (before, leases) = (node.objects(), await_leased(&node, 2));

    node.kill_daemon();
    assert!(!node.daemon_runs());
    for stream in [&within, &probe, &egress] {
        stream.wait_echoes(20);
    }
    assert_eq!(near.tcp_source(outside.v4()), node.v4());
    assert_eq!(near.tcp_source(next_server.v4()), near.v4());
    assert!(!near.tcp(far_server.v4()).ok, "who carries this packet?");
    assert_eq!(node.objects(), before);

    node.start_daemon();
    across.wait_echoes(5);
    assert_eq!(leased(&node), leases);
    let status = node.status();
    assert_eq!((status.reconcile.changes, status.reconcile.failed), (0, 0), "{}", node.log());
    assert_eq!(node.objects(), before);
    for (name, stream) in [("within", within), ("probe", probe), ("egress", egress), ("across", across)] {
        let stream = stream.stop();
        assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{name}: {stream:?}");
    }
    let more: BTreeSet<IpAddr> = (0..4).map(|at| node.add_pod(&format!("more-{at}")).v4()).collect();
    assert_eq!(more.len(), 4);
    assert!(more.is_disjoint(&leases), "{more:?} and {leases:?}");
}

/// As an update does it: the new daemon starts beside the old one.
#[test]
fn a_daemon_that_takes_over_is_hardly_noticed_and_the_old_one_serves_again_when_it_dies() {
    let lab = Lab::with_nodes(2);
    let node = lab.node(1);
    let (near, next, far) = (node.add_pod("near"), node.add_pod("next"), lab.node(2).add_pod("far"));
    let (next_server, far_server, outside) = (next.serve(), far.serve(), lab.outside().serve());
    let (across, datagrams) = (near.tcp_stream(far_server.v4()), near.udp_stream(far_server.v4()));
    let (within, egress) = (near.udp_stream(next_server.v4()), near.tcp_stream(outside.v4()));
    across.wait_echoes(5);
    let (first, before) = (node.status().pid, node.objects());

    let successor = node.daemon_command().args(["--take-over", "true"]).spawn();
    eventually("the successor serves", DEADLINE, || {
        node.try_status().is_ok_and(|status| status.pid != first && status.ready)
    });
    across.wait_echoes(20);
    datagrams.wait_echoes(20);
    assert!(node.daemon_runs(), "it stands by");
    assert_eq!(node.objects(), before);
    for (name, stream) in [("within", within), ("egress", egress), ("across", across)] {
        let stream = stream.stop();
        assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{name}: {stream:?}");
        assert!(stream.longest_gap_ms < 1000, "{name}: {stream:?}");
    }
    // There is one on the way at a time.
    let datagrams = datagrams.stop();
    assert!(datagrams.sent - datagrams.answered <= 1, "{datagrams:?}");
    let _ = node.add_pod("more");

    successor.kill();
    eventually("the first serves again", DEADLINE, || {
        node.try_status().is_ok_and(|status| status.pid == first && status.ready)
    });
    assert!(near.tcp(far_server.v4()).ok);
    let last = node.daemon_command().args(["--take-over", "true"]).spawn();
    eventually("another takes over", DEADLINE, || {
        node.try_status().is_ok_and(|status| status.pid != first && status.ready)
    });
    let (exit, took) = node.stop_daemon();
    assert_eq!(exit.code, Some(0), "one that stands by ends like any other: {}", node.log());
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(last.running() && near.tcp(far_server.v4()).ok);
}

#[test]
fn a_transfer_across_nodes_survives_a_killed_daemon_whole() {
    let lab = Lab::with_nodes(2);
    let node = lab.node(1);
    let (near, far) = (node.add_pod("near"), lab.node(2).add_pod("far"));
    let server = far.serve();
    let bytes = 400_000_000;
    let target = server.v4();
    let transfer = std::thread::spawn(move || near.tcp_upload(target, bytes));
    eventually("the transfer is under way", DEADLINE, || {
        node.status().peers.iter().any(|peer| peer.tx_bytes > 5_000_000)
    });
    node.kill_daemon();
    assert!(!transfer.is_finished(), "the transfer was too quick for this test");
    node.start_daemon();
    let bulk = transfer.join().unwrap();
    assert_eq!((bulk.bytes, bulk.received_sha256), (bytes, bulk.sent_sha256));
}

#[test]
fn a_pod_deleted_while_the_daemon_is_down_frees_its_address() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let mut manifests = lab.manifests();
    manifests[0].pod_cidrs = vec!["10.244.1.0/29".parse::<IpNet>().unwrap()];
    lab.write_nodes(&manifests);
    lab.start_daemons();
    let mut pods = Vec::new();
    let full = loop {
        match node.try_add_pod(&format!("pod-{}", pods.len())) {
            Ok(pod) => pods.push(pod),
            Err(error) => break error.to_string(),
        }
        assert!(pods.len() < 8, "more pods than addresses");
    };
    assert!(full.contains("10.244.1.0/29"), "{full}");
    let taken: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.v4()).collect();
    assert_eq!(taken.len(), pods.len());

    node.kill_daemon();
    let gone = pods.swap_remove(2);
    let output = gone.del();
    assert!(output.success(), "{output}");
    assert!(gone.del().success(), "DEL again");
    node.start_daemon();
    assert_eq!(node.add_pod("heir").v4(), gone.v4());
    assert!(node.try_add_pod("one too many").is_err());
}

#[test]
fn sigterm_ends_the_daemon_within_two_seconds_and_leaves_the_data_plane() {
    let lab = Lab::with_nodes(2);
    let node = lab.node(1);
    let (near, next) = (node.add_pod("near"), node.add_pod("next"));
    let (server, outside) = (next.serve(), lab.outside().serve());
    let stream = near.udp_stream(server.v4());
    stream.wait_echoes(5);
    let before = node.objects();
    let (exit, time) = node.stop_daemon();
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", node.log());
    assert!(time < Duration::from_secs(2), "{time:?}");
    stream.wait_echoes(20);
    assert_eq!(near.tcp_source(outside.v4()), node.v4());
    assert_eq!(node.objects(), before);
    let stream = stream.stop();
    assert_eq!(stream.answered, stream.sent, "{stream:?}");
    node.start_daemon();
    assert_eq!(node.status().reconcile.changes, 0, "{}", node.log());
}

#[test]
fn a_second_daemon_is_refused_with_the_first_ones_process_id() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let (before, pid) = (node.objects(), node.status().pid);
    let second = node.daemon_command().spawn();
    let exit = second.wait(DEADLINE);
    assert_ne!(exit.code, Some(0));
    let words = second.stderr();
    assert!(words.contains(&format!("another overlayd (process {pid})")), "{words}");
    assert_eq!(node.status().pid, pid);
    assert_eq!(node.objects(), before);
}

#[test]
fn a_daemon_waits_for_the_one_before_it() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let first = node.status().pid;
    let second = node.daemon_command().spawn();
    second.wait_stderr(|line| line.contains("waiting for another daemon"));
    let _ = node.stop_daemon();
    eventually("the second one serves", DEADLINE, || {
        node.try_status().is_ok_and(|status| status.ready && status.pid != first)
    });
    let pod = node.add_pod("pod");
    let server = pod.serve();
    assert!(node.tcp(server.v4()).ok);
    assert!(second.running());
}

#[test]
fn a_daemon_whose_port_is_taken_says_so_and_recovers_when_it_is_free() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    let thief = node.serve_on(8472);
    lab.node(2).start_daemon();
    node.launch_daemon(&[]);
    node.wait_log("ss -ulpn 'sport = :8472'");
    let refused = node.try_add_pod("early").unwrap_err().to_string();
    assert!(refused.contains("8472"), "{refused}");
    assert!(!node.status().ready);
    drop(thief);
    node.wait_ready();
    let (a, b) = (node.add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    assert_eq!(a.tcp_source(server.v4()), a.v4());
}

#[test]
fn twenty_crashes_at_random_moments_leave_a_sane_node() {
    let lab = Lab::with_nodes(2);
    let node = lab.node(1);
    let (near, far) = (node.add_pod("near"), lab.node(2).add_pod("far"));
    let server = far.serve();
    let stream = near.tcp_stream(server.v4());
    stream.wait_echoes(3);
    let (before, leases) = (node.objects(), await_leased(&node, 1));
    node.kill_daemon();
    for _ in 0..20 {
        node.launch_daemon(&[]);
        // The moment of the crash is the point: anywhere from before main to well in service.
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
        node.kill_daemon();
    }
    node.start_daemon();
    stream.wait_echoes(3);
    assert_eq!(node.objects(), before);
    assert_eq!(leased(&node), leases);
    let status = node.status();
    assert_eq!((status.reconcile.changes, status.reconcile.failed), (0, 0), "{}", node.log());
    let stream = stream.stop();
    assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{stream:?}");
    let fresh = node.add_pod("fresh");
    assert!(!leases.contains(&fresh.v4()));
    assert_eq!(fresh.tcp_source(server.v4()), fresh.v4());
}
