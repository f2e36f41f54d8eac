//! Pods talk: on one node, across nodes, in each family, and show their own address.

use std::net::IpAddr;

use tests::{Families, Lab, Pod};

/// Every pod reaches every other by TCP and UDP and is seen with its own address; every node reaches every pod.
fn everyone_talks(families: Families, underlay: Families) {
    let lab = Lab::builder().nodes(2).underlay(underlay).pods(families).start();
    lab.start_daemons();
    let pods: Vec<Pod> =
        lab.nodes().iter().flat_map(|node| [node.add_pod("one"), node.add_pod("two")]).collect();
    let of_family = |v6: bool| move |pod: &Pod| -> IpAddr { if v6 { pod.v6() } else { pod.v4() } };
    let wanted: &[bool] = match families {
        Families::V4 => &[false],
        Families::V6 => &[true],
        Families::Dual => &[false, true],
    };
    for server_pod in &pods {
        let server = server_pod.serve();
        for &v6 in wanted {
            let address = of_family(v6);
            let target = server.at(address(server_pod));
            for client in &pods {
                assert_eq!(client.tcp_source(target), address(client), "TCP to {target}");
                assert_eq!(client.udp_source(target), address(client), "UDP to {target}");
            }
            for node in lab.nodes() {
                assert!(node.tcp(target).ok, "{} to {target}", node.name());
            }
        }
    }
}

#[test]
fn ipv4_pods_talk_over_ipv4() {
    everyone_talks(Families::V4, Families::V4);
}

#[test]
fn ipv6_pods_talk_over_ipv4() {
    everyone_talks(Families::V6, Families::V4);
}

#[test]
fn dual_stack_pods_talk_over_ipv4() {
    everyone_talks(Families::Dual, Families::V4);
}

#[test]
fn dual_stack_pods_talk_over_ipv6() {
    everyone_talks(Families::Dual, Families::V6);
}
