//! The lab itself: that it is what its tests take it for. No daemon runs here.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::{Families, Harm, Lab, LinkState, Offloads, eventually};

#[test]
fn nodes_reach_each_other_and_the_outside() {
    let lab = Lab::builder().nodes(2).underlay(Families::Dual).start();
    let (a, b) = (lab.node(1), lab.node(2));
    let server = b.serve();
    assert_eq!(a.tcp_source(server.v4()), a.v4());
    assert_eq!(a.udp_source(server.v4()), a.v4());
    assert_eq!(a.tcp_source(server.v6()), a.v6());
    assert_eq!(a.udp_source(server.v6()), a.v6());
    let outside = lab.outside().serve();
    assert_eq!(b.tcp_source(outside.v4()), b.v4());
    assert_eq!(b.tcp_source(outside.v6()), b.v6());
    for target in [outside.v4(), outside.v6()] {
        assert_eq!(a.ping(target.ip(), 64, 3).answered, 3);
    }
}

#[test]
fn a_node_has_its_own_run_directory_host_name_and_links() {
    let lab = Lab::builder().nodes(2).start();
    let (a, b) = (lab.node(1), lab.node(2));
    a.write_file("/run/here", "a");
    assert_eq!(a.read_file("/run/here"), "a");
    assert!(!b.has_file("/run/here") && !Path::new("/run/here").exists());
    assert_eq!(a.read_file("/proc/sys/kernel/hostname").trim(), "node-1");
    a.set_link_state("eth0", LinkState::Down);
    let server = b.serve();
    assert!(!a.tcp(server.v4()).ok);
    assert!(b.has_file("/sys/class/net/eth0/address") && !b.has_file("/sys/class/net/br0/address"));
}

#[test]
fn many_bytes_arrive_as_they_were_sent() {
    let lab = Lab::builder().nodes(2).start();
    let server = lab.node(2).serve();
    for bulk in
        [lab.node(1).tcp_upload(server.v4(), 20_000_000), lab.node(1).tcp_download(server.v4(), 20_000_000)]
    {
        assert_eq!(bulk.bytes, 20_000_000);
        assert_eq!(bulk.sent_sha256, bulk.received_sha256);
    }
}

#[test]
fn a_relay_harms_frames_and_says_how_many() {
    let harm = Harm { drop_percent: 2.0, duplicate_percent: 2.0, reorder_percent: 2.0, seed: 1 };
    let mut lab = Lab::builder().nodes(1).node(|spec| spec.harm(harm)).start();
    let server = lab.node(2).serve();
    let flood = lab.node(1).udp_flood(server.v4(), 200, 2_000, 20_000).unwrap();
    assert!(flood.received < 2_040 && flood.reordered > 0, "{flood:?}");
    let bulk = lab.node(1).tcp_upload(server.v4(), 2_000_000);
    assert_eq!(bulk.sent_sha256, bulk.received_sha256);
    let counters = lab.stop_relays()[0];
    assert!(counters.dropped > 0 && counters.duplicated > 0 && counters.reordered > 0, "{counters:?}");
}

#[test]
fn a_narrow_router_answers_with_icmp() {
    let lab = Lab::builder().nodes(1).node(tests::NodeSpec::behind_router).router_mtu(1400).start();
    let server = lab.node(2).serve();
    let fits = lab.node(1).udp_df(server.v4(), 1400 - 28);
    assert_eq!((fits.answered, fits.icmp.len()), (1, 0), "{fits:?}");
    let too_big = lab.node(1).udp_df(server.v4(), 1400 - 27);
    assert_eq!(too_big.answered, 0);
    assert_eq!(too_big.icmp.first().and_then(|icmp| icmp.mtu), Some(1400), "{too_big:?}");
}

#[test]
fn a_wire_like_uplink_segments_before_the_wire() {
    let lab = Lab::builder().node(|spec| spec.offloads(Offloads::Wire)).nodes(1).start();
    let server = lab.node(2).serve();
    let sniffer = lab.root().sniff("n1");
    let _ = lab.node(1).tcp_upload(server.v4(), 1_000_000);
    let longest = sniffer.stop().iter().filter(|packet| packet.incoming).map(|packet| packet.length).max();
    assert_eq!(longest, Some(1500));
}

#[test]
fn crafted_packets_arrive_with_the_source_they_name() {
    let lab = Lab::builder().nodes(2).start();
    let (a, b) = (lab.node(1), lab.node(2));
    let sniffer = b.sniff("eth0");
    let spoofed = "192.0.2.99:4789".parse().unwrap();
    a.inject_udp(spoofed, (b.v4(), 8472).into(), b"hello");
    let mut seen = Vec::new();
    eventually("the packet is delivered", Duration::from_secs(5), || a.ping(b.v4(), 64, 1).answered == 1);
    seen.extend(sniffer.stop().into_iter().filter(|packet| packet.source == Some(spoofed.ip())));
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].source_port, seen[0].destination_port), (4789, 8472));
}

#[test]
fn a_process_that_is_dropped_is_killed() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let server = node.serve();
    let address = server.v4();
    assert!(node.tcp(address).ok);
    drop(server);
    eventually("the server is gone", Duration::from_secs(5), || !node.tcp(address).ok);
}

/// Set in the process that plays the victim below.
const VICTIM: &str = "LAB_TEST_VICTIM";

fn be_the_victim() {
    let lab = Lab::builder().nodes(1).deadline(Duration::from_secs(30)).start();
    let server = lab.node(1).serve();
    println!("victim is ready");
    server.process().wait(Duration::from_secs(30));
}

#[test]
fn a_killed_test_leaves_nothing_behind() {
    if std::env::var_os(VICTIM).is_some() {
        return be_the_victim();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lab::a_killed_test_leaves_nothing_behind", "--nocapture", "--test-threads=1"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("victim is ready")));
    let below = descendants(child.id());
    assert!(below.len() >= 4, "holder, process 1, server and tool, but found {below:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("every process of the lab is gone", Duration::from_secs(5), || {
        below.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
}

/// All processes below this one.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|word| word.parse().ok()) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
}
