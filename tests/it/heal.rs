//! What somebody breaks by hand comes back by itself, and nothing else changes; what belongs to others is named and left.

use std::time::Duration;

use ipnet::IpNet;
use overlayd::core::desired::UNREACHABLE_METRIC;
use tests::protocol::{End, Step};
use tests::{Families, Lab, LinkState, NftChange, NftFamily, Node, Pod, Server, eventually};
use wire::tag::POD_ROUTE_METRIC;

const DEADLINE: Duration = Duration::from_secs(20);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn inet_overlayd() -> (NftFamily, String) {
    (NftFamily::Inet, "overlayd".to_owned())
}

/// Two nodes with dual-stack pods; node 1 is the one that suffers.
struct Bed {
    lab: Lab,
    pod: Pod,
    pod_server: Server,
    far: Pod,
    far_server: Server,
    outside: Server,
    before: Vec<String>,
    changes: u64,
}

impl Bed {
    fn start() -> Self {
        let lab = Lab::builder().nodes(2).pods(Families::Dual).start();
        lab.start_daemons();
        let (pod, far) = (lab.node(1).add_pod("near"), lab.node(2).add_pod("far"));
        let (pod_server, far_server, outside) = (pod.serve(), far.serve(), lab.outside().serve());
        let mut bed = Self { lab, pod, pod_server, far, far_server, outside, before: Vec::new(), changes: 0 };
        bed.assert_traffic_flows();
        bed.before = bed.node().objects();
        bed.changes = bed.node().status().reconcile.changes;
        bed
    }

    fn node(&self) -> Node {
        self.lab.node(1)
    }

    #[track_caller]
    fn assert_traffic_flows(&self) {
        assert_eq!(self.pod.tcp_source(self.far_server.v4()), self.pod.v4());
        assert_eq!(self.pod.tcp_source(self.far_server.v6()), self.pod.v6());
        assert_eq!(self.far.tcp_source(self.pod_server.v4()), self.far.v4());
        assert_eq!(self.far.tcp_source(self.pod_server.v6()), self.far.v6());
        assert_eq!(self.pod.tcp_source(self.outside.v4()), self.node().v4());
    }

    /// Waits until everything is as it was before the damage.
    #[track_caller]
    fn assert_mended(&self) {
        let mut now = Vec::new();
        for _ in 0..2000 {
            now = self.node().objects();
            if now == self.before {
                self.assert_traffic_flows();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let missing: Vec<_> = self.before.iter().filter(|line| !now.contains(line)).collect();
        let surplus: Vec<_> = now.iter().filter(|line| !self.before.contains(line)).collect();
        panic!("not mended. Missing: {missing:#?}\nsurplus: {surplus:#?}");
    }

    /// Waits until everything is as it was, and demands that no more than this was done for it.
    #[track_caller]
    fn assert_mended_by(&self, changes: u64) {
        let node = self.node();
        eventually("the daemon changes something", DEADLINE, || {
            node.status().reconcile.changes >= self.changes + changes
        });
        self.assert_mended();
        let status = node.status();
        assert_eq!(status.reconcile.changes - self.changes, changes, "kernel changes\n{}", node.log());
        assert_eq!(status.reconcile.failed, 0, "{}", node.log());
        assert!(status.ready && status.conflicts.is_empty(), "{status:?}");
    }
}

#[test]
fn a_deleted_peer_route_comes_back() {
    let bed = Bed::start();
    bed.node().delete_route_of_metric(net("10.244.2.0/24"), 0);
    bed.assert_mended_by(1);
}

#[test]
fn a_deleted_unreachable_route_comes_back() {
    let bed = Bed::start();
    bed.node().delete_route_of_metric(net("10.244.1.0/24"), UNREACHABLE_METRIC);
    bed.assert_mended_by(1);
}

#[test]
fn a_deleted_tunnel_address_comes_back_with_the_routes_that_went_with_it() {
    let bed = Bed::start();
    bed.node().delete_address("ovl0", net("10.244.1.0/32"));
    bed.assert_mended_by(2);
}

#[test]
fn a_tunnel_device_set_down_is_up_again_with_its_routes() {
    let bed = Bed::start();
    bed.node().set_link_state("ovl0", LinkState::Down);
    bed.assert_mended();
}

#[test]
fn a_deleted_tunnel_device_is_made_anew() {
    let bed = Bed::start();
    bed.node().delete_link("ovl0");
    bed.node().wait_log("the datapath ended, starting it anew");
    bed.assert_mended();
    assert!(bed.node().status().ready);
}

#[test]
fn a_pods_deleted_host_route_comes_back() {
    let bed = Bed::start();
    bed.node().delete_route_of_metric(bed.pod.v4().into(), POD_ROUTE_METRIC);
    bed.assert_mended_by(1);
}

#[test]
fn a_pods_deleted_neighbour_entry_comes_back() {
    let bed = Bed::start();
    bed.node().delete_neighbour(&bed.pod.host_link(), bed.pod.v4());
    bed.assert_mended_by(1);
}

#[test]
fn a_veth_taken_down_and_up_keeps_its_pod_reachable() {
    let bed = Bed::start();
    let link = bed.pod.host_link();
    bed.node().set_link_state(&link, LinkState::Down);
    bed.node().set_link_state(&link, LinkState::Up);
    bed.assert_mended();
}

#[test]
fn a_veth_left_down_is_brought_up() {
    let bed = Bed::start();
    bed.node().set_link_state(&bed.pod.host_link(), LinkState::Down);
    bed.assert_mended();
}

#[test]
fn a_deleted_nftables_table_comes_back() {
    let bed = Bed::start();
    let (family, table) = inet_overlayd();
    bed.node().nft(NftChange::DeleteTable(family, table));
    // The table, and the flows that began without it.
    bed.assert_mended_by(2);
}

#[test]
fn a_single_deleted_rule_comes_back_in_its_place() {
    let bed = Bed::start();
    let (family, table) = inet_overlayd();
    let rule = NftChange::DeleteRule { family, table, chain: "postrouting".into(), position: 2 };
    bed.node().nft(rule);
    bed.assert_mended_by(2);
}

#[test]
fn a_single_deleted_set_element_comes_back() {
    let bed = Bed::start();
    let (family, table) = inet_overlayd();
    let (first, end) = ("10.244.1.0".parse().unwrap(), "10.244.3.0".parse().unwrap());
    bed.node().nft(NftChange::DeleteElement { family, table, set: "cluster4".into(), first, end });
    bed.assert_mended_by(2);
}

#[test]
fn forwarding_that_is_switched_off_is_on_again() {
    let bed = Bed::start();
    bed.node().sysctl("net/ipv4/ip_forward", "0");
    bed.assert_mended_by(1);
}

#[test]
fn queue_length_and_mtu_of_the_tunnel_device_are_set_back() {
    let mut bed = Bed::start();
    bed.node().set_queue_length("ovl0", 77);
    bed.assert_mended_by(1);
    bed.changes += 1;
    bed.node().set_link_mtu("ovl0", 1300);
    // The device, and the IPv6 route to the peer, whose MTU the kernel lowers with the device's.
    bed.assert_mended_by(2);
}

/// What the status names as standing in the way, object and remedy.
fn conflicts(node: &Node) -> Vec<(String, String)> {
    let status = node.try_status().map(|status| status.conflicts).unwrap_or_default();
    status.into_iter().map(|conflict| (conflict.object, conflict.remedy)).collect()
}

/// Pods of both nodes talk, each seen with its own address.
fn assert_pods_talk(lab: &Lab) {
    let (a, b) = (lab.node(1).add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    assert_eq!(a.tcp_source(server.v4()), a.v4());
}

#[test]
fn a_leftover_vxlan_device_is_named_and_left_until_somebody_removes_it() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    node.add_vxlan("flannel.1", 1, 8472);
    let leftover =
        |node: &Node| node.objects().iter().any(|line| line.starts_with("link flannel.1 kind vxlan"));
    lab.node(2).start_daemon();
    node.launch_daemon(&[]);
    node.wait_log("ip link del flannel.1");
    eventually("the conflict is in the status", DEADLINE, || {
        conflicts(&node).iter().any(|(object, remedy)| {
            object.contains("flannel.1") && object.contains("8472") && remedy == "ip link del flannel.1"
        })
    });
    let status = node.status();
    assert!(!status.ready);
    assert!(status.not_ready_reasons.iter().any(|why| why.contains("ip link del flannel.1")), "{status:?}");
    assert!(leftover(&node));
    node.delete_link("flannel.1");
    node.wait_ready();
    eventually("the conflict is over", DEADLINE, || conflicts(&node).is_empty());
    assert_pods_talk(&lab);
}

#[test]
fn a_foreign_route_to_a_peers_pods_is_named_and_ours_comes_when_it_goes() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    let cidr = net("10.244.2.0/24");
    node.add_link_route(cidr, "eth0");
    lab.start_daemons();
    let route = "10.244.2.0/24 dev eth0 metric 0";
    let wanted = (format!("foreign route {route}"), format!("ip route del {route}"));
    eventually("the conflict is in the status", DEADLINE, || conflicts(&node) == [wanted.clone()]);
    node.wait_log("a foreign object stands in our way");
    let to_peer = |metric: &str| -> Vec<String> {
        let objects = node.objects().into_iter();
        objects.filter(|line| line.contains(" 10.244.2.0/24 ") && line.contains(metric)).collect()
    };
    let there = to_peer(" metric 0 ");
    assert!(there.len() == 1 && there[0].contains("dev eth0") && there[0].ends_with("proto 4"), "{there:?}");
    node.delete_route_of_metric(cidr, 0);
    eventually("our route is there", DEADLINE, || {
        to_peer(" metric 0 ").iter().any(|line| line.contains("dev ovl0"))
    });
    eventually("the conflict is over", DEADLINE, || conflicts(&node).is_empty());
    assert_pods_talk(&lab);
}

#[test]
fn a_foreign_device_of_our_tunnels_name_is_named_and_untouched() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    let end = |name: &str| End { space: node.name().into(), name: name.into() };
    node.change(Step::Veth { a: end("ovl0"), b: end("other0"), mtu: 1400 });
    let links = || -> Vec<String> {
        node.objects().into_iter().filter(|line| line.starts_with("link ovl0 ")).collect()
    };
    let before = links();
    assert!(before[0].starts_with("link ovl0 kind veth up true mtu 1400"), "{before:?}");
    lab.node(2).start_daemon();
    node.launch_daemon(&[]);
    eventually("the conflict is in the status", DEADLINE, || {
        conflicts(&node).iter().any(|(object, remedy)| {
            object.starts_with("device ovl0 is of veth kind") && remedy.starts_with("ip link del ovl0")
        })
    });
    assert!(!node.status().ready);
    assert_eq!(links(), before);
    node.delete_link("ovl0");
    node.wait_ready();
    assert_pods_talk(&lab);
}

#[test]
fn an_address_that_a_foreign_route_holds_is_not_given_to_a_pod() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let mut manifests = lab.manifests();
    manifests[0].pod_cidrs = vec![net("10.244.1.0/29")];
    lab.write_nodes(&manifests);
    lab.start_daemons();
    // A route without a link is no pod's, so nobody knows of it before the kernel refuses the pod's own.
    for last in [1, 2, 3, 5, 6] {
        node.add_unreachable(net(&format!("10.244.1.{last}/32")), POD_ROUTE_METRIC);
    }
    let foreign = || node.objects().into_iter().filter(|line| line.contains("/32 via None dev - ")).count();
    assert_eq!(foreign(), 5);
    let pod = node.add_pod("lucky");
    assert_eq!(pod.v4().to_string(), "10.244.1.4");
    assert_eq!(foreign(), 5);
    let server = pod.serve();
    assert!(node.tcp(server.v4()).ok);
    let error = node.try_add_pod("unlucky").unwrap_err().to_string();
    assert!(error.contains("10.244.1."), "{error}");
    assert_eq!(foreign(), 5);
}

#[test]
fn a_foreign_forward_policy_is_named_and_accepted_around_only_when_told() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    let untouched = node.objects();
    let (family, table, chain) = (NftFamily::Ip, "filter".to_owned(), "FORWARD".to_owned());
    node.nft(NftChange::AddForwardDrop { family, table, chain });
    let foreign = node.objects();
    assert!(
        foreign.contains(&"forward ip filter FORWARD drop true rules of ours 0".to_owned()),
        "{foreign:?}"
    );
    lab.start_daemons();
    eventually("the conflict is in the status", DEADLINE, || {
        conflicts(&node).iter().any(|(object, remedy)| {
            object == "chain ip filter FORWARD drops forwarded packets by its policy"
                && remedy.starts_with("iptables -I FORWARD -i ovp+ -j ACCEPT && ")
                && remedy.contains("iptables -I FORWARD -o ovl0 -j ACCEPT")
        })
    });
    let (a, b) = (node.add_pod("a"), lab.node(2).add_pod("b"));
    let server = b.serve();
    assert!(!a.tcp(server.v4()).ok, "the foreign policy is not in force");
    assert!(node.objects().contains(&"forward ip filter FORWARD drop true rules of ours 0".to_owned()));

    let _ = node.stop_daemon();
    node.start_daemon_with(&["--forward-accept", "true"]);
    eventually("our rules are in the chain", DEADLINE, || {
        node.objects().contains(&"forward ip filter FORWARD drop true rules of ours 4".to_owned())
    });
    assert_eq!(a.tcp_source(server.v4()), a.v4());
    let near = a.serve();
    assert_eq!(b.tcp_source(near.v4()), b.v4());
    assert!(conflicts(&node).is_empty());

    let _ = node.stop_daemon();
    node.overlayd(&["cleanup", "--with-pods"]).run();
    // Only that the node forwards stays, as others may have come to need it.
    let comparable = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| !line.starts_with("sysctl ")).collect()
    };
    assert_eq!(comparable(node.objects()), comparable(foreign));
    assert!(comparable(untouched).iter().all(|line| !line.contains("FORWARD")));
}
