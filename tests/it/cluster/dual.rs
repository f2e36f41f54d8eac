//! A dual-stack cluster: the same manifest, nothing configured.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tests::kubernetes::Cluster;
use tests::{Families, Host, eventually};

use super::{DEADLINE, at, client_ip, get, turn};

/// A server on every node, and a Service with an address of each family.
fn workload() -> Value {
    let labels = json!({"app": "web"});
    let container = json!({
        "name": "web",
        "image": tests::kubernetes::AGNHOST_IMAGE,
        "args": ["netexec", "--http-port=8080"],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
    });
    let pod = json!({
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": pod},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [set, service]})
}

#[test]
fn a_dual_stack_cluster_needs_no_configuration() {
    let _turn = turn();
    let cluster = Cluster::builder().families(Families::Dual).deadline(Duration::from_secs(300)).start();
    cluster.install();
    cluster.wait_nodes_ready();
    cluster.plane().apply(&workload().to_string());
    let objects = cluster.wait_pods("default", "app=web", 2);
    let names: BTreeSet<String> =
        objects.iter().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect();
    let pods: Vec<Host> = objects.iter().map(|object| cluster.pod(object)).collect();
    for pod in &pods {
        assert!(pod.v4().is_ipv4() && pod.v6().is_ipv6(), "{:?}", pod.addresses());
    }
    for client in &pods {
        for address in pods.iter().flat_map(Host::addresses) {
            let own = if address.is_ipv4() { client.v4() } else { client.v6() };
            assert_eq!(client_ip(client, at(*address, 8080)), own, "{} to {address}", client.label());
        }
    }
    for (node, address) in cluster
        .lab()
        .nodes()
        .iter()
        .flat_map(|node| pods.iter().flat_map(Host::addresses).map(move |to| (node, to)))
    {
        eventually(&format!("{} reaches {address}", node.name()), DEADLINE, || {
            names.contains(&get(node, at(*address, 8080), "/hostname"))
        });
    }
    let service = cluster.plane().get(&["service", "web"]);
    let addresses: Vec<IpAddr> = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect();
    assert_eq!(addresses.iter().filter(|address| address.is_ipv6()).count(), 1, "{addresses:?}");
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for (client, address) in pods.iter().flat_map(|pod| addresses.iter().map(move |address| (pod, *address)))
    {
        let mut seen = BTreeSet::new();
        eventually(&format!("{} finds every endpoint at {address}", client.label()), DEADLINE, || {
            seen.insert(get(client, at(address, 80), "/hostname"));
            seen.retain(|name| names.contains(name));
            seen == names
        });
    }
    let outside = cluster.lab().outside().serve();
    for (pod, node) in pods.iter().zip(cluster.lab().nodes()) {
        assert_eq!(pod.tcp_source(outside.v4()), node.v4());
        assert_eq!(pod.tcp_source(outside.v6()), node.v6());
    }
}
