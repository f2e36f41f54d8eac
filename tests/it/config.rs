//! Configuration with the real binary: what wins, what is refused and how it is told, and that settings take effect.

use std::time::Duration;

use tests::node::NODES_FILE;
use tests::{Lab, Node, Output, Pod, eventually};

const SOON: Duration = Duration::from_secs(30);
const FILE: &str = "/run/lab/config.yaml";

/// What `overlayd run` says to these settings, which it must not accept.
fn refused(node: &Node, flags: &[&str], environment: &[(&str, &str)]) -> Output {
    let command = node.command("overlayd").arg("run").args(flags);
    let command = environment.iter().fold(command, |command, (key, value)| command.env(key, value));
    let output = command.output();
    assert_eq!(output.exit.code, Some(2), "{output}");
    assert!(output.stderr.lines().all(|line| line.starts_with("overlayd: ")), "{output}");
    output
}

/// The only complaint about these flags.
fn complaint(node: &Node, flags: &[&str]) -> String {
    let stderr = refused(node, flags, &[]).stderr;
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    node.write_file(FILE, "port: 5001\nvni: 7\nmtu: 1300\nworkers: 1\n");
    let daemon = node
        .daemon_command()
        .args(["--config", FILE, "--port", "5003"])
        .env("OVERLAYD_PORT", "5002")
        .env("OVERLAYD_VNI", "8")
        .spawn();
    eventually("the daemon is ready", SOON, || node.try_status().is_ok_and(|status| status.ready));
    let status = node.status();
    assert_eq!((status.port, status.vni, status.mtu, status.workers), (5003, 8, 1300, 1));
    assert_eq!(daemon.terminate(SOON).code, Some(0));
    // The file may be named by the environment as well.
    let daemon = node.daemon_command().env("OVERLAYD_CONFIG", FILE).spawn();
    eventually("the daemon is ready", SOON, || node.try_status().is_ok_and(|status| status.ready));
    let status = node.status();
    assert_eq!((status.port, status.vni, status.mtu, status.workers), (5001, 7, 1300, 1));
    drop(daemon);
}

#[test]
fn every_fault_is_told_at_once_with_its_key_and_its_source() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    node.write_file(FILE, "port: 70000\nvnj: 1\nspin: fast\nmtu: 1\n");
    let output =
        refused(&node, &["--config", FILE, "--workers", "none", "--mtu", "9"], &[("OVERLAYD_VNI", "0")]);
    let lines: Vec<&str> = output.stderr.lines().collect();
    let of_file = format!("(from file {FILE})");
    for (key, source) in [
        ("port", of_file.as_str()),
        ("vnj", &of_file),
        ("spin", &of_file),
        ("OVERLAYD_VNI", "(from environment)"),
        ("--workers", "(from command line)"),
        ("--mtu", "(from command line)"),
    ] {
        let start = format!("overlayd: {key} {source}: ");
        assert_eq!(lines.iter().filter(|line| line.starts_with(&start)).count(), 1, "{start:?} in {output}");
    }
    assert_eq!(lines.len(), 6, "{output}");
    assert!(output.stderr.contains("did you mean vni?"), "{output}");
    assert!(!node.has_file("/run/overlayd/lock"), "nothing was begun");
}

#[test]
fn unknown_names_are_refused_in_every_source() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let output = refused(&node, &[], &[("OVERLAYD_PROT", "8472")]);
    assert!(output.stderr.contains("OVERLAYD_PROT (from environment)"), "{output}");
    assert!(output.stderr.contains("did you mean OVERLAYD_PORT?"), "{output}");
    let output = node.command("overlayd").args(["run", "--prot", "1"]).output();
    assert!(output.exit.code == Some(2) && output.stderr.contains("'--prot'"), "{output}");
    let output = refused(&node, &["--config", "/run/lab/absent.yaml"], &[]);
    assert!(output.stderr.contains("/run/lab/absent.yaml"), "{output}");
    node.write_file(FILE, "port: [1\n");
    let output = refused(&node, &["--config", FILE], &[]);
    assert!(output.stderr.contains(&format!("(from file {FILE})")), "{output}");
}

#[test]
fn other_modes_are_refused_by_name() {
    let lab = Lab::builder().nodes(1).start();
    for mode in ["flat", "isolated"] {
        let line = complaint(&lab.node(1), &["--mode", mode]);
        assert!(
            line.contains("--mode (from command line)") && line.contains(&format!("{mode} mode")),
            "{line}"
        );
        assert!(line.contains("only island"), "{line}");
    }
}

#[test]
fn queues_that_could_eat_the_memory_are_refused_with_the_numbers() {
    let lab = Lab::builder().nodes(1).start();
    let line = complaint(&lab.node(1), &["--workers", "64", "--queue-length", "1000000"]);
    // 64 queues of a million packets of 64 KiB.
    for part in ["--queue-length", "64 workers", "1000000 packets", "4000000 MiB", "quarter"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn bad_cidrs_are_refused_with_what_would_be_right() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    for (cidr, hint) in [
        ("10.244.0.1/16", "10.244.0.0/16 is the network"),
        ("10.0.0.1", "write 10.0.0.1/32"),
        ("0.0.0.0/0", "every address"),
        ("10.244.0.0/33", "not a CIDR"),
        ("everything", "not a CIDR"),
    ] {
        let line = complaint(&node, &["--cluster-cidrs", cidr]);
        assert!(line.contains("--cluster-cidrs (from command line)") && line.contains(hint), "{line}");
    }
    let line = complaint(&node, &["--no-masquerade-cidrs", "fd00::/7,x,10.0.0.1/8"]);
    for part in ["fc00::/7", "\"x\"", "10.0.0.0/8"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

/// TCP each way, UDP, and many bytes, between a pod on each node.
fn assert_traffic(a: &Node, b: &Node) {
    let (one, two): (Pod, Pod) = (a.add_pod("one"), b.add_pod("two"));
    for (client, target) in [(&one, &two), (&two, &one)] {
        let server = target.serve();
        // Several flows: they spread over queues and source ports.
        for _ in 0..6 {
            assert_eq!(client.tcp_source(server.v4()), client.v4());
            assert_eq!(client.udp_source(server.v4()), client.v4());
        }
        let bulk = client.tcp_upload(server.v4(), 5_000_000);
        assert_eq!((bulk.bytes, &bulk.sent_sha256), (5_000_000, &bulk.received_sha256));
    }
}

#[test]
fn traffic_flows_with_every_tunnel_setting_changed() {
    let lab = Lab::builder().nodes(2).start();
    let (a, b) = (lab.node(1), lab.node(2));
    lab.start_daemons_with(&[
        "--vni",
        "4096",
        "--port",
        "4789",
        "--device",
        "tun7",
        "--workers",
        "2",
        "--queue-length",
        "500",
        "--spin",
        "0",
    ]);
    // 2 queues of 500 packets of 64 KiB.
    a.wait_log("queue_memory_mib=62");
    let sniffer = b.sniff("eth0");
    assert_traffic(&a, &b);
    let status = a.status();
    assert_eq!((status.device.as_str(), status.port, status.vni, status.workers), ("tun7", 4789, 4096, 2));
    let links = a.objects();
    assert!(
        links.iter().any(|line| line.starts_with("link tun7 ") && line.contains("qlen 500 ")),
        "{links:?}"
    );
    assert!(!links.iter().any(|line| line.starts_with("link ovl0 ")), "{links:?}");
    let tunnel: Vec<_> = sniffer
        .stop()
        .into_iter()
        .filter(|packet| {
            packet.protocol == 17 && packet.destination == Some(b.v4()) && packet.destination_port == 4789
        })
        .collect();
    assert!(!tunnel.is_empty());
    for packet in &tunnel {
        // IPv4 header, UDP header, then RFC 7348, section 5: flags, reserved, VNI, reserved.
        assert_eq!(packet.bytes[28..36], [8, 0, 0, 0, 0, 0x10, 0, 0], "VNI 4096");
    }
}

#[test]
fn nodes_with_other_numbers_of_workers_talk() {
    let lab = Lab::builder().nodes(2).start();
    let (a, b) = (lab.node(1), lab.node(2));
    a.start_daemon_with(&["--workers", "1"]);
    b.start_daemon_with(&["--workers", "4"]);
    assert_traffic(&a, &b);
    assert_eq!((a.status().workers, b.status().workers), (1, 4));
    // More and fewer queues on the same persistent device.
    a.stop_daemon();
    a.start_daemon_with(&["--workers", "3"]);
    b.stop_daemon();
    b.start_daemon_with(&["--workers", "1"]);
    assert_eq!((a.status().workers, b.status().workers), (3, 1));
    let pods = [a.add_pod("three"), b.add_pod("four")];
    let server = pods[1].serve();
    for _ in 0..6 {
        assert_eq!(pods[0].tcp_source(server.v4()), pods[0].v4());
    }
    assert!(a.has_file(NODES_FILE));
}
