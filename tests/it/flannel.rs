//! One cluster, half of it on flannel: its vxlan backend and our nodes carry each other's pods.

use std::time::Duration;

use serde_json::{Value, json};
use tests::go::{cni_plugins, program};
use tests::kubernetes::ControlPlane;
use tests::{Cni, Families, Host, Lab, Node, Process, Server, eventually};

const SOON: Duration = Duration::from_secs(60);
const NET_CONF: &str = "/run/flannel/net-conf.json";
const KUBECONFIG: &str = "/run/kubernetes/kubeconfig";
const PREFIX: &str = "flannel.alpha.coreos.com";
const MANIFEST: &str = include_str!("../../deploy/overlayd.yaml");

/// A node on flannel, a node of ours, and an API server that knows both.
struct World {
    plane: ControlPlane,
    theirs: Node,
    ours: Node,
    lab: Lab,
}

impl World {
    fn start(families: Families) -> Self {
        // Before the lab: whoever is first builds them.
        program("flanneld").unwrap();
        cni_plugins().unwrap();
        let lab = Lab::builder().nodes(2).underlay(families).pods(families);
        let lab = lab.deadline(Duration::from_secs(400)).start();
        let plane = ControlPlane::builder(&lab).without_controllers().user("overlayd", &[]).start();
        let (theirs, ours) = (lab.node(1), lab.node(2));
        for node in [&theirs, &ours] {
            plane.create_node(&node.manifest());
        }
        // Ours has the rights that the manifest gives it.
        plane.apply(MANIFEST);
        plane.kubectl(&[
            "create",
            "clusterrolebinding",
            "trial",
            "--clusterrole=overlayd",
            "--user=overlayd",
        ]);
        ours.write_file(KUBECONFIG, plane.kubeconfig("overlayd"));
        theirs.write_file(KUBECONFIG, plane.kubeconfig("admin"));
        let mut conf =
            json!({"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}});
        if families == Families::Dual {
            conf["EnableIPv6"] = json!(true);
            conf["IPv6Network"] = json!("fd00:10:244::/48");
        }
        theirs.write_file(NET_CONF, conf.to_string());
        Self { plane, theirs, ours, lab }
    }

    fn flannel(&self) -> Process {
        let flanneld = self.theirs.command(&program("flanneld").unwrap().to_string_lossy());
        let flanneld = flanneld
            .args(["--kubeconfig", KUBECONFIG, "--net-conf", NET_CONF, "--masquerade"])
            .env("NODE_NAME", self.theirs.name())
            .spawn();
        eventually("flannel is ready", SOON, || {
            assert!(flanneld.running(), "{}", flanneld.stderr());
            flanneld.stderr().contains("flannel is ready")
        });
        flanneld
    }

    fn overlayd(&self) -> Process {
        let daemon =
            self.ours.overlayd(&["run", "--node-name", self.ours.name(), "--kubeconfig", KUBECONFIG]);
        let daemon = daemon.args(["--annotation-prefix", PREFIX]).spawn();
        eventually("overlayd is ready and has its peer", SOON, || {
            assert!(daemon.running(), "{}", daemon.stderr());
            self.ours.try_status().is_ok_and(|status| status.ready && status.peers.len() == 1)
        });
        daemon
    }

    /// A pod on the node with flannel, by the reference plugins, with what flannel wrote about the node.
    fn their_pod(&self, name: &str) -> (Cni, Host) {
        let node = &self.theirs;
        let plugins = cni_plugins().unwrap();
        let lease = node.read_file("/run/flannel/subnet.env");
        let said = |key: &str| lease.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let ranges: Vec<Value> =
            node.pod_cidrs().iter().map(|cidr| json!([{"subnet": cidr.to_string()}])).collect();
        let mtu: u32 = said("FLANNEL_MTU").unwrap().parse().unwrap();
        let routes: Vec<Value> = if ranges.len() == 1 {
            vec![json!({"dst": "0.0.0.0/0"})]
        } else {
            vec![json!({"dst": "0.0.0.0/0"}), json!({"dst": "::/0"})]
        };
        let mut cni = Cni::prepare(node, name).unwrap();
        cni.config = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "ptp", "mtu": mtu,
            "ipam": {"type": "host-local", "dataDir": "/run/host-local", "ranges": ranges, "routes": routes},
        });
        cni.plugin_path = plugins.to_string_lossy().into_owned();
        let command = node.command(&plugins.join("ptp").to_string_lossy()).stdin(cni.stdin("ADD"));
        let command =
            cni.environment("ADD").into_iter().fold(command, |command, (key, value)| command.env(key, value));
        let result: Value = command.json();
        let inside = cni.inside(&result);
        (cni, inside)
    }
}

/// Both ways, both protocols, small and large, in each family that both have.
#[track_caller]
fn assert_talk(one: &Host, other: &Host) {
    for (client, target) in [(one, other), (other, one)] {
        let server = target.serve();
        for (own, at) in addresses(client, &server) {
            assert_eq!(client.tcp_source(at), own);
            assert_eq!(client.udp_source(at), own);
            // In IPv6 the first large one may be the one that teaches the sender the path's MTU.
            let probes: Vec<_> = (0..3).map(|_| client.udp(at, 4000)).collect();
            assert_eq!(probes[2].answered, 1, "{probes:?} from {at}");
            let bulk = client.tcp_upload(at, 20_000_000);
            assert_eq!((bulk.bytes, bulk.received_sha256), (20_000_000, bulk.sent_sha256));
        }
    }
}

fn addresses(client: &Host, server: &Server) -> Vec<(std::net::IpAddr, std::net::SocketAddr)> {
    let own = client.addresses().iter();
    own.map(|own| (*own, if own.is_ipv4() { server.v4() } else { server.v6() })).collect()
}

/// What a node tells about itself under flannel's prefix.
fn annotation(world: &World, node: &Node, name: &str) -> Value {
    world.plane.get(&["node", node.name()])["metadata"]["annotations"][format!("{PREFIX}/{name}")].clone()
}

fn check(families: Families) {
    let world = World::start(families);
    let flannel = world.flannel();
    let daemon = world.overlayd();
    let (_cni, theirs) = world.their_pod("theirs");
    let ours = world.ours.add_pod("ours");
    // Flannel heard of us by what we wrote, and has a route.
    assert_eq!(annotation(&world, &world.ours, "kube-subnet-manager"), "true");
    assert_eq!(annotation(&world, &world.ours, "public-ip"), world.ours.v4().to_string());
    eventually("flannel has its routes to our pods", SOON, || {
        let destinations: Vec<String> =
            world.theirs.observe().routes.iter().map(|route| route.destination.to_string()).collect();
        world.ours.pod_cidrs().iter().all(|cidr| destinations.contains(&cidr.to_string()))
    });
    assert_talk(&theirs, &ours);
    // Nodes to the other side's pods, from an address of their own share.
    let (their_server, our_server) = (theirs.serve(), ours.serve());
    assert_eq!(world.ours.tcp_source(their_server.v4()), world.ours.tunnel_addresses()[0]);
    assert!(world.theirs.tcp(our_server.v4()).ok);

    // Each side's daemon dies under traffic and comes back. Flannel's packets are the kernel's meanwhile.
    let out = ours.tcp_stream(their_server.v4());
    let home = theirs.tcp_stream(our_server.v4());
    out.wait_echoes(5);
    home.wait_echoes(5);
    let before = annotation(&world, &world.ours, "backend-data");
    daemon.kill();
    let daemon = world.overlayd();
    for stream in [&out, &home] {
        stream.wait_echoes(5);
    }
    assert_eq!(annotation(&world, &world.ours, "backend-data"), before, "our MAC is ours for ever");
    flannel.kill();
    for stream in [&out, &home] {
        stream.wait_echoes(5);
    }
    let flannel = world.flannel();
    for (name, stream) in [("out", out), ("home", home)] {
        let stream = stream.stop();
        assert_eq!((stream.answered, &stream.error), (stream.sent, &None), "{name}: {stream:?}");
    }
    assert_talk(&theirs, &ours);

    // The device goes too, as with a node that starts anew: whatever MAC flannel has then, we learn it.
    flannel.kill();
    for device in world.theirs.observe().links_named("flannel") {
        world.theirs.command("ip").args(["link", "del", device]).run();
    }
    let _flannel = world.flannel();
    eventually("packets pass again both ways", SOON, || {
        ours.tcp(their_server.v4()).ok && theirs.tcp(our_server.v4()).ok
    });
    assert_talk(&theirs, &ours);
    let status = world.ours.status();
    assert_eq!((status.refused.len(), status.reconcile.failed), (0, 0), "{}", daemon.stderr());
    drop(world.lab);
}

#[test]
fn pods_of_flannel_and_of_ours_talk_while_each_daemon_is_restarted() {
    check(Families::V4);
}

#[test]
fn the_same_in_both_families() {
    check(Families::Dual);
}
