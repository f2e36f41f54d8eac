//! overlayd on real Kubernetes: every flow that kubelet, kube-proxy and pods need, in each mode of kube-proxy.

mod dual;
mod flows;
mod lifecycle;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tests::kubernetes::{Cluster, Proxy};
use tests::{Host, Node, Server, eventually};

const WORKLOAD: &str = include_str!("workload.yaml");
const DEADLINE: Duration = Duration::from_secs(30);

/// A cluster with pods in it.
struct World {
    cluster: Cluster,
    /// A pod on each node, in the order of the nodes.
    pods: Vec<Host>,
    /// A server of the lab's in each of them, port 9000.
    servers: Vec<Server>,
    names: BTreeSet<String>,
    /// The pod of node-2 that is the only one of its Service.
    single: Host,
}

impl World {
    fn start(proxy: Proxy) -> Self {
        let cluster = Cluster::builder().nodes(2).proxy(proxy).deadline(Duration::from_secs(420)).start();
        cluster.install();
        cluster.wait_nodes_ready();
        cluster.plane().apply(WORKLOAD);
        let objects = cluster.wait_pods("default", "app=web", 2);
        let single = cluster.wait_pods("default", "app=single", 1);
        let _ = cluster.wait_pods("default", "app=host", 2);
        let pods: Vec<Host> = objects.iter().map(|object| cluster.pod(object)).collect();
        let servers = pods.iter().map(|pod| pod.serve_on(9000)).collect();
        let single = cluster.pod(&single[0]);
        let name = |object: &Value| object["metadata"]["name"].as_str().map(str::to_owned);
        Self { names: objects.iter().filter_map(name).collect(), pods, servers, single, cluster }
    }

    fn node(&self, number: usize) -> Node {
        self.cluster.lab().node(number)
    }
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn service(last: u8, port: u16) -> SocketAddr {
    at([10, 96, 1, last], port)
}

/// What an HTTP server answers, with what went wrong in its place.
fn get(from: &Host, server: SocketAddr, path: &str) -> String {
    match from.http(server, path) {
        Ok(http) if http.status == 200 => http.body.trim().to_owned(),
        Ok(http) => format!("status {}", http.status),
        Err(error) => format!("{error:#}"),
    }
}

/// The address that the server at this place saw, by HTTP.
#[track_caller]
fn client_ip(from: &Host, server: SocketAddr) -> IpAddr {
    let answer = get(from, server, "/clientip");
    match answer.parse::<SocketAddr>() {
        Ok(seen) => seen.ip(),
        Err(_) => panic!("{} asks {server} for /clientip: {answer}", from.label()),
    }
}

/// Waits until kube-proxy has made the Services.
fn wait_services(world: &World) {
    let from = &world.pods[0];
    eventually("kube-proxy has made the Services", DEADLINE, || {
        (1..=4).all(|last| {
            from.tcp(service(last, 80))
                .error
                .is_none_or(|why| !why.contains("refused") && !why.contains("timed out"))
        })
    });
}

/// One cluster is load enough for a small machine.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(proxy: Proxy) {
    let _turn = turn();
    let world = World::start(proxy);
    wait_services(&world);
    flows::pods_reach_pods_as_themselves(&world);
    flows::nodes_reach_pods(&world);
    flows::services_reach_every_endpoint(&world);
    flows::a_pod_reaches_itself_through_its_service(&world);
    flows::affinity_keeps_a_client_with_its_endpoint(&world);
    flows::node_ports_follow_their_policy(&world);
    flows::host_ports_are_forwarded(&world);
    flows::host_network_pods_are_endpoints(&world);
    flows::pods_go_out_as_their_node(&world);
    lifecycle::an_update_is_hardly_noticed(&world);
    flows::a_terminating_pod_still_talks(&world);
    flows::a_foreign_forward_policy_is_named_and_passed_when_told(&world);
    lifecycle::removal_leaves_nothing_behind(&world);
}

#[test]
fn every_flow_works_beside_kube_proxy_with_nftables() {
    check(Proxy::Nftables);
}

#[test]
fn every_flow_works_beside_kube_proxy_with_iptables() {
    check(Proxy::Iptables);
}
