//! What the daemon writes: its own Node, and Events.

use serde_json::Value;
use tests::eventually;

use super::{DEADLINE, Rig, await_in_step, await_peers};

/// The condition NetworkUnavailable of a Node.
fn network_unavailable(node: &Value) -> Option<Value> {
    let conditions = node["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable").cloned()
}

#[test]
fn a_node_says_what_it_is_and_that_its_network_is_there() {
    let rig = Rig::start(2);
    let unavailable = || network_unavailable(&rig.plane.get(&["node", "node-1"]));
    eventually("the network is available", DEADLINE, || {
        unavailable().is_some_and(|condition| condition["status"] == "False")
    });
    let condition = unavailable().unwrap();
    assert_eq!(condition["reason"], "OverlaydIsUp");
    let annotations = rig.annotations("node-1");
    assert_eq!(annotations["overlayd.io/backend-type"], "vxlan");
    assert_eq!(annotations["overlayd.io/public-ip"], "192.0.2.11");
    let data: Value =
        serde_json::from_str(annotations["overlayd.io/backend-data"].as_str().unwrap()).unwrap();
    assert_eq!(data["VNI"], 1);
    assert!(annotations.get("overlayd.io/kube-subnet-manager").is_none());

    // Written once: the Node stays as it is from now on.
    let version = || rig.plane.get(&["node", "node-1"])["metadata"]["resourceVersion"].clone();
    let before = version();
    let node = rig.lab.node(1);
    node.restart_daemon();
    await_in_step(&node);
    assert_eq!(version(), before, "a restart writes nothing");

    // Somebody takes it away: it comes back.
    rig.plane.kubectl(&[
        "annotate",
        "node",
        "node-1",
        "overlayd.io/backend-data-",
        "overlayd.io/public-ip=192.0.2.250",
        "--overwrite",
    ]);
    eventually("the annotations are put right", DEADLINE, || {
        let now = rig.annotations("node-1");
        now["overlayd.io/public-ip"] == "192.0.2.11"
            && now["overlayd.io/backend-data"] == annotations["overlayd.io/backend-data"]
    });
    let patch = r#"{"status": {"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]}}"#;
    rig.plane.kubectl(&["patch", "node", "node-1", "--subresource=status", "-p", patch]);
    eventually("the condition is put right", DEADLINE, || {
        unavailable().is_some_and(|condition| condition["status"] == "False")
    });
    await_peers(&rig.lab.node(2), &["node-1"]);
}

#[test]
fn with_flannels_prefix_the_bytes_are_flannels() {
    let rig = Rig::without_nodes(2);
    let flags = ["--annotation-prefix", "flannel.alpha.coreos.com"];
    for node in rig.lab.nodes() {
        rig.plane.create_node(&node.manifest());
        node.use_kubeconfig(&rig.kubeconfig());
        node.start_daemon_with(&flags);
    }
    // A peer needs the annotations of the other: flannel ignores a Node without them.
    await_peers(&rig.lab.node(1), &["node-2"]);
    await_peers(&rig.lab.node(2), &["node-1"]);
    let annotations = rig.annotations("node-1");
    let of =
        |suffix: &str| annotations[format!("flannel.alpha.coreos.com/{suffix}")].as_str().map(str::to_owned);
    assert_eq!(of("kube-subnet-manager").as_deref(), Some("true"));
    assert_eq!(of("backend-type").as_deref(), Some("vxlan"));
    assert_eq!(of("public-ip").as_deref(), Some("192.0.2.11"));
    assert_eq!(of("backend-v6-data"), None);
    // flannel takes the MAC from here by cutting text at colon and quote.
    let data = of("backend-data").unwrap();
    let mac = data.strip_prefix(r#"{"VNI":1,"VtepMAC":""#).and_then(|rest| rest.strip_suffix(r#""}"#));
    assert_eq!(mac.map(str::len), Some("c2:11:22:33:44:55".len()), "{data}");
    let (a, b) = rig.pods();
    assert_eq!(a.tcp_source(b.serve().v4()), a.v4());
}

#[test]
fn missing_rights_are_named_and_nothing_is_lost() {
    let rig = Rig::start(2);
    let one = rig.lab.node(1);
    await_in_step(&one);
    // Reading stays allowed, writing does not.
    let patch = r#"[{"op": "remove", "path": "/rules/1"}]"#;
    rig.plane.kubectl(&["patch", "clusterrole", "overlayd", "--type=json", "-p", patch]);
    rig.plane.kubectl(&["annotate", "node", "node-1", "overlayd.io/public-ip-"]);
    eventually("the missing right is named", DEADLINE, || {
        let trouble = one.status().nodes.announcement_trouble.unwrap_or_default();
        trouble.contains("the verbs patch on nodes/status")
    });
    let status = one.status();
    assert!(status.ready && status.source.contains("our own Node cannot be written"), "{}", status.source);
    rig.plane.apply(&super::rights());
    eventually("then it is written", DEADLINE, || {
        rig.annotations("node-1")["overlayd.io/public-ip"] == "192.0.2.11"
    });
    eventually("and the words are gone", DEADLINE, || one.status().nodes.announcement_trouble.is_none());
}

#[test]
fn what_an_operator_must_know_is_an_event() {
    let rig = Rig::start(2);
    let one = rig.lab.node(1);
    let mut twin = rig.lab.node(2).manifest();
    twin.name = "twin".to_owned();
    rig.plane.create_node(&twin);
    let told = |reason: &str, words: &str| {
        rig.events("node-1").iter().any(|(have, note)| have == reason && note.contains(words))
    };
    eventually("the conflict is told", DEADLINE, || told("AddressConflict", "Node twin"));
    await_peers(&one, &["node-2"]);

    let mut bad = rig.lab.node(2).manifest();
    bad.name = "bad".to_owned();
    bad.pod_cidrs = Vec::new();
    bad.internal_ips = vec!["192.0.2.77".parse().unwrap()];
    rig.plane.create_node(&bad);
    eventually("the refusal is told", DEADLINE, || told("PeerRefused", "Node bad has no pod CIDR yet"));

    one.nft(tests::NftChange::DeleteTable(tests::NftFamily::Inet, "overlayd".into()));
    eventually("the repair is told", DEADLINE, || told("EgressRewritten", "is put back"));

    // What runtimes take instead of ours.
    one.command("mkdir").args(["-p", "/run/cni/net.d"]).run();
    one.write_file("/run/cni/net.d/05-other.conflist", "{}");
    one.kill_daemon();
    one.launch_daemon(&["--cni-conf-dir", "/run/cni/net.d"]);
    eventually("the foreign file is told", DEADLINE, || told("ForeignObject", "05-other.conflist"));
}
