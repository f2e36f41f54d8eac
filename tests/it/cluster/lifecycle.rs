//! overlayd is updated under traffic, and taken off again.

use tests::eventually;
use tests::kubernetes::is_ready;

use super::{DEADLINE, World};

/// Node by node a new daemon takes over. Between pods of one node, from a node to its pods, and on the way out nothing is lost;
/// between nodes less than a second.
pub(super) fn an_update_is_hardly_noticed(world: &World) {
    let plane = world.cluster.plane();
    let (far, near) = (&world.pods[0], &world.single);
    let (server, outside) = (&world.servers[1], world.cluster.lab().outside().serve());
    let within = near.udp_stream(server.v4());
    let probes = world.node(2).udp_stream(server.v4());
    let egress = near.tcp_stream(outside.v4());
    let across = far.tcp_stream(server.v4());
    let datagrams = far.udp_stream(server.v4());
    across.wait_echoes(5);
    let before = plane.get(&["-n", "overlayd", "pods"]);

    plane.kubectl(&["-n", "overlayd", "rollout", "restart", "daemonset", "overlayd"]);
    plane.kubectl(&["-n", "overlayd", "rollout", "status", "daemonset", "overlayd", "--timeout=80s"]);

    let names = |pods: &serde_json::Value| -> Vec<String> {
        let pods = pods["items"].as_array().into_iter().flatten();
        pods.map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let old = names(&before);
    eventually("only new pods run", DEADLINE, || {
        let now = names(&plane.get(&["-n", "overlayd", "pods"]));
        now.len() == old.len() && now.iter().all(|name| !old.contains(name))
    });
    let nodes = world.cluster.lab().nodes();
    assert!(nodes.iter().all(|node| node.try_status().is_ok()), "a daemon on every node");
    across.wait_echoes(20);
    datagrams.wait_echoes(20);
    for (name, stream) in [("within", within), ("probes", probes), ("egress", egress), ("across", across)] {
        let stream = stream.stop();
        assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{name}: {stream:?}");
        assert!(stream.longest_gap_ms < 1000, "{name}: {stream:?}");
    }
    // One is on the way at a time, and either end of the way changes hands once.
    let datagrams = datagrams.stop();
    assert!(datagrams.sent - datagrams.answered <= 2, "{datagrams:?}");
}

/// As the README says.
pub(super) fn removal_leaves_nothing_behind(world: &World) {
    world.cluster.uninstall();
    for node in world.cluster.lab().nodes() {
        let ours = ["ovl0", "ovp", "overlayd"];
        let objects = node.objects();
        let left: Vec<&String> =
            objects.iter().filter(|object| ours.iter().any(|name| object.contains(name))).collect();
        assert!(left.is_empty(), "{}: {left:?}", node.name());
        let files = |directory: &str| node.command("ls").args(["-A", directory]).run();
        assert!(!files("/etc/cni/net.d").contains("overlay"), "{}", node.name());
        assert!(!files("/opt/cni/bin").contains("overlayd"), "{}", node.name());
        assert!(!node.has_file("/run/overlayd/lock"), "{}", node.name());
    }
    world
        .cluster
        .try_wait("the nodes notice", |cluster| {
            let nodes = cluster.plane().try_get(&["nodes"])?;
            Ok(!nodes["items"].as_array().into_iter().flatten().any(is_ready))
        })
        .unwrap();
}
