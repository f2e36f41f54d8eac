//! The plugin under fire: many calls at once, full pools, kills, floods of its daemon's socket, neighbours of another version.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tests::kills::{Plan, run};
use tests::node::RUN_DIR;
use tests::{Cni, Lab, Node, Output, Pod, eventually};

const SOON: Duration = Duration::from_secs(20);

/// For tests of many processes, on machines that have little else to do and on those that have.
const LONG: Duration = Duration::from_secs(400);

#[track_caller]
fn done(output: &Output) {
    assert!(output.success() && output.stdout.is_empty(), "{output}");
}

#[track_caller]
fn refusal(output: &Output) -> (u64, String) {
    assert_eq!(output.exit.code, Some(1), "{output}");
    let document: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output}"));
    (document["code"].as_u64().unwrap(), document["msg"].as_str().unwrap().to_owned())
}

/// One node with this pod CIDR, its daemon running.
fn small_pool(cidr: &str) -> Lab {
    let lab = Lab::builder().nodes(1).deadline(LONG).start();
    let mut manifests = lab.manifests();
    manifests[0].pod_cidrs = vec![cidr.parse().unwrap()];
    lab.write_nodes(&manifests);
    lab.start_daemons();
    lab
}

/// That the node has no pod's link, route or lease.
#[track_caller]
fn assert_empty(node: &Node) {
    let seen = node.observe();
    assert_eq!(seen.links_named("ovp"), Vec::<&str>::new());
    let routed = |route: &&tests::observe::ObservedRoute| {
        route.link.as_deref().is_some_and(|link| link.starts_with("ovp"))
    };
    assert_eq!(seen.routes.iter().filter(routed).count(), 0);
    eventually("every lease ends", SOON, || node.status().leases.is_empty());
}

#[test]
fn two_hundred_adds_at_once_give_distinct_addresses_that_all_work() {
    let lab = Lab::builder().nodes(1).deadline(LONG).start();
    lab.start_daemons();
    let node = lab.node(1);
    let pods: Vec<Pod> = thread::scope(|scope| {
        let adding: Vec<_> = (0..200)
            .map(|number| {
                let node = &node;
                scope.spawn(move || node.add_pod(&format!("pod-{number}")))
            })
            .collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let addresses: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.v4()).collect();
    assert_eq!(addresses.len(), 200);
    for pod in &pods {
        assert_eq!(node.ping(pod.v4(), 56, 1).answered, 1, "{}", pod.v4());
    }
    let target = pods[0].serve();
    for pod in pods.iter().step_by(33) {
        assert_eq!(pod.tcp_source(target.v4()), pod.v4());
    }
    eventually("the daemon sees all leases", SOON, || node.status().leases.len() == 200);
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| done(&pod.del()));
        }
    });
    assert_empty(&node);
}

/// Adds and deletes one container; its address.
fn cycle(node: &Node) -> IpAddr {
    let pod = node.add_pod("cycled");
    let address = pod.v4();
    done(&pod.del());
    address
}

#[test]
fn a_thousand_cycles_on_a_slash_28_leak_nothing_and_reuse_late() {
    let lab = small_pool("10.244.1.0/28");
    let node = lab.node(1);
    let seen: Vec<IpAddr> = thread::scope(|scope| {
        let hands: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..225).map(|_| cycle(&node)).collect::<Vec<_>>())).collect();
        hands.into_iter().flat_map(|hand| hand.join().unwrap()).collect()
    });
    let mut last: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for turn in 0..100 {
        let address = cycle(&node);
        if let Some(earlier) = last.insert(address, turn) {
            // The other 13 of 14 come first.
            assert!(turn - earlier >= 14, "{address} again after {} others", turn - earlier);
        }
    }
    let usable: BTreeSet<IpAddr> = (1..=14).map(|host| IpAddr::from([10, 244, 1, host])).collect();
    assert_eq!(seen.len(), 900);
    assert_eq!(seen.into_iter().chain(last.into_keys()).collect::<BTreeSet<_>>(), usable);
    assert_empty(&node);
    // All of them are there to be given.
    let pods: Vec<Pod> = (0..14).map(|_| node.add_pod("all")).collect();
    assert_eq!(pods.iter().map(|pod| pod.v4()).collect::<BTreeSet<_>>(), usable);
    assert!(node.try_add_pod("one too many").unwrap_err().to_string().contains("10.244.1.0/28"));
}

#[test]
fn five_hundred_kills_of_plugin_and_daemon_break_no_law() {
    let lab = Lab::builder().nodes(1).deadline(LONG).start();
    lab.start_daemons();
    let plan = Plan { kills: 500, seed: fastrand::u64(..1 << 32), runtime_returns: true };
    match run(&lab.node(1), plan, |_| {}) {
        Ok(figures) => assert!(figures.kills() >= 500, "{figures}"),
        Err(error) => panic!("{error:#}"),
    }
}

#[test]
fn a_veth_that_goes_before_the_daemon_looks_frees_its_address() {
    let lab = small_pool("10.244.1.0/30");
    let node = lab.node(1);
    for _ in 0..10 {
        // Both addresses, and no DEL: the links live for less than a burst of notifications.
        let pods: Vec<Cni> = (0..2).map(|_| node.add_pod("short").cni()).collect();
        for cni in &pods {
            cni.remove_netns();
        }
        eventually("both addresses are free again", SOON, || node.status().leases.is_empty());
    }
}

#[test]
fn thousands_of_connections_do_not_starve_an_add() {
    let lab = Lab::builder().nodes(1).deadline(LONG).start();
    lab.start_daemons();
    let node = lab.node(1);
    let socket = format!("{RUN_DIR}/cni.sock");
    for bytes in [&b""[..], b"\x01", b"GET / HTTP/1.1\r\nHost: overlayd\r\n\r\n"] {
        let crowds: Vec<_> = (0..3).map(|_| node.loiter(&socket, 1000, bytes)).collect();
        let pod = node.add_pod("in the crowd");
        assert_eq!(node.ping(pod.v4(), 56, 1).answered, 1);
        done(&pod.check());
        done(&pod.del());
        for crowd in crowds {
            let output = crowd.finish();
            assert!(output.success(), "{output}");
        }
    }
    assert!(node.daemon_runs());
}

/// The plugin and the daemon, each of which sees the other through a relay that changes the frames' version.
fn skewed(node: &Node, by: i8, unknown: Option<u8>) -> (tests::Process, Cni) {
    let path = format!("/run/skew{by}.sock");
    let relay = node
        .command("lab-agent")
        .args(["skew", &path, &format!("{RUN_DIR}/cni.sock"), &format!("--by={by}")])
        .args(unknown.map(|kind| format!("--unknown={kind}")))
        .spawn();
    relay.wait_stdout(|line| line == "relaying");
    let mut cni = Cni::prepare(node, "skewed").unwrap();
    cni.config["cniVersion"] = json!("1.1.0");
    cni.config["socket"] = json!(path);
    (relay, cni)
}

#[test]
fn a_neighbour_one_version_older_or_newer_is_served() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    for by in [-1, 1] {
        let (_relay, mut cni) = skewed(&node, by, None);
        let output = cni.call("ADD");
        assert!(output.success(), "{by}: {output}");
        let result: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(node.ping(cni.inside(&result).v4(), 56, 1).answered, 1);
        cni.previous = Some(result);
        for verb in ["CHECK", "STATUS", "DEL"] {
            done(&cni.call(verb));
        }
    }
}

/// What a plugin of the next version may ask, or ours of a daemon of the last one.
#[test]
fn a_question_that_the_neighbour_does_not_know_is_refused_by_name() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    // Status is the fourth request.
    let (_relay, cni) = skewed(&node, -1, Some(4));
    let (code, message) = refusal(&cni.call("STATUS"));
    assert!(code == 50 && message.contains("older than its plugin"), "{code} {message}");
    // What both know goes on.
    let output = cni.call("ADD");
    assert!(output.success(), "{output}");
    done(&cni.call("DEL"));
    assert!(node.daemon_runs());
}

#[test]
fn a_neighbour_two_versions_away_is_refused_by_name_and_its_pods_can_go() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pod = node.add_pod("pod");
    for by in [2, 100] {
        let (_relay, cni) = skewed(&node, by, None);
        let (code, message) = refusal(&cni.call("ADD"));
        assert!(code == 102 && message.contains("version"), "{code} {message}");
        let mut skewed_pod = pod.cni();
        skewed_pod.config["socket"] = cni.config["socket"].clone();
        done(&skewed_pod.call("DEL"));
        assert_eq!(node.observe().link(&pod.host_link()), None);
    }
    assert_empty(&node);
}

/// Without room for another thread's stack nothing can be done, and still there is an answer.
#[test]
fn a_plugin_without_memory_or_threads_still_answers_with_an_error() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let shim = tests::binaries::Binaries::build().unwrap().cni_shim();
    let mut answered = 0;
    // From too little to load the program to more than it needs, in KiB of address space.
    for limit in (1..=20).map(|step| step * 1024) {
        let cni = Cni::prepare(&node, "starved").unwrap();
        let script = format!("ulimit -v {limit}; exec {}", shim.display());
        let mut command = node.command("/bin/sh").args(["-c", &script]).stdin("nonsense");
        for (name, value) in cni.environment("ADD") {
            command = command.env(name, value);
        }
        let output = command.output();
        assert!(!output.success(), "{limit}: {output}");
        // 127: the loader had no room. By a signal: no room for the answer either.
        if matches!(output.exit.code, Some(127) | None) {
            continue;
        }
        let (code, message) = refusal(&output);
        assert!([5, 6, 11, 999].contains(&code) && !message.is_empty(), "{limit}: {output}");
        answered += u32::from(code != 6);
    }
    assert!(answered > 0, "no limit was too small for a thread");
}

#[test]
fn a_plugin_without_descriptors_still_answers_with_an_error_and_leaves_nothing() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let shim = tests::binaries::Binaries::build().unwrap().cni_shim();
    let (mut refused, mut served) = (0, 0);
    for limit in 3..=16 {
        let cni = Cni::prepare(&node, "starved").unwrap();
        let script = format!("ulimit -n {limit}; exec {}", shim.display());
        let mut command = node.command("/bin/sh").args(["-c", &script]).stdin(cni.stdin("ADD"));
        for (name, value) in cni.environment("ADD") {
            command = command.env(name, value);
        }
        let output = command.output();
        // 127: the loader could not open the libraries.
        if output.exit.code == Some(127) {
            continue;
        }
        if output.success() {
            served += 1;
            done(&cni.call("DEL"));
            continue;
        }
        let (code, message) = refusal(&output);
        assert!(code < 999 && message.contains("Too many open files"), "{limit}: {output}");
        refused += 1;
        assert_eq!(node.observe().link(&cni.host_link()), None, "{limit}: {output}");
    }
    assert!(refused > 0 && served > 0, "{refused} refused, {served} served");
    assert_empty(&node);
}
