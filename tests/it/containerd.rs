//! Real sandboxes: containerd and runc call the installed plugin, as they do on every node, and things go wrong in between.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::eventually;
use tests::runtime::{Release, Rig, Sandbox};

const SOON: Duration = Duration::from_secs(30);
const NONE: [&str; 0] = [];

/// That no attachment has left anything, and the daemon knows it.
#[track_caller]
fn assert_empty(rig: &Rig) {
    assert_eq!(rig.sandboxes(), NONE);
    assert_eq!(rig.traces(), NONE);
    eventually("every lease ends", SOON, || rig.node().status().leases.is_empty());
}

#[track_caller]
fn assert_reachable(rig: &Rig, sandbox: &Sandbox) {
    assert_eq!(rig.node().ping(sandbox.v4(), 56, 1).answered, 1, "{}", sandbox.v4());
}

fn cycle_sandboxes(release: Release) {
    let rig = Rig::start(release);
    rig.start_daemon();
    let cycle = |number: usize| {
        let sandbox = rig.run(&format!("pod-{number}")).unwrap();
        assert_reachable(&rig, &sandbox);
        rig.end(&sandbox);
        sandbox.v4()
    };
    let given: Vec<IpAddr> = thread::scope(|scope| {
        let hands: Vec<_> = (0..4)
            .map(|hand| {
                let cycle = &cycle;
                scope.spawn(move || (0..25).map(|turn| cycle(hand * 25 + turn)).collect::<Vec<_>>())
            })
            .collect();
        hands.into_iter().flat_map(|hand| hand.join().unwrap()).collect()
    });
    // There are 254, so none had to be given twice.
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 100, "{given:?}");
    assert_empty(&rig);
}

#[test]
fn a_hundred_sandboxes_come_and_go_and_leave_nothing() {
    cycle_sandboxes(Release::Current);
}

#[test]
fn a_hundred_sandboxes_of_debians_containerd_come_and_go_and_leave_nothing() {
    cycle_sandboxes(Release::Debian);
}

#[test]
fn an_add_that_fails_or_is_cut_short_leaves_nothing_and_is_told_in_plain_words() {
    let rig = Rig::start(Release::Current);
    rig.start_daemon();
    let node = rig.node();
    let words = |name: &str, flags: &[&str]| format!("{:#}", rig.run_with(name, flags).unwrap_err());

    node.signal_daemon(libc::SIGSTOP);
    let told = words("hung", &[]);
    assert!(told.contains("/run/overlayd/cni.sock") && told.contains("timed out"), "{told}");
    assert_eq!(rig.traces(), NONE);

    // The runtime kills the plugin in its ADD, and its answer does not wait for what it cleans up.
    let begun = Instant::now();
    let told = words("cancelled", &["--cancel-timeout", "2s"]);
    assert!(told.contains("DeadlineExceeded") && begun.elapsed() < SOON, "{told}");
    eventually("the runtime has cleaned up", SOON, || rig.traces().is_empty());
    node.signal_daemon(libc::SIGCONT);
    eventually("no lease of them is left", SOON, || node.status().leases.is_empty());

    node.kill_daemon();
    let told = words("absent", &[]);
    assert!(told.contains("overlayd is not reachable on /run/overlayd/cni.sock"), "{told}");
    assert_eq!(rig.traces(), NONE);

    node.restart_daemon();
    for name in ["hung", "cancelled", "absent"] {
        let sandbox = rig.run(name).unwrap();
        assert_reachable(&rig, &sandbox);
        rig.end(&sandbox);
    }
    for left in rig.sandboxes() {
        // One that failed halfway: kubelet would end it too.
        for verb in ["stopp", "rmp"] {
            assert!(rig.crictl(&[verb, &left]).success());
        }
    }
    assert_empty(&rig);
}

#[test]
fn sandboxes_outlive_a_killed_runtime_and_end_by_its_successor() {
    let mut rig = Rig::start(Release::Current);
    rig.start_daemon();
    let pods: Vec<Sandbox> = ["a", "b", "c"].iter().map(|name| rig.run(name).unwrap()).collect();
    let server = pods[0].serve();
    let talk = |rig: &Rig| {
        pods.iter().for_each(|pod| assert_reachable(rig, pod));
        assert_eq!(pods[1].tcp_source(server.at(pods[0].v4())), pods[1].v4());
    };
    rig.kill_runtime();
    talk(&rig);
    rig.start_runtime();
    talk(&rig);
    assert_eq!(
        rig.sandboxes().into_iter().collect::<BTreeSet<_>>(),
        pods.iter().map(|pod| pod.id.clone()).collect()
    );
    // While it is away its daemon may be too, and at DEL nobody is there to be told.
    rig.node().kill_daemon();
    rig.end(&pods[2]);
    rig.node().restart_daemon();
    pods[..2].iter().for_each(|pod| rig.end(pod));
    assert_empty(&rig);
}

#[test]
fn sandboxes_of_before_a_reboot_end_and_new_ones_come() {
    let mut rig = Rig::start(Release::Current);
    let node = rig.node();
    // Room for two: the new ones have the very addresses that the old ones had.
    let mut manifest = node.manifest();
    manifest.pod_cidrs = vec!["10.244.1.0/30".parse().unwrap()];
    node.write_nodes(&[manifest]);
    rig.start_daemon();
    let old: Vec<Sandbox> = ["a", "b"].iter().map(|name| rig.run(name).unwrap()).collect();
    rig.cut_power();
    // Only what libcni remembers, of loopback too, is on a disk.
    let remembered = rig.traces();
    assert_eq!(remembered.len(), 4, "{remembered:?}");
    assert!(remembered.iter().all(|trace| trace.starts_with("/var/lib/cni/results/")), "{remembered:?}");

    rig.start_runtime();
    assert_eq!(rig.sandboxes().len(), 2);
    rig.start_daemon();
    let new: Vec<Sandbox> = ["c", "d"].iter().map(|name| rig.run(name).unwrap()).collect();
    let alive = |rig: &Rig| new.iter().for_each(|pod| assert_reachable(rig, pod));
    let addresses = |pods: &[Sandbox]| pods.iter().map(|pod| pod.v4()).collect::<BTreeSet<IpAddr>>();
    assert_eq!(addresses(&new), addresses(&old));
    alive(&rig);
    // Who collects garbage now still has the old ones in its list.
    let listed = |pod: &Sandbox| json!({"containerID": pod.id, "ifname": "eth0"});
    let all: Vec<_> = old.iter().chain(&new).map(listed).collect();
    let collect = json!({
        "cniVersion": "1.1.0", "name": "overlay", "type": "overlayd", "cni.dev/valid-attachments": all,
    });
    let plugin =
        node.command("/opt/cni/bin/overlayd").env("CNI_COMMAND", "GC").env("CNI_PATH", "/opt/cni/bin");
    assert_eq!(plugin.stdin(collect.to_string()).run(), "");
    alive(&rig);
    // The runtime hands over the old results, with the addresses that others have by now; one DEL finds no daemon.
    rig.end(&old[0]);
    alive(&rig);
    node.kill_daemon();
    rig.end(&old[1]);
    node.restart_daemon();
    alive(&rig);
    new.iter().for_each(|pod| rig.end(pod));
    assert_empty(&rig);
}

#[test]
fn the_runtime_is_ready_within_two_seconds_after_the_daemon_and_not_before() {
    let rig = Rig::start(Release::Current);
    let node = rig.node();
    let waits = |rig: &Rig| {
        let why = rig.network().unwrap_err().to_string();
        assert!(why.contains("cni plugin not initialized"), "{why}");
    };
    waits(&rig);
    // It runs and serves its socket, but what it would give to pods is not known yet.
    let manifests = [node.manifest()];
    node.write_nodes(&[]);
    rig.launch_daemon(&["--cni-version", "1.1.0"]);
    eventually("the daemon has looked", SOON, || {
        node.try_status().is_ok_and(|status| status.conflist.is_some_and(|conflist| !conflist.written))
    });
    waits(&rig);
    node.write_nodes(&manifests);
    node.wait_ready();
    let ready = Instant::now();
    eventually("the runtime is ready", SOON, || rig.network().is_ok());
    assert!(ready.elapsed() < Duration::from_secs(2), "{:?} after the daemon", ready.elapsed());
    let sandbox = rig.run("first").unwrap();
    assert_reachable(&rig, &sandbox);

    // By STATUS the runtime also learns that a daemon is away, and back.
    node.kill_daemon();
    let why = rig.network().unwrap_err().to_string();
    assert!(why.contains("overlayd is not reachable on /run/overlayd/cni.sock"), "{why}");
    assert_reachable(&rig, &sandbox);
    node.restart_daemon();
    let ready = Instant::now();
    eventually("the runtime is ready again", SOON, || rig.network().is_ok());
    assert!(ready.elapsed() < Duration::from_secs(2), "{:?} after the daemon", ready.elapsed());
    rig.end(&sandbox);
    assert_empty(&rig);
}
