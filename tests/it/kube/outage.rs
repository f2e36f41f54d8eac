//! The API server away, for real: killed, stopped, behind another certificate, with another token.

use std::time::{Duration, Instant};

use overlayd::core::node::{emit_nodes, parse_nodes};
use tests::eventually;
use tests::kubernetes::Authority;
use tests::node::{KUBECONFIG, RUN_DIR};

use super::{DEADLINE, Rig, await_in_step, await_peers, await_trouble};

/// Where a stranger's certificate is put.
const STRANGER: &str = "/run/lab/stranger.crt";

#[test]
fn an_outage_and_a_restart_in_it_cost_no_peer() {
    let rig = Rig::start(3);
    let one = rig.lab.node(1);
    let (near, far) = rig.pods();
    let server = far.serve();
    let stream = near.tcp_stream(server.v4());
    stream.wait_echoes(3);
    await_peers(&one, &["node-2", "node-3"]);
    eventually("all Nodes are in the cache", DEADLINE, || {
        one.read_file(&format!("{RUN_DIR}/nodes.yaml")).contains("node-3")
    });
    let objects = one.objects();
    rig.plane.kill_api();
    await_trouble(&one, "cannot be reached");
    assert!(one.status().ready);
    assert_eq!(one.objects(), objects);
    stream.wait_echoes(3);

    one.kill_daemon();
    one.start_daemon();
    let status = one.status();
    assert!(status.ready && status.source.contains("cached, "), "{}", status.source);
    assert!(status.nodes.cached_ms.is_some() && !status.nodes.in_step);
    await_peers(&one, &["node-2", "node-3"]);
    stream.wait_echoes(3);
    assert_eq!(one.objects(), objects);
    let more = one.add_pod("more");
    assert_eq!(more.tcp_source(server.v4()), more.v4());

    // An outage that an operator should hear of lasts a minute.
    let begin = Instant::now();
    eventually("a minute passes", DEADLINE, || {
        one.status().nodes.trouble_ms.is_some_and(|ms| ms > 60_500)
            || begin.elapsed() > Duration::from_secs(90)
    });
    stream.wait_echoes(3);
    rig.plane.start_api();
    await_in_step(&one);
    assert_eq!(one.status().nodes.cached_ms, None);
    eventually("the outage is told", DEADLINE, || {
        rig.events("node-1").iter().any(|(reason, _)| reason == "ApiWasAway")
    });
    let stream = stream.stop();
    assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{stream:?}");
}

/// A peer that joined after the cache was written keeps what the kernel has for it, and a broken cache is no cache.
#[test]
fn a_cache_takes_nothing_away_and_a_broken_one_is_ignored() {
    let rig = Rig::start(3);
    let one = rig.lab.node(1);
    await_peers(&one, &["node-2", "node-3"]);
    let path = format!("{RUN_DIR}/nodes.yaml");
    eventually("the cache is there", DEADLINE, || one.read_file(&path).contains("node-3"));
    let cache = one.read_file(&path);
    let objects = one.objects();
    one.stop_daemon();
    rig.plane.kill_api();
    // As if it had been written before node-3 came.
    let mut old = parse_nodes(&cache).unwrap();
    old.retain(|node| node.name != "node-3");
    one.write_file(&path, emit_nodes(&old));
    one.start_daemon();
    await_peers(&one, &["node-2"]);
    eventually("a round has passed", DEADLINE, || one.status().reconcile.succeeded > 0);
    assert_eq!(one.objects(), objects, "the routes to node-3 stay");

    one.kill_daemon();
    one.write_file(&path, "kind: List\nitems: [{kind: Secret}]\n");
    one.launch_daemon(&[]);
    eventually("the broken cache is named", DEADLINE, || {
        one.try_status().is_ok_and(|status| !status.ready && status.source.contains("cache not used"))
    });
    assert_eq!(one.objects(), objects, "and nothing is deleted");
    rig.plane.start_api();
    one.wait_ready();
    await_peers(&one, &["node-2", "node-3"]);
    assert_eq!(one.objects(), objects);
}

#[test]
fn a_stopped_server_is_noticed_and_a_rotated_token_is_read() {
    let rig = Rig::without_nodes(2);
    let one = rig.lab.node(1);
    for node in rig.lab.nodes() {
        rig.plane.create_node(&node.manifest());
        node.use_kubeconfig(&rig.kubeconfig());
    }
    rig.lab.start_daemons();
    await_in_step(&one);

    // The account is made anew: every token given before is worth nothing.
    rig.plane.kubectl(&["-n", "overlayd", "delete", "serviceaccount", "overlayd"]);
    rig.plane.apply(&super::rights());
    await_trouble(&one, "does not accept the credentials");
    assert!(one.status().ready);
    await_peers(&one, &["node-2"]);
    one.write_file(KUBECONFIG, rig.kubeconfig());
    await_in_step(&one);

    // Another authority: somebody else answers in the server's place.
    let right = rig.kubeconfig();
    let stranger = Authority::new().unwrap();
    one.kill_daemon();
    one.write_file(STRANGER, stranger.certificate());
    one.write_file(KUBECONFIG, with_authority_in(&right, STRANGER));
    one.start_daemon();
    await_trouble(&one, "cannot prove that it is the one of this cluster");
    await_peers(&one, &["node-2"]);
    one.write_file(KUBECONFIG, right);
    await_in_step(&one);

    rig.plane.signal_api(libc::SIGSTOP);
    await_trouble(&one, "connected but silent");
    assert!(one.status().ready);
    rig.plane.signal_api(libc::SIGCONT);
    await_in_step(&one);
    await_peers(&one, &["node-2"]);
}

/// The kubeconfig with another authority, whose certificate is in this file.
fn with_authority_in(kubeconfig: &str, path: &str) -> String {
    let mut document: serde_json::Value = serde_json::from_str(kubeconfig).unwrap();
    let cluster = document["clusters"][0]["cluster"].as_object_mut().unwrap();
    cluster.remove("certificate-authority-data");
    cluster.insert("certificate-authority".to_owned(), path.into());
    document.to_string()
}
