//! What the daemon reads: Nodes that come, change, go and wait.

use tests::eventually;

use super::{DEADLINE, Rig, await_in_step, await_peers, peers};

#[test]
fn nodes_of_an_api_server_come_change_and_go() {
    let rig = Rig::without_nodes(3);
    let [one, two, three] = [1, 2, 3].map(|number| rig.lab.node(number));
    for node in [&one, &two, &three] {
        node.use_kubeconfig(&rig.kubeconfig());
    }
    rig.plane.create_node(&one.manifest());
    rig.plane.create_node(&two.manifest());
    one.start_daemon();
    two.start_daemon();
    three.launch_daemon(&[]);
    let (a, b) = rig.pods();
    let b_server = b.serve();
    let stream = a.tcp_stream(b_server.v4());
    stream.wait_echoes(3);
    assert_eq!(a.tcp_source(b_server.v4()), a.v4());
    eventually("a node without a Node object says so", DEADLINE, || {
        let status = three.status();
        !status.ready && status.not_ready_reasons.concat().contains("there is no Node named node-3")
    });

    rig.plane.create_node(&three.manifest());
    three.wait_ready();
    await_peers(&one, &["node-2", "node-3"]);
    let c = three.add_pod("c");
    let c_server = c.serve();
    assert_eq!(a.tcp_source(c_server.v4()), a.v4());

    // Node-3 moves: the peers follow the address of its Node object.
    rig.plane.set_addresses("node-3", &["192.0.2.113".parse().unwrap()]);
    for node in [&one, &two] {
        eventually("the peer has moved", DEADLINE, || {
            node.status().peers.iter().any(|peer| peer.name == "node-3" && peer.underlay == ["192.0.2.113"])
        });
    }

    let before = one.status().reconcile.failed;
    rig.plane.kubectl(&["delete", "node", "node-3", "--wait=false"]);
    await_peers(&one, &["node-2"]);
    eventually("node-3 knows that it is gone", DEADLINE, || !three.status().ready);
    assert!(!a.tcp(c_server.v4()).ok);
    assert_eq!(one.status().reconcile.failed, before);
    let stream = stream.stop();
    assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{stream:?}");
}

#[test]
fn a_node_without_pod_cidrs_waits_and_names_the_flag() {
    let rig = Rig::without_nodes(1);
    let node = rig.lab.node(1);
    let mut manifest = node.manifest();
    manifest.pod_cidrs.clear();
    rig.plane.create_node(&manifest);
    node.use_kubeconfig(&rig.kubeconfig());
    node.launch_daemon(&[]);
    eventually("the flag is named", DEADLINE, || {
        node.try_status().is_ok_and(|status| {
            status.not_ready_reasons.concat().contains("kube-controller-manager")
                && status.not_ready_reasons.concat().contains("--allocate-node-cidrs")
        })
    });
    assert!(rig.annotations("node-1").get("overlayd.io/backend-type").is_none(), "nothing to announce yet");
    let patch = r#"{"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}}"#;
    rig.plane.kubectl(&["patch", "node", "node-1", "-p", patch]);
    node.wait_ready();
    assert!(node.add_pod("pod").v4().to_string().starts_with("10.244.1."));
}

#[test]
fn a_node_made_again_with_another_pod_cidr_does_not_reuse_old_addresses() {
    let rig = Rig::start(2);
    let (one, two) = (rig.lab.node(1), rig.lab.node(2));
    let (old, far) = rig.pods();
    let far_server = far.serve();
    rig.plane.kubectl(&["delete", "node", "node-1", "--wait=false"]);
    eventually("it is not ready without its Node", DEADLINE, || !one.status().ready);
    let mut manifest = one.manifest();
    manifest.pod_cidrs = vec!["10.244.77.0/24".parse().unwrap()];
    rig.plane.create_node(&manifest);
    one.wait_ready();
    let new = one.add_pod("new");
    assert!(new.v4().to_string().starts_with("10.244.77."), "{}", new.v4());
    assert_eq!(new.tcp_source(far_server.v4()), new.v4());
    eventually("the old pod is named with what to do", DEADLINE, || {
        one.status().conflicts.iter().any(|conflict| {
            conflict.object.contains(old.container_id()) && conflict.remedy.contains("delete these pods")
        })
    });
    eventually("the operator has an Event", DEADLINE, || {
        rig.events("node-1")
            .iter()
            .any(|(reason, note)| reason == "PodCidrsChanged" && note.contains("10.244.77.0/24"))
    });
    assert_eq!(one.tcp_source(old.serve().v4()), one.v4(), "the old pod still lives on its node");
    old.del();
    eventually("then it is over", DEADLINE, || one.status().conflicts.is_empty());
    await_peers(&two, &["node-1"]);
}

/// What kubelets write every few minutes, and everybody else at any time.
#[test]
fn changes_that_do_not_concern_the_network_change_nothing() {
    let rig = Rig::start(2);
    let one = rig.lab.node(1);
    await_in_step(&one);
    let settled = || {
        let status = one.status();
        (status.table, status.reconcile.changes)
    };
    let before = settled();
    for round in 0..20 {
        let label = format!("round={round}");
        rig.plane.kubectl(&["label", "--overwrite", "node", "node-2", &label]);
        rig.plane.kubectl(&["annotate", "--overwrite", "node", "node-2", &format!("example.com/{label}")]);
    }
    // An ordered stream: once a change that matters has come, those before it have.
    let mut manifest = one.manifest();
    manifest.name = "node-9".to_owned();
    manifest.pod_cidrs = vec!["10.244.9.0/24".parse().unwrap()];
    manifest.internal_ips = vec!["192.0.2.99".parse().unwrap()];
    rig.plane.create_node(&manifest);
    await_peers(&one, &["node-2", "node-9"]);
    let (table, _) = settled();
    assert_eq!(table.swaps, before.0.swaps + 1, "one change that matters, one table");
    assert_eq!(peers(&one).len(), 2);
}
