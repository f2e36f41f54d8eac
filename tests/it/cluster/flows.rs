//! The flows, one function each. Each says what kubernetes asks of a pod network there.

use std::collections::BTreeSet;

use tests::{NftChange, NftFamily, eventually};

use super::{DEADLINE, World, at, client_ip, get, service};

/// No NAT between pods, on one node or two, by TCP and UDP, with datagrams that the tunnel must carry in pieces.
pub(super) fn pods_reach_pods_as_themselves(world: &World) {
    let clients = world.pods.iter().chain([&world.single]);
    for (client, server) in
        clients.flat_map(|client| world.servers.iter().map(move |server| (client, server)))
    {
        assert_eq!(client.tcp_source(server.v4()), client.v4(), "{} to {}", client.label(), server.label());
        assert_eq!(client.udp_source(server.v4()), client.v4(), "{} to {}", client.label(), server.label());
        assert_eq!(client_ip(client, at(server.v4().ip(), 8080)), client.v4());
        eventually("a datagram of 2,000 bytes arrives", DEADLINE, || {
            client.udp(server.v4(), 2000).answered == 1
        });
    }
}

/// kubelet's probes and whatever runs in a node's own network; towards another node's pods from an address that leads back.
pub(super) fn nodes_reach_pods(world: &World) {
    for node in world.cluster.lab().nodes() {
        for server in &world.servers {
            let source = node.tcp_source(server.v4());
            let object = world.cluster.plane().get(&["node", node.name()]);
            let cidr: ipnet::IpNet = object["spec"]["podCIDR"].as_str().unwrap().parse().unwrap();
            let own = cidr.contains(&server.v4().ip());
            assert!(own || cidr.contains(&source), "{} to {} as {source}", node.name(), server.label());
            assert_eq!(node.udp_source(server.v4()), source);
        }
    }
}

/// Every endpoint is found from every place, and pods are seen as themselves; by UDP on the port of DNS too.
pub(super) fn services_reach_every_endpoint(world: &World) {
    let nodes = world.cluster.lab().nodes();
    for client in world.pods.iter().chain(nodes.iter().map(|node| &**node)) {
        let mut seen = BTreeSet::new();
        eventually(&format!("{} finds every endpoint", client.label()), DEADLINE, || {
            seen.insert(get(client, service(1, 80), "/hostname"));
            seen == world.names
        });
    }
    for client in &world.pods {
        // To itself a pod goes as its node: kube-proxy masquerades there.
        let sources: BTreeSet<_> = (0..8).map(|_| client.tcp_source(service(1, 9000))).collect();
        assert!(sources.contains(&client.v4()), "{sources:?}");
        let sources: BTreeSet<_> = (0..8).map(|_| client.udp_source(service(1, 53))).collect();
        assert!(sources.contains(&client.v4()), "{sources:?}");
        assert_eq!(client_ip(client, service(2, 80)), client.v4());
    }
}

/// The packet goes out by the veth that it came in by.
pub(super) fn a_pod_reaches_itself_through_its_service(world: &World) {
    assert_eq!(get(&world.single, service(2, 80), "/hostname"), "single");
    let node = world.node(2);
    let answer = get(&world.single, at(node.v4(), 30081), "/hostname");
    assert_eq!(answer, "single", "by its own node port");
    assert_eq!(get(&world.single, at(node.v4(), 8480), "/hostname"), "single", "by its own host port");
}

/// kube-proxy tells clients apart by their source.
pub(super) fn affinity_keeps_a_client_with_its_endpoint(world: &World) {
    for client in &world.pods {
        let seen: BTreeSet<_> = (0..10).map(|_| get(client, service(3, 80), "/hostname")).collect();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen.is_subset(&world.names), "{seen:?}");
    }
}

/// Policy Cluster: any node leads to any endpoint. Policy Local: only to the node's own, and the client's address is kept.
pub(super) fn node_ports_follow_their_policy(world: &World) {
    let outside = world.cluster.lab().outside();
    for node in world.cluster.lab().nodes() {
        let mut seen = BTreeSet::new();
        eventually("every endpoint is found by the node port", DEADLINE, || {
            seen.insert(get(outside, at(node.v4(), 30080), "/hostname"));
            seen == world.names
        });
        for _ in 0..6 {
            let _ = outside.udp_source(at(node.v4(), 30053));
        }
    }
    assert_eq!(
        client_ip(outside, at(world.node(2).v4(), 30081)),
        outside.v4(),
        "policy Local keeps the client's address"
    );
    let elsewhere = outside.tcp(at(world.node(1).v4(), 30081));
    assert!(!elsewhere.ok, "no endpoint there: {elsewhere:?}");
    // From inside, policy Local is no obstacle.
    assert_eq!(get(&world.pods[0], at(world.node(2).v4(), 30081), "/hostname"), "single");
}

/// By portmap, chained behind ours.
pub(super) fn host_ports_are_forwarded(world: &World) {
    let outside = world.cluster.lab().outside();
    let place = at(world.node(2).v4(), 8480);
    assert_eq!(client_ip(outside, place), outside.v4());
    assert_eq!(get(&world.node(1), place, "/hostname"), "single");
    assert_eq!(get(&world.pods[0], place, "/hostname"), "single");
}

/// A pod reaches servers in the nodes' networks, its own node's as itself; a node's processes reach pods of other nodes and back.
pub(super) fn host_network_pods_are_endpoints(world: &World) {
    let nodes: BTreeSet<String> =
        world.cluster.lab().nodes().iter().map(|node| node.name().to_owned()).collect();
    for client in &world.pods {
        let mut seen = BTreeSet::new();
        eventually("every node's server is found", DEADLINE, || {
            seen.insert(get(client, service(4, 80), "/hostname"));
            seen == nodes
        });
    }
    for (index, client) in world.pods.iter().enumerate() {
        let (own, other) = (world.node(index + 1), world.node(2 - index));
        assert_eq!(client_ip(client, at(own.v4(), 18080)), client.v4(), "its own node sees the pod");
        assert_eq!(client_ip(client, at(other.v4(), 18080)), own.v4(), "another node sees the pod's node");
    }
}

/// A pod reaches the outside as its node.
pub(super) fn pods_go_out_as_their_node(world: &World) {
    let server = world.cluster.lab().outside().serve();
    for (index, client) in world.pods.iter().enumerate() {
        assert_eq!(client.tcp_source(server.v4()), world.node(index + 1).v4());
        assert_eq!(client.udp_source(server.v4()), world.node(index + 1).v4());
    }
}

/// A pod that was told to end is reached, and reaches others, until it has ended.
pub(super) fn a_terminating_pod_still_talks(world: &World) {
    let plane = world.cluster.plane();
    plane.kubectl(&["delete", "pod", "single", "--wait=false"]);
    eventually("the pod is told to end", DEADLINE, || {
        !plane.get(&["pod", "single"])["metadata"]["deletionTimestamp"].is_null()
    });
    for client in &world.pods {
        let place = at(world.single.v4(), 8080);
        assert_eq!(client_ip(client, place), client.v4(), "to the terminating pod");
    }
    for server in &world.servers {
        assert_eq!(world.single.tcp_source(server.v4()), world.single.v4(), "from the terminating pod");
    }
    plane.kubectl(&["delete", "pod", "single", "--grace-period=1", "--timeout=60s"]);
}

/// A policy as Docker sets it: nothing of ours can undo it. Status says so, with the command that mends it; with the option pods pass.
pub(super) fn a_foreign_forward_policy_is_named_and_passed_when_told(world: &World) {
    let (node, plane) = (world.node(1), world.cluster.plane());
    let (client, server) = (&world.pods[0], &world.servers[1]);
    node.nft(NftChange::AddForwardDrop {
        family: NftFamily::Ip,
        table: "docker".into(),
        chain: "FORWARD".into(),
    });
    eventually("the policy is named", DEADLINE, || {
        let named = |object: &str| object.contains("docker FORWARD drops forwarded packets");
        node.status().conflicts.iter().any(|conflict| named(&conflict.object) && !conflict.remedy.is_empty())
    });
    assert!(!client.tcp(server.v4()).ok, "the policy is not in force");

    let mut settings = plane.get(&["-n", "overlayd", "configmap", "overlayd"]);
    let text = settings["data"]["config.yaml"].as_str().unwrap().to_owned();
    settings["data"]["config.yaml"] = format!("{text}forward_accept: true\n").into();
    plane.apply(&settings.to_string());
    plane.kubectl(&["-n", "overlayd", "rollout", "restart", "daemonset", "overlayd"]);
    plane.kubectl(&["-n", "overlayd", "rollout", "status", "daemonset", "overlayd", "--timeout=80s"]);
    eventually("pods pass", DEADLINE, || client.tcp(server.v4()).ok);
    assert_eq!(client.tcp_source(server.v4()), client.v4());
}
