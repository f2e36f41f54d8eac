//! What an operator sees: health, readiness, status, the end of the daemon, its log, and what it costs when idle.

#![expect(clippy::unwrap_used, reason = "what surprises a test's helper fails the test")]

use std::time::{Duration, Instant};

use overlayd::core::status::Status;
use tests::node::{ADMIN, NODES_FILE};
use tests::protocol::{NftChange, NftFamily};
use tests::{Lab, LinkState, Node, Output, eventually};

/// How long any state may take to come, on a machine that is busy with other labs.
const SOON: Duration = Duration::from_secs(30);

/// Waits until `/readyz` is red with a reason that holds all of these words, while `/healthz` is green.
fn await_red(node: &Node, words: &[&str]) {
    let mut last = String::new();
    eventually(&format!("/readyz says {words:?}"), SOON, || {
        let Ok(answer) = node.http(ADMIN, "/readyz") else { return false };
        last = format!("{} {}", answer.status, answer.body);
        answer.status == 503 && words.iter().all(|word| answer.body.contains(word))
    });
    assert_eq!(node.http(ADMIN, "/healthz").unwrap().status, 200, "alive though not ready: {last}");
    let status = node.status();
    assert!(!status.ready && status.not_ready_reasons.iter().any(|reason| reason.contains(words[0])));
    let text = node.overlayd(&["status"]).run();
    assert!(text.contains("NO: ") && text.contains(words[0]), "{text}");
}

fn assert_green(node: &Node) {
    node.wait_ready();
    for page in ["/healthz", "/readyz"] {
        let answer = node.http(ADMIN, page).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{page}");
    }
    assert!(node.status().ready && node.status().not_ready_reasons.is_empty());
}

/// `overlayd` with these arguments and the exit code that it must have.
fn overlayd(node: &Node, args: &[&str], code: i32) -> Output {
    let output = node.overlayd(args).output();
    assert_eq!(output.exit.code, Some(code), "overlayd {args:?}: {output}");
    output
}

#[test]
fn a_daemon_is_alive_but_not_ready_until_its_node_is_known() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    node.write_nodes(&[lab.node(2).manifest()]);
    node.launch_daemon(&[]);
    await_red(&node, &["node-1"]);
    node.write_nodes(&lab.manifests());
    assert_green(&node);
}

#[test]
fn a_daemon_whose_port_is_taken_is_not_ready_and_names_the_command_that_frees_it() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    node.add_vxlan("flannel.1", 1, 8472);
    node.launch_daemon(&[]);
    await_red(&node, &["8472", "ip link del flannel.1"]);
    assert!(node.status().last_error.is_some_and(|error| error.contains("8472")));
    node.delete_link("flannel.1");
    assert_green(&node);
}

#[test]
fn a_daemon_that_cannot_set_its_rules_is_not_ready_until_it_can() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let owner = node.own_nft_table("overlayd");
    node.launch_daemon(&[]);
    await_red(&node, &["kernel state"]);
    await_red(&node, &["times in a row"]);
    let told = node.log().matches("cannot set the kernel state").count();
    assert_eq!(told, 1, "the same failure is told once: {}", node.log());
    assert!(node.status().reconcile.failed > 0 && node.status().last_error.is_some());
    assert!(owner.running());
    drop(owner.finish());
    assert_green(&node);
}

#[test]
fn only_the_node_itself_can_ask_unless_told_otherwise() {
    let lab = Lab::with_nodes(2);
    let (node, other) = (lab.node(1), lab.node(2));
    let pod = node.add_pod("curious");
    let at = |address| (address, ADMIN.port()).into();
    assert!(node.http(ADMIN, "/metrics").is_ok());
    assert!(other.http(at(node.v4()), "/metrics").is_err());
    for address in [node.v4(), node.tunnel_addresses()[0]] {
        assert!(pod.http(at(address), "/metrics").is_err());
    }
    other.stop_daemon();
    other.start_daemon_with(&["--admin-listen", "0.0.0.0:9472"]);
    assert_eq!(node.http(at(other.v4()), "/metrics").unwrap().status, 200);
}

#[test]
fn an_admin_port_that_is_taken_costs_no_packet() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let squatter = node.serve_on(ADMIN.port());
    node.launch_daemon(&[]);
    node.wait_log("cannot listen on admin_listen");
    eventually("the daemon is ready", SOON, || node.try_status().is_ok_and(|status| status.ready));
    drop(squatter);
    node.wait_log("health, readiness and metrics are served");
    assert_green(&node);
}

#[test]
fn status_shows_peers_leases_and_what_stands_in_the_way() {
    let lab = Lab::builder().nodes(2).start();
    let (node, other) = (lab.node(1), lab.node(2));
    let silent: Status = {
        lab.start_daemons();
        node.status()
    };
    assert_eq!(
        (silent.peers[0].tx_packets, silent.peers[0].tx_age_ms, silent.peers[0].rx_age_ms),
        (0, None, None)
    );
    let (one, two) = (node.add_pod("one"), other.add_pod("two"));
    let server = two.serve();
    assert_eq!(one.tcp_source(server.v4()), one.v4());
    node.nft(NftChange::AddForwardDrop {
        family: NftFamily::Ip,
        table: "filter".into(),
        chain: "FORWARD".into(),
    });
    eventually("traffic, lease and conflict are in the status", SOON, || {
        let status = node.status();
        !status.leases.is_empty() && !status.conflicts.is_empty() && status.peers[0].rx_packets > 0
    });

    let status = node.status();
    assert_eq!((status.node.as_str(), status.mode.as_str()), ("node-1", "island"));
    assert_eq!((status.mtu, status.port, status.vni), (1450, 8472, 1));
    assert_eq!(status.underlay, [node.v4().to_string()]);
    assert_eq!(status.pod_cidrs, [node.pod_cidrs()[0].to_string()]);
    let [peer] = status.peers.as_slice() else { panic!("{:?}", status.peers) };
    assert_eq!((peer.name.as_str(), peer.mtu, &peer.trouble), ("node-2", 1450, &None));
    assert_eq!(peer.underlay, [other.v4().to_string()]);
    assert!(peer.tx_packets >= 3 && peer.tx_bytes > 3 * 20 && peer.rx_bytes > 3 * 20, "{peer:?}");
    assert!(peer.tx_age_ms.is_some() && peer.rx_age_ms.is_some(), "{peer:?}");
    let [lease] = status.leases.as_slice() else { panic!("{:?}", status.leases) };
    assert_eq!((&lease.veth, lease.container.as_str()), (&one.host_link(), one.container_id()));
    assert_eq!(lease.addresses, [one.v4().to_string()]);
    assert!(status.conflicts[0].object.contains("FORWARD"), "{:?}", status.conflicts);

    let text = overlayd(&node, &["status"], 0).stdout;
    let conflict = &status.conflicts[0];
    let version = format!("node-1 (overlayd {}, process {})", status.version, status.pid);
    for part in [
        &version,
        "Ready      yes",
        "ovl0, MTU 1450",
        "node-2",
        &peer.underlay[0],
        &lease.addresses[0],
        &lease.veth,
        &conflict.object,
        &conflict.remedy,
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn a_peer_that_cannot_answer_is_told_in_words() {
    let lab = Lab::with_nodes(2);
    let (node, other) = (lab.node(1), lab.node(2));
    let (one, two) = (node.add_pod("one"), other.add_pod("two"));
    let server = two.serve();
    assert_eq!(one.udp_source(server.v4()), one.v4());
    assert!(node.status().peers[0].trouble.is_none());
    // What a firewall in one direction does: all that node-2 sends to node-1 goes nowhere.
    other.sysctl("net/ipv4/conf/all/rp_filter", "0");
    other.sysctl("net/ipv4/conf/eth0/rp_filter", "0");
    other.add_link_route(format!("{}/32", node.v4()).parse().unwrap(), "lo");
    let asker = one.udp_stream(server.v4());
    let mut words = None;
    eventually("the silent direction is named", SOON, || {
        words = node.status().peers[0].trouble.clone();
        words.is_some()
    });
    let words = words.unwrap();
    let question = format!("is UDP 8472 from {} blocked on the way?", other.v4());
    assert!(words.starts_with("tx ") && words.contains("nothing received for"), "{words}");
    assert!(words.ends_with(&question), "{words}");
    assert!(overlayd(&node, &["status"], 0).stdout.contains("! node-2: tx "));
    other.delete_route(format!("{}/32", node.v4()).parse().unwrap());
    eventually("the trouble is over", SOON, || node.status().peers[0].trouble.is_none());
    let _ = asker.stop();
}

#[test]
fn status_of_a_daemon_that_hangs_names_its_process_and_what_the_kernel_holds() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pod = node.add_pod("one");
    let pid = node.status().pid;
    node.signal_daemon(libc::SIGSTOP);
    let begin = Instant::now();
    let output = overlayd(&node, &["status"], 3);
    let took = begin.elapsed();
    println!("status of a stopped daemon took {took:?}");
    // It promises a second; the rest is for a machine that runs other labs.
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(output.stderr.contains(&format!("process {pid} but does not answer")), "{output}");
    for part in ["ovl0, MTU 1450, up", &pod.v4().to_string(), &pod.host_link(), pod.container_id()] {
        assert!(output.stdout.contains(part), "{part:?} is not in {output}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&overlayd(&node, &["status", "-o", "json"], 3).stdout).unwrap();
    assert_eq!((&json["daemon_pid"], &json["daemon_runs"]), (&pid.into(), &true.into()), "{json}");
    node.signal_daemon(libc::SIGCONT);
    overlayd(&node, &["status"], 0);
}

#[test]
fn status_without_a_daemon_says_so_and_shows_what_it_left() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let output = overlayd(&node, &["status"], 3);
    assert!(output.stderr.contains("overlayd does not run here"), "{output}");
    assert!(output.stdout.contains("no device ovl0"), "{output}");
    node.start_daemon();
    let pod = node.add_pod("one");
    node.kill_daemon();
    let output = overlayd(&node, &["status"], 3);
    assert!(output.stderr.contains("overlayd does not run here"), "{output}");
    for part in ["ovl0, MTU 1450, up", "nft table  present", &pod.host_link()] {
        assert!(output.stdout.contains(part), "{part:?} is not in {output}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&overlayd(&node, &["status", "-o", "json"], 3).stdout).unwrap();
    assert_eq!(json["daemon_runs"], false, "{json}");
    assert_eq!(json["kernel"]["pods"][0]["veth"], pod.host_link(), "{json}");
}

#[test]
fn exit_codes_are_those_of_the_usage_text() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let usage = overlayd(&node, &["--help"], 0).stdout;
    assert!(usage.contains("0 done; 1 failed; 2 wrong command line or configuration; 3 `status`"), "{usage}");
    assert!(overlayd(&node, &["version"], 0).stdout.starts_with("overlayd "));
    overlayd(&node, &["status", "--no-such-flag"], 2);
    overlayd(&node, &["dance"], 2);
    overlayd(&node, &["run", "--port", "0"], 2);
    overlayd(&node, &["run", "--log", "=/="], 1);
    // A broken file keeps nobody from looking, and is told.
    node.write_file("/run/lab/bad.yaml", "port: x\n");
    let output = overlayd(&node, &["status", "--config", "/run/lab/bad.yaml"], 3);
    assert!(output.stderr.contains("port (from file /run/lab/bad.yaml)"), "{output}");
}

#[test]
fn a_daemon_ends_soon_and_leaves_everything_standing() {
    let lab = Lab::with_nodes(2);
    let node = lab.node(1);
    let (one, two) = (node.add_pod("one"), node.add_pod("two"));
    let outside = lab.outside().serve();
    let server = two.serve();
    let stream = one.tcp_stream(server.v4());
    let before = node.objects();
    // A client that never goes away must not hold it up.
    let lingerer = node.command("lab-agent").args(["tcp-stream", &ADMIN.to_string(), "10", "20000"]).spawn();
    lingerer.wait_stdout(|line| line == "streaming");
    let (exit, took) = node.stop_daemon();
    println!("the daemon took {took:?} to end");
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    stream.wait_echoes(10);
    assert_eq!(stream.stop().error, None);
    assert_eq!(one.tcp_source(outside.v4()), node.v4(), "egress goes on");
    assert!(node.tcp(server.v4()).ok, "probes go on");
    assert_eq!(node.objects(), before);
    for socket in ["admin.sock", "cni.sock"] {
        let listing = node.command("lab-agent").args(["cat", &format!("/run/overlayd/{socket}")]).output();
        assert!(listing.stderr.contains("No such file"), "{socket}: {listing}");
    }
    node.restart_daemon();
    eventually("nothing was changed by the new one", SOON, || node.objects() == before);
    assert_eq!(node.status().reconcile.changes, 0, "{}", node.log());
}

#[test]
fn a_json_log_is_one_object_a_line() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    let mut liar = lab.node(2).manifest();
    liar.internal_ips = vec!["127.0.0.1".parse().unwrap()];
    node.write_nodes(&[node.manifest(), liar]);
    node.start_daemon_with(&["--log-format", "json", "--log", "debug"]);
    let _pod = node.add_pod("one");
    node.stop_daemon();
    let log = node.log();
    let mut messages = Vec::new();
    for line in log.lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(entry[field].is_string(), "no {field} in {line}");
        }
        messages.push(entry);
    }
    let refused =
        messages.iter().find(|entry| entry["message"] == "node refused").expect("a refusal is logged");
    assert_eq!((&refused["node"], &refused["level"]), (&"node-2".into(), &"WARN".into()), "{refused}");
    assert!(messages.iter().any(|entry| entry["message"] == "ready"), "{log}");
}

#[test]
fn a_steady_daemon_writes_no_log_and_changes_nothing() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    // Standing troubles are told once: a conflict and a refused node.
    node.nft(NftChange::AddForwardDrop {
        family: NftFamily::Ip,
        table: "filter".into(),
        chain: "FORWARD".into(),
    });
    let mut liar = lab.node(2).manifest();
    liar.internal_ips = vec!["127.0.0.1".parse().unwrap()];
    node.write_nodes(&[node.manifest(), liar]);
    node.start_daemon();
    let _pod = node.add_pod("one");
    eventually("the daemon has come to rest", SOON, || {
        let status = node.status();
        status.ready && status.leases.first().is_some_and(|lease| !lease.veth.is_empty())
    });
    let mut round = 0;
    let mut provoke = || {
        // Foreign changes, each of which makes it look.
        let done = node.status().reconcile.succeeded;
        round += 1;
        node.set_link_state("eth0", if round % 2 == 1 { LinkState::Down } else { LinkState::Up });
        eventually("another round", SOON, || node.status().reconcile.succeeded > done);
    };
    // One pair aside: what the link's end takes with it is told.
    provoke();
    provoke();
    let (log, changes) = (node.log(), node.status().reconcile.changes);
    let failed = node.status().reconcile.failed;
    for _ in 0..4 {
        let done = node.status().reconcile.succeeded;
        node.add_address("lo", format!("198.18.0.{}/32", round + 1).parse().unwrap());
        round += 1;
        eventually("another round", SOON, || node.status().reconcile.succeeded > done);
    }
    assert_eq!(node.log(), log, "something repeats itself");
    let status = node.status();
    assert_eq!((status.reconcile.changes, status.reconcile.failed), (changes, failed));
}

#[test]
fn an_idle_daemon_costs_next_to_nothing() {
    let lab = Lab::with_nodes(2);
    let node = lab.node(1);
    let status = node.status();
    let pid = status.pid;
    let ticks = || -> u64 {
        let stat = node.read_file(&format!("/proc/{pid}/stat"));
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // utime and stime are fields 14 and 15 (man 5 proc); the first after the name is 3.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let objects = node.objects();
    eventually("the start is over", SOON, || {
        let before = ticks();
        std::thread::sleep(Duration::from_millis(300));
        ticks() - before <= 1
    });
    let (before, changes, begin) = (ticks(), node.status().reconcile.changes, Instant::now());
    // The time over which it is measured, not a wait.
    std::thread::sleep(Duration::from_secs(3));
    let (used, elapsed) = (ticks() - before, begin.elapsed());
    let memory = node.read_file(&format!("/proc/{pid}/status"));
    let memory = memory.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned();
    println!("idle: {used} ticks of 10 ms in {elapsed:?}; {memory}");
    // 2 %, where 0.2 % is usual: a spinning worker would take 100 %.
    assert!(used as f64 / 100.0 <= elapsed.as_secs_f64() * 0.02, "{used} ticks in {elapsed:?}");
    assert_eq!(node.status().reconcile.changes, changes);
    assert_eq!(node.objects(), objects);
    assert!(node.has_file(NODES_FILE));
}
