//! Who is seen as whom: source addresses class by class, in both families, by TCP and UDP; and that the rules of
//! others stay theirs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::core::cluster::vtep_mac;
use overlayd::core::plan::ruleset::TABLE;
use tests::firewall::{NEW_RULE, NEW_TABLE, Object, Table};
use tests::{Families, Host, Lab, Node, Pod, eventually, packet};

/// Longer than any healing takes.
const SOON: Duration = Duration::from_secs(15);

/// UDP port of the tunnel.
const TUNNEL_PORT: u16 = 8472;

/// Of `linux/netfilter.h`.
const NFPROTO_INET: u8 = 1;
const NFPROTO_NETDEV: u8 = 5;

/// The port of a Service or node port.
const SERVICE_PORT: u16 = 30_080;

/// Two nodes with dual stack pods over a dual stack underlay.
fn dual_lab() -> Lab {
    Lab::builder().nodes(2).underlay(Families::Dual).pods(Families::Dual).start()
}

fn running(flags: &[&str]) -> Lab {
    let lab = dual_lab();
    lab.start_daemons_with(flags);
    lab
}

#[expect(clippy::unwrap_used, reason = "a literal that is an address")]
fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The host's address of the same family as `like`.
fn of(host: &Host, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { host.v4() } else { host.v6() }
}

/// The node's end of the tunnel.
fn tunnel(node: &Node, like: IpAddr) -> IpAddr {
    node.tunnel_addresses()[usize::from(like.is_ipv6())]
}

/// The source that the server sees, which TCP and UDP must agree on; getting the answer is part of it.
#[track_caller]
fn seen(client: &Host, server: SocketAddr) -> IpAddr {
    let tcp = client.tcp_source(server);
    assert_eq!(client.udp_source(server), tcp, "UDP and TCP from {} to {server}", client.label());
    tcp
}

/// An address of a Service, one per family.
fn service(v6: bool) -> SocketAddr {
    (ip(if v6 { "fd00:96::10" } else { "10.96.0.10" }), SERVICE_PORT).into()
}

/// Lets the outside and the router know the way to the pods of node 1.
fn teach_the_way_back(lab: &Lab) {
    let node = lab.node(1);
    for cidr in node.pod_cidrs() {
        lab.root().add_route(*cidr, of(&node, cidr.addr()));
    }
}

#[test]
fn a_pod_shows_its_own_address_to_its_own_node() {
    let lab = running(&[]);
    let node = lab.node(1);
    let (pod, server) = (node.add_pod("pod"), node.serve());
    for &address in node.addresses() {
        assert_eq!(seen(&pod, server.at(address)), of(&pod, address), "to the node's {address}");
        let tunnel = tunnel(&node, address);
        assert_eq!(seen(&pod, server.at(tunnel)), of(&pod, address), "to the node's {tunnel}");
    }
}

#[test]
fn a_pod_is_seen_as_its_node_by_another_node() {
    let lab = running(&[]);
    let (own, other) = (lab.node(1), lab.node(2));
    let (pod, server) = (own.add_pod("pod"), other.serve());
    for &address in other.addresses() {
        assert_eq!(seen(&pod, server.at(address)), of(&own, address), "to {address}");
        // The other end of the tunnel is an address of the cluster.
        let tunnel = tunnel(&other, address);
        assert_eq!(seen(&pod, server.at(tunnel)), of(&pod, address), "to {tunnel}");
    }
}

#[test]
fn a_pod_is_seen_as_its_node_outside() {
    let lab = running(&[]);
    let node = lab.node(1);
    let (pod, server) = (node.add_pod("pod"), lab.outside().serve());
    for &address in lab.outside().addresses() {
        assert_eq!(seen(&pod, server.at(address)), of(&node, address), "to {address}");
        assert_eq!(pod.ping(address, 64, 1).answered, 1, "echo of {address}");
    }
}

#[test]
fn pods_show_their_own_addresses_to_pods_near_and_far() {
    let lab = running(&[]);
    let (pod, near, far) =
        (lab.node(1).add_pod("pod"), lab.node(1).add_pod("near"), lab.node(2).add_pod("far"));
    for server_pod in [&near, &far] {
        let server = server_pod.serve();
        for &address in server_pod.addresses() {
            assert_eq!(seen(&pod, server.at(address)), of(&pod, address), "to {address}");
        }
    }
}

#[test]
fn a_node_reaches_pods_without_translation() {
    let lab = running(&[]);
    let node = lab.node(1);
    let (near, far) = (node.add_pod("near"), lab.node(2).add_pod("far"));
    for pod in [&near, &far] {
        let server = pod.serve();
        for &address in pod.addresses() {
            let answer = node.tcp(server.at(address));
            assert!(answer.ok, "{answer:?}");
            assert_eq!(answer.seen, answer.local, "no translation on the way to {address}");
            // The client's own address must not be the underlay's when it goes by the tunnel.
            if pod.v4() == far.v4() {
                assert_eq!(seen(&node, server.at(address)), tunnel(&node, address), "to {address}");
            }
        }
    }
}

#[test]
fn what_a_service_redirects_is_seen_as_where_it_really_comes_from() {
    let lab = running(&[]);
    let node = lab.node(1);
    let (client, near, far) = (node.add_pod("client"), node.add_pod("near"), lab.node(2).add_pod("far"));
    let other = lab.node(2);
    for v6 in [false, true] {
        let like = if v6 { node.v6() } else { node.v4() };
        // One Service per backend: a pod far away, a pod here, another node's process.
        let backends: [(&str, &Host, u16); 3] = [("far", &far, 1), ("near", &near, 2), ("node", &other, 3)];
        for (name, backend, offset) in backends {
            let server = backend.serve();
            let mut service = service(v6);
            service.set_port(SERVICE_PORT + offset);
            node.add_table(
                &Table::new(&format!("service-{name}"), v6).redirect(service, server.at(of(backend, like))),
            );
            let by_node = seen(&node, service);
            let by_pod = seen(&client, service);
            match name {
                "far" => {
                    assert_eq!(by_node, tunnel(&node, like), "a host process to a Service with a far pod");
                    assert_eq!(by_pod, of(&client, like), "a pod to a Service with a far pod");
                }
                "near" => {
                    assert_eq!(by_node, of(&node, like), "a host process to a Service with a near pod");
                    assert_eq!(by_pod, of(&client, like), "a pod to a Service with a near pod");
                }
                _ => {
                    assert_eq!(by_node, of(&node, like), "a host process to a Service on another node");
                    assert_eq!(by_pod, of(&node, like), "a pod to a Service on another node");
                }
            }
        }
    }
}

#[test]
fn a_node_port_brings_outside_clients_to_far_pods_as_the_tunnel_address() {
    let lab = running(&[]);
    let node = lab.node(1);
    let (near, far) = (node.add_pod("near"), lab.node(2).add_pod("far"));
    let (near_server, far_server) = (near.serve(), far.serve());
    let outside = lab.outside();
    for &address in node.addresses() {
        let (to_far, to_near) =
            (SocketAddr::new(address, SERVICE_PORT), SocketAddr::new(address, SERVICE_PORT + 1));
        node.add_table(
            &Table::new("node-ports", address.is_ipv6())
                .redirect(to_far, far_server.at(of(&far, address)))
                .redirect(to_near, near_server.at(of(&near, address))),
        );
        assert_eq!(seen(outside, to_far), tunnel(&node, address), "by the node port at {address}");
        assert_eq!(seen(outside, to_near), of(outside, address), "to a pod behind the node port itself");
    }
}

#[test]
fn a_node_port_that_kube_proxy_marks_works_whoever_masquerades_first() {
    let mark = |address: IpAddr, far: SocketAddr| {
        Table::new("kube-proxy", address.is_ipv6())
            .mark(address, 0x4000)
            .redirect((address, SERVICE_PORT).into(), far)
            .masquerade_marked(0x4000)
    };
    // Chains of one priority run in the order in which they came.
    for first in ["kube-proxy", "overlayd"] {
        let lab = dual_lab();
        let (node, far) = (lab.node(1), lab.node(2));
        let add_tables = || {
            for &address in node.addresses() {
                // The far end of the tunnel, whose address is known before any daemon runs, stands for a far pod.
                node.add_table(&mark(address, SocketAddr::new(tunnel(&far, address), 7_777)));
            }
        };
        if first == "kube-proxy" {
            add_tables();
        }
        lab.start_daemons();
        if first == "overlayd" {
            add_tables();
        }
        let _server = far.serve_on(7_777);
        for &address in node.addresses() {
            let by = SocketAddr::new(address, SERVICE_PORT);
            assert_eq!(seen(lab.outside(), by), tunnel(&node, address), "{first} first");
        }
    }
}

/// Where outside marked traffic goes to: one address per mark.
const MARKED: [(u8, u32); 4] = [(21, 0x4000), (22, 0xffff_ffff), (23, 0xc001), (24, 0xffff_bfff)];

/// What the outside sees of a pod's connections with each of the marks.
fn seen_by_mark(flags: &[&str]) -> (Lab, Pod, Vec<(u32, IpAddr)>) {
    let lab = running(flags);
    teach_the_way_back(&lab);
    let (node, outside) = (lab.node(1), lab.outside());
    let pod = node.add_pod("pod");
    let mut tables = [Table::new("marks", false), Table::new("marks", true)];
    let mut targets = Vec::new();
    for (host, mark) in MARKED {
        let v4 = IpNet::new_assert(ip(&format!("198.51.100.{host}")), 24);
        let v6 = IpNet::new_assert(ip(&format!("2001:db8:2::{host}")), 64);
        for (table, net) in tables.iter_mut().zip([v4, v6]) {
            outside.add_address("eth0", net);
            *table = table.clone().mark(net.addr(), mark);
            targets.push((mark, net.addr()));
        }
    }
    tables.iter().for_each(|table| node.add_table(table));
    let server = outside.serve();
    // A new IPv6 address serves after duplicate address detection.
    for (_, target) in &targets {
        eventually("the address serves", SOON, || node.tcp(server.at(*target)).ok);
    }
    let seen = targets.iter().map(|(mark, target)| (*mark, seen(&pod, server.at(*target)))).collect();
    (lab, pod, seen)
}

#[test]
fn what_kube_proxy_marked_is_left_to_kube_proxy_whatever_other_bits_say() {
    let (lab, pod, seen) = seen_by_mark(&[]);
    assert_eq!(seen.len(), 8);
    for (mark, source) in seen {
        // No kube-proxy is here to masquerade it, so the bare address shows that we left it alone.
        let expected: &Host = if mark & 0x4000 != 0 { &pod } else { &lab.node(1) };
        assert_eq!(source, of(expected, source), "mark {mark:#x}");
    }
}

#[test]
fn another_mark_bit_can_be_kube_proxys() {
    let (lab, pod, seen) = seen_by_mark(&["--masquerade-mark", "0x8000"]);
    for (mark, source) in seen {
        let expected: &Host = if mark & 0x8000 != 0 { &pod } else { &lab.node(1) };
        assert_eq!(source, of(expected, source), "mark {mark:#x}");
    }
}

#[test]
fn mark_bit_zero_ignores_all_marks() {
    let (lab, _, seen) = seen_by_mark(&["--masquerade-mark", "0"]);
    for (mark, source) in seen {
        assert_eq!(source, of(&lab.node(1), source), "mark {mark:#x}");
    }
}

#[test]
fn exempted_destinations_see_the_pod_and_others_the_node() {
    let lab = running(&["--no-masquerade-cidrs", "198.51.100.0/24,2001:db8:2::/64"]);
    teach_the_way_back(&lab);
    let (node, other) = (lab.node(1), lab.node(2));
    let pod = node.add_pod("pod");
    let (outside, other_server) = (lab.outside().serve(), other.serve());
    for &address in lab.outside().addresses() {
        assert_eq!(seen(&pod, outside.at(address)), of(&pod, address), "to {address}");
        let other_address = of(&other, address);
        assert_eq!(seen(&pod, other_server.at(other_address)), of(&node, address), "to {other_address}");
    }
}

#[test]
fn multicast_keeps_its_source() {
    let lab = running(&[]);
    let node = lab.node(1);
    let source = SocketAddr::new(ip("10.244.1.77"), 5353);
    let packets = [ip("239.1.2.3"), ip("198.51.100.10")].map(|destination| {
        packet::udp(source, SocketAddr::new(destination, 5353), b"to a group, and to a host")
    });
    let sniffer = lab.root().sniff("n1");
    node.inject_all(&packets);
    // Behind both on the same wire.
    assert_eq!(node.ping(lab.outside().v4(), 64, 1).answered, 1);
    let mut seen: Vec<(Option<IpAddr>, Option<IpAddr>)> = sniffer
        .stop()
        .into_iter()
        .filter(|packet| packet.incoming && packet.destination_port == 5353)
        .map(|packet| (packet.destination, packet.source))
        .collect();
    seen.sort();
    // The other one shows that rules were looked at.
    let expected = [(Some(ip("198.51.100.10")), Some(node.v4())), (Some(ip("239.1.2.3")), Some(source.ip()))];
    assert_eq!(seen, expected);
}

/// Flags of every masquerade statement of our table.
fn masquerade_flags(node: &Node) -> Vec<Vec<u8>> {
    let rules = own(node).into_iter().filter(|object| object.kind == NEW_RULE);
    let statements = rules.flat_map(|rule| rule.expressions());
    statements.filter(|(name, _)| name == "masq").map(|(_, data)| data).collect()
}

#[test]
fn source_ports_are_fully_random_unless_told_otherwise() {
    let lab = dual_lab();
    lab.node(1).start_daemon();
    lab.node(2).start_daemon_with(&["--masquerade-fully-random", "false"]);
    // NFTA_MASQ_FLAGS with NF_NAT_RANGE_PROTO_RANDOM_FULLY. Two rules per family.
    let random: Vec<u8> = [&[8, 0, 1, 0][..], &[0, 0, 0, 16]].concat();
    assert_eq!(masquerade_flags(&lab.node(1)), vec![random; 4]);
    let plain = masquerade_flags(&lab.node(2));
    assert_eq!(plain.len(), 4);
    assert!(plain.iter().all(|data| data.is_empty() || data[4..] == [0; 4]), "{plain:?}");
    // A change of mind is carried out too.
    lab.node(2).kill_daemon();
    lab.node(2).start_daemon();
    assert_eq!(masquerade_flags(&lab.node(2)), masquerade_flags(&lab.node(1)));
}

fn is_own(object: &Object) -> bool {
    [NFPROTO_INET, NFPROTO_NETDEV].contains(&object.family) && object.table() == TABLE
}

fn foreign(node: &Node) -> Vec<Object> {
    node.firewall().into_iter().filter(|object| !is_own(object)).collect()
}

fn own(node: &Node) -> Vec<Object> {
    node.firewall().into_iter().filter(is_own).collect()
}

#[test]
fn tables_of_others_stay_as_they_are_to_the_byte() {
    let lab = dual_lab();
    let node = lab.node(1);
    for v6 in [false, true] {
        // Also one of our name: another family makes it another table.
        let address = if v6 { node.v6() } else { node.v4() };
        for name in ["kube-proxy", "overlayd"] {
            node.add_table(
                &Table::new(name, v6)
                    .mark(address, 0x4000)
                    .redirect((address, 443).into(), (address, 6443).into())
                    .masquerade_marked(0x4000),
            );
        }
    }
    let before = foreign(&node);
    assert_eq!(before.iter().filter(|object| object.kind == NEW_TABLE).count(), 4);
    lab.start_daemons();
    let pod = node.add_pod("pod");
    assert!(!own(&node).is_empty());
    assert_eq!(foreign(&node), before, "after the start");

    node.delete_table(TABLE);
    let is_back = |object: &Object| object.family == NFPROTO_INET && object.kind == NEW_RULE;
    eventually("our table is back", SOON, || own(&node).iter().any(is_back));
    assert_eq!(foreign(&node), before, "after a repair");
    let server = lab.outside().serve();
    assert_eq!(seen(&pod, server.v4()), node.v4(), "the repaired table works");

    node.stop_daemon();
    assert!(pod.del().success());
    node.overlayd(&["cleanup"]).run();
    assert_eq!(own(&node), []);
    assert_eq!(foreign(&node), before, "after cleanup");
}

#[test]
fn a_pod_cannot_play_its_nodes_end_of_the_tunnel() {
    let lab = running(&[]);
    let (node, other) = (lab.node(1), lab.node(2));
    let (pod, target) = (node.add_pod("pod"), other.add_pod("target"));
    let sniffer = other.sniff("ovl0");
    for &address in other.addresses() {
        // As the node itself would say it: masqueraded, this would be a datagram of a known peer.
        let spoken_for = SocketAddr::new(tunnel(&node, ip("10.244.1.0")), 5000);
        let inner = packet::udp(spoken_for, (target.v4(), 5001).into(), b"not from the node");
        let forged = packet::vxlan(1, vtep_mac("node-1"), vtep_mac("node-2"), &inner);
        let own = SocketAddr::new(of(&pod, address), 40_000);
        pod.inject_udp(own, (address, TUNNEL_PORT).into(), &forged);
    }
    assert_eq!(pod.ping(target.v4(), 64, 1).answered, 1);
    let arrived: Vec<_> = sniffer.stop().into_iter().filter(|packet| packet.incoming).collect();
    assert!(arrived.iter().all(|packet| packet.source == Some(pod.v4())), "{arrived:?}");

    // Outside the cluster the port is as good as any other.
    let outside = lab.outside().serve_on(TUNNEL_PORT);
    for &address in lab.outside().addresses() {
        assert_eq!(seen(&pod, outside.at(address)), of(&node, address), "to {address}");
    }
}

#[test]
fn modes_that_do_not_exist_yet_are_refused_by_name() {
    let lab = Lab::builder().nodes(1).start();
    for mode in ["flat", "isolated", "archipelago"] {
        let output = lab.node(1).daemon_command().args(["--mode", mode]).output();
        assert!(output.exit.code.is_some_and(|code| code != 0), "{output}");
        assert!(output.stderr.contains(mode) && output.stderr.contains("island"), "{output}");
    }
    assert!(own(&lab.node(1)).is_empty(), "nothing was touched");
}

#[test]
fn flows_that_went_bare_while_our_table_was_missing_are_masqueraded_after_the_repair() {
    let lab = running(&[]);
    let node = lab.node(1);
    let pod = node.add_pod("pod");
    let server = lab.outside().serve();
    // Somebody who translates addresses keeps connection tracking going while we are not there.
    for v6 in [false, true] {
        node.add_table(&Table::new("kube-proxy", v6).masquerade_marked(0x4000));
    }
    node.kill_daemon();
    node.delete_table(TABLE);
    let streams = [pod.udp_stream(server.v4()), pod.udp_stream(server.v6())];
    for &address in lab.outside().addresses() {
        let ping = pod.ping(address, 64, 1);
        assert_eq!(ping.answered, 0, "nothing masquerades now, and {address} knows no way back");
    }

    node.restart_daemon();
    eventually("bare flows are forgotten", SOON, || node.status().reconcile.conntrack_deleted >= 2);
    let through = |address: IpAddr| {
        let sniffer = lab.outside().sniff("eth0");
        let _ = lab.outside().ping(of(&node, address), 64, 1);
        let mut packets = sniffer.stop().into_iter();
        packets.any(|packet| {
            packet.incoming
                && packet.source == Some(of(&node, address))
                && packet.destination_port == server.port()
        })
    };
    for &address in lab.outside().addresses() {
        eventually("the same flow comes as the node", SOON, || through(address));
    }
    for stream in streams {
        let result = stream.stop();
        assert!(result.answered > 0 && result.answered < result.sent, "{result:?}");
    }
}
