//! TCP super-packets leave whole where the uplink cuts them up, and nowhere else; nothing is lost when that changes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::stream::{move_both_ways, two_pods};
use tests::{Families, Lab, Node, Offloads, Pod, eventually};

/// Bytes of a transfer.
const BULK: u64 = 30_000_000;

const DEADLINE: Duration = Duration::from_secs(20);

/// The device that super-packets leave by.
const TAP: &str = "ovl0-tso";

/// What a veth can do, and a wire cannot.
const FEATURES: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];

const NO_UPLINK: &str =
    "off: no uplink is a veth with tx-udp_tnl-segmentation and tx-udp_tnl-csum-segmentation (ethtool -k)";

/// Bytes that this node's daemon has written to the device, if it is there.
fn written(node: &Node) -> Option<u64> {
    let statistics = node.read_file("/proc/net/dev");
    let line = statistics.lines().find_map(|line| line.trim_start().strip_prefix(TAP)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn left_whole(node: &Node) -> u64 {
    written(node).unwrap()
}

#[track_caller]
fn wait_state(node: &Node, state: &str) {
    eventually(&format!("tunnel_gso is {state}"), DEADLINE, || node.status().offloads["tunnel_gso"] == state);
}

#[track_caller]
fn passes(client: &Pod, server: SocketAddr) {
    move_both_ways(client, server, BULK);
}

/// Dual-stack pods.
fn pods_over(underlay: Families, offloads: Offloads) -> (Lab, Pod, Pod) {
    two_pods(Families::Dual, underlay, |spec| spec.offloads(offloads))
}

/// Both families, both ways.
fn leave_whole_over(underlay: Families) {
    let (lab, near, far) = pods_over(underlay, Offloads::Veth);
    let server = far.serve();
    for node in lab.nodes() {
        wait_state(node, "on");
    }
    passes(&near, server.v4());
    passes(&near, server.v6());
    for node in lab.nodes() {
        // All but the few segments that stand alone, twice.
        assert!(left_whole(node) > 2 * BULK * 9 / 10, "{} bytes left whole", left_whole(node));
        // Of the kernel's own multicast some comes to every device.
        let unexpected = |(reason, count): &(String, u64)| *count > 0 && reason != "egress_not_unicast";
        let drops: Vec<_> = node.status().drops.into_iter().filter(unexpected).collect();
        assert_eq!(drops, []);
    }
}

#[test]
fn streams_leave_whole_over_ipv4() {
    leave_whole_over(Families::V4);
}

#[test]
fn streams_leave_whole_over_ipv6() {
    leave_whole_over(Families::V6);
}

#[test]
fn over_a_wire_all_are_cut_up_by_us() {
    let (lab, near, far) = pods_over(Families::V4, Offloads::Wire);
    let server = far.serve();
    passes(&near, server.v4());
    let node = lab.node(1);
    wait_state(&node, NO_UPLINK);
    assert_eq!(left_whole(&node), 0);
    assert!(node.overlayd(&["status"]).run().contains(NO_UPLINK));
}

#[test]
fn an_uplink_that_changes_its_mind_breaks_no_stream() {
    let (lab, near, far) = pods_over(Families::V4, Offloads::Veth);
    let (node, server) = (lab.node(1), far.serve());
    wait_state(&node, "on");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let streams = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                passes(&near, server.v4());
            }
        });
        for _ in 0..3 {
            for (on, state) in [(false, NO_UPLINK), (true, "on")] {
                node.set_offloads("eth0", &FEATURES.map(|feature| (feature, on)));
                wait_state(&node, state);
            }
        }
        done.store(true, Ordering::Relaxed);
        streams.join().unwrap();
    });
    let before = left_whole(&node);
    passes(&near, server.v4());
    assert!(left_whole(&node) > before + BULK * 9 / 10);
}

#[test]
fn a_deleted_device_comes_back_and_costs_no_byte() {
    let (lab, near, far) = pods_over(Families::V4, Offloads::Veth);
    let (node, server) = (lab.node(1), far.serve());
    wait_state(&node, "on");
    node.delete_link(TAP);
    passes(&near, server.v4());
    eventually("super-packets leave whole again", DEADLINE, || {
        passes(&near, server.v4());
        written(&node).is_some_and(|bytes| bytes > BULK * 9 / 10)
    });
}

/// Nothing of it outlives the daemon, and who does not want it has none.
#[test]
fn without_a_daemon_or_by_configuration_there_is_none() {
    let (lab, near, far) = pods_over(Families::V4, Offloads::Veth);
    let (node, server) = (lab.node(1), far.serve());
    wait_state(&node, "on");
    let _ = node.stop_daemon();
    assert_eq!(written(&node), None);
    node.start_daemon_with(&["--tunnel-gso", "never"]);
    passes(&near, server.v4());
    assert_eq!(node.status().offloads["tunnel_gso"], "off: by configuration");
    assert_eq!(written(&node), None);
}
