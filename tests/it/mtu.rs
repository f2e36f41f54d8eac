//! Sizes and congestion marks: what fits passes, what does not is answered with the right number, and nothing is
//! lost behind a path that is narrower than its ends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use overlayd::core::cluster::vtep_mac;
use tests::traffic::{Packet, UdpProbe};
use tests::{Families, Host, Lab, Node, NodeSpec, Offloads, Pod, Sniffer, eventually, packet};

/// Longer than a status or a kernel change takes to be seen.
const SOON: Duration = Duration::from_secs(15);

/// UDP port of the tunnel.
const PORT: u16 = 8472;

/// Bytes of the IP and UDP headers in front of a payload.
fn headers(address: IpAddr) -> usize {
    if address.is_ipv4() { 28 } else { 48 }
}

/// A client pod on the first node and a server pod on the second.
fn pods(lab: &Lab) -> (Pod, Pod) {
    (lab.node(1).add_pod("client"), lab.node(2).add_pod("server"))
}

fn dual_pods() -> Lab {
    let lab = Lab::builder().nodes(2).pods(Families::Dual).start();
    lab.start_daemons();
    lab
}

/// Sends a datagram whose whole IP packet has this many bytes, not to be fragmented.
#[track_caller]
fn probe(client: &Host, server: SocketAddr, mtu: u32) -> UdpProbe {
    client.udp_df(server, mtu as usize - headers(server.ip()))
}

#[track_caller]
fn passes(client: &Host, server: SocketAddr, mtu: u32) {
    let answer = probe(client, server, mtu);
    assert_eq!((answer.answered, answer.icmp.len()), (1, 0), "{mtu} bytes to {server}: {answer:?}");
}

/// One byte over `mtu` is answered by an ICMP error that names `mtu`.
#[track_caller]
fn is_told(client: &Host, server: SocketAddr, mtu: u32) {
    let answer = probe(client, server, mtu + 1);
    assert_eq!(answer.answered, 0, "{} bytes to {server}: {answer:?}", mtu + 1);
    let named: Vec<Option<u32>> = answer.icmp.iter().map(|icmp| icmp.mtu).collect();
    assert_eq!(named, [Some(mtu)], "{} bytes to {server}: {answer:?}", mtu + 1);
}

/// MTU towards the only peer, from status.
fn peer_mtu(node: &Node) -> u32 {
    node.status().peers[0].mtu
}

#[test]
fn a_datagram_of_2000_bytes_crosses_in_fragments() {
    let lab = dual_pods();
    let (client, server) = pods(&lab);
    let service = server.serve();
    for &address in server.addresses() {
        let sniffer = lab.node(1).sniff("ovl0");
        let answer = client.udp(service.at(address), 2000);
        assert_eq!((answer.sent, answer.answered), (1, 1), "{answer:?}");
        let own = if address.is_ipv4() { client.v4() } else { client.v6() };
        assert_eq!(answer.seen.map(|seen| seen.ip()), Some(own));
        let is_fragment = |packet: &Packet| match address {
            // More fragments, or an offset (RFC 791, section 3.1).
            IpAddr::V4(_) => packet.bytes[6] & 0x3f != 0 || packet.bytes[7] != 0,
            // The fragment header (RFC 8200, section 4.5).
            IpAddr::V6(_) => packet.protocol == 44,
        };
        // The device itself greets its routers now and then.
        let mut packets = sniffer.stop();
        packets.retain(|packet| [Some(own), Some(address)].contains(&packet.source));
        let ways = [false, true].map(|incoming| {
            let same_way = packets.iter().filter(|packet| packet.incoming == incoming);
            same_way.filter(|packet| is_fragment(packet)).count()
        });
        assert_eq!(ways, [2, 2], "two fragments there and two back: {packets:?}");
    }
}

#[test]
fn a_packet_of_the_mtu_passes_and_one_more_byte_is_too_big_for_the_pod() {
    let lab = dual_pods();
    let (client, server) = pods(&lab);
    let service = server.serve();
    assert_eq!(lab.node(1).status().mtu, 1450);
    for &address in server.addresses() {
        passes(&client, service.at(address), 1450);
        // The pod's own interface has the right MTU already.
        let answer = probe(&client, service.at(address), 1451);
        assert_eq!((answer.answered, answer.local_too_big), (0, Some(1450)), "{answer:?}");
    }
}

#[test]
fn a_pod_with_a_larger_interface_is_told_the_mtu_by_icmp() {
    let lab = dual_pods();
    let (client, server) = pods(&lab);
    let service = server.serve();
    lab.node(1).set_link_mtu(&client.host_link(), 1500);
    client.set_link_mtu("eth0", 1500);
    for &address in server.addresses() {
        passes(&client, service.at(address), 1450);
        is_told(&client, service.at(address), 1450);
    }
}

/// Nodes with this underlay MTU give their pods that inner MTU.
fn underlay_mtu_gives(underlay: Families, outer: u32, inner: u32) {
    let builder = Lab::builder().underlay(underlay).pods(Families::Dual);
    let lab = builder.node(|spec| spec.mtu(outer)).node(|spec| spec.mtu(outer)).start();
    lab.start_daemons();
    let (client, server) = pods(&lab);
    let service = server.serve();
    for node in lab.nodes() {
        assert_eq!((node.status().mtu, peer_mtu(node)), (inner, inner), "{}", node.name());
    }
    for &address in server.addresses() {
        passes(&client, service.at(address), inner);
        let answer = probe(&client, service.at(address), inner + 1);
        assert_eq!((answer.answered, answer.local_too_big), (0, Some(inner)), "{answer:?}");
        let bulk = client.tcp_upload(service.at(address), 1_000_000);
        assert_eq!(bulk.sent_sha256, bulk.received_sha256);
    }
}

#[test]
fn an_underlay_of_9000_bytes_gives_8950_inside() {
    underlay_mtu_gives(Families::V4, 9000, 8950);
}

#[test]
fn an_underlay_of_1400_bytes_gives_1350_inside() {
    underlay_mtu_gives(Families::V4, 1400, 1350);
}

#[test]
fn an_ipv6_underlay_of_1400_bytes_gives_1330_inside() {
    underlay_mtu_gives(Families::V6, 1400, 1330);
}

#[test]
fn pods_learn_by_icmp_that_the_underlay_became_smaller() {
    let lab = dual_pods();
    let (client, server) = pods(&lab);
    let service = server.serve();
    let node = lab.node(1);
    passes(&client, service.v4(), 1450);
    node.set_link_mtu("eth0", 1400);
    eventually("status shows the smaller MTU", SOON, || {
        let status = node.status();
        (status.mtu, status.peers[0].mtu) == (1350, 1350)
    });
    for &address in server.addresses() {
        is_told(&client, service.at(address), 1350);
        passes(&client, service.at(address), 1350);
    }
    // New pods are born with it.
    let young = node.add_pod("young");
    let answer = probe(&young, service.v4(), 1351);
    assert_eq!(answer.local_too_big, Some(1350), "{answer:?}");
}

/// Two nodes whose uplinks promise 1500 bytes, with a router between them that carries 1400.
fn a_narrow_path_is_found(underlay: Families, inner: u32) {
    let builder = Lab::builder().underlay(underlay).pods(Families::Dual);
    let lab = builder.nodes(1).node(NodeSpec::behind_router).router_mtu(1400).start();
    lab.start_daemons();
    let (client, server) = pods(&lab);
    let service = server.serve();
    let promised = lab.node(1).status().mtu;
    for node in lab.nodes() {
        assert_eq!(peer_mtu(node), promised, "nothing is known yet");
    }
    // The first traffic of all, each way in a family of its own: a pod that was told once says so to its peers.
    for bulk in [client.tcp_upload(service.v4(), 2_000_000), client.tcp_download(service.v6(), 2_000_000)] {
        assert_eq!(bulk.bytes, 2_000_000);
        assert_eq!(bulk.sent_sha256, bulk.received_sha256);
    }
    for node in lab.nodes() {
        eventually("status shows the narrow path", SOON, || peer_mtu(node) == inner);
        assert_eq!(node.status().mtu, promised, "only the way to that peer is narrow");
    }
    // Pods that have sent nothing yet are told by their node.
    for (node, target) in [(lab.node(1), &server), (lab.node(2), &client)] {
        let (pod, service) = (node.add_pod("young"), target.serve());
        for &address in target.addresses() {
            is_told(&pod, service.at(address), inner);
            passes(&pod, service.at(address), inner);
        }
    }
    let drops = lab.nodes().iter().map(|node| node.drops("send_too_big") + node.drops("send_failed"));
    assert_eq!(drops.sum::<u64>(), 0);
}

#[test]
fn a_narrow_router_costs_no_connection_and_becomes_known() {
    a_narrow_path_is_found(Families::V4, 1350);
}

#[test]
fn a_narrow_router_of_an_ipv6_underlay_costs_no_connection_and_becomes_known() {
    a_narrow_path_is_found(Families::V6, 1330);
}

/// ECN codepoints (RFC 3168, section 5).
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

fn set_tos(packet: &mut [u8], tos: u8) {
    if packet[0] >> 4 == 4 {
        packet[1] = tos;
        packet[10..12].fill(0);
        let sum = packet::checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[0] = 0x60 | tos >> 4;
        packet[1] = tos << 4 | packet[1] & 0x0f;
    }
}

/// A packet from pod to pod with this type of service, told apart by its port.
fn marked(from: IpAddr, to: IpAddr, tos: u8, port: u16) -> Vec<u8> {
    let mut packet = packet::udp((from, 5000).into(), (to, port).into(), b"marked");
    set_tos(&mut packet, tos);
    packet
}

/// Shows `look` every packet that passes from `send` on, until it has seen enough. The next sniffer listens before the
/// last one ends, so none is missed; some that pass in between are shown twice.
fn gather(sniff: impl Fn() -> Sniffer, send: impl FnOnce(), mut look: impl FnMut(&Packet) -> bool) {
    let mut sniffer = sniff();
    send();
    eventually("all packets pass", SOON, || {
        let next = sniff();
        let packets = std::mem::replace(&mut sniffer, next).stop();
        packets.iter().any(&mut look)
    });
}

fn outer_ecn_copies_inner(underlay: Families) {
    // An uplink that segments, or several datagrams of one batch would pass as one.
    let builder = Lab::builder().underlay(underlay).pods(Families::Dual);
    let lab = builder.node(|spec| spec.offloads(Offloads::Wire)).nodes(1).start();
    lab.start_daemons();
    let (client, server) = pods(&lab);
    // DSCP 46 (expedited forwarding) in half of them: it stays inside.
    let all = [NOT_ECT, ECT_1, ECT_0, CE, 0xb8 | NOT_ECT, 0xb8 | ECT_1, 0xb8 | ECT_0, 0xb8 | CE];
    for (from, to) in [(client.v4(), server.v4()), (client.v6(), server.v6())] {
        let packets: Vec<Vec<u8>> =
            all.iter().zip(6000..).map(|(tos, port)| marked(from, to, *tos, port)).collect();
        let outer_length = if underlay == Families::V6 { 40 } else { 20 } + 8 + 22;
        let port_at = if to.is_ipv4() { 22 } else { 42 };
        let mut seen = BTreeSet::new();
        let watch = || lab.root().sniff("n1");
        gather(
            watch,
            || client.inject_all(&packets),
            |packet| {
                let port = packet.bytes.get(outer_length + port_at..).and_then(|rest| rest.first_chunk());
                let port =
                    port.map(|port| u16::from_be_bytes(*port)).filter(|port| (6000..6100).contains(port));
                if let (Some(port), PORT, true) = (port, packet.destination_port, packet.incoming) {
                    seen.insert((port, packet.tos));
                }
                seen.len() >= all.len()
            },
        );
        let expected: BTreeSet<(u16, u8)> = (6000..).zip(all.map(|tos| tos & 3)).collect();
        assert_eq!(seen, expected, "from {from}");
    }
}

#[test]
fn the_outer_header_copies_the_ecn_field_and_nothing_else() {
    outer_ecn_copies_inner(Families::V4);
}

#[test]
fn the_outer_ipv6_header_copies_the_ecn_field_and_nothing_else() {
    outer_ecn_copies_inner(Families::V6);
}

fn inner_ecn_takes_the_outer_mark(underlay: Families) {
    let lab = Lab::builder().nodes(2).underlay(underlay).pods(Families::Dual).start();
    lab.start_daemons();
    let (client, server) = pods(&lab);
    // Inner, outer, what comes out (RFC 6040, section 4.2, figure 4); with and without DSCP inside.
    let table = [
        (NOT_ECT, NOT_ECT, NOT_ECT),
        (NOT_ECT, ECT_0, NOT_ECT),
        (NOT_ECT, ECT_1, NOT_ECT),
        (ECT_0, NOT_ECT, ECT_0),
        (ECT_0, ECT_0, ECT_0),
        (ECT_0, ECT_1, ECT_1),
        (ECT_0, CE, CE),
        (0xb8 | ECT_0, CE, 0xb8 | CE),
        (ECT_1, NOT_ECT, ECT_1),
        (ECT_1, ECT_0, ECT_1),
        (ECT_1, ECT_1, ECT_1),
        (ECT_1, CE, CE),
        (CE, NOT_ECT, CE),
        (CE, ECT_0, CE),
        (CE, ECT_1, CE),
        (CE, CE, CE),
    ];
    let underlay_of = |node: Node| if underlay == Families::V6 { node.v6() } else { node.v4() };
    let (outer_from, outer_to) = (underlay_of(lab.node(1)), underlay_of(lab.node(2)));
    for (from, to) in [(client.v4(), server.v4()), (client.v6(), server.v6())] {
        let packets: Vec<Vec<u8>> = table
            .iter()
            .zip(6000..)
            .map(|((inner, outer, _), port)| {
                let inner = marked(from, to, *inner, port);
                let payload = packet::vxlan(1, vtep_mac("node-1"), vtep_mac("node-2"), &inner);
                let mut ip = packet::udp((outer_from, 40_000).into(), (outer_to, PORT).into(), &payload);
                set_tos(&mut ip, *outer);
                ip
            })
            .collect();
        let mut seen = BTreeSet::new();
        gather(
            || server.sniff("eth0"),
            || lab.root().inject_all(&packets),
            |packet| {
                if packet.incoming && packet.destination_port >= 6000 {
                    seen.insert((packet.destination_port, packet.tos));
                }
                seen.len() >= table.len()
            },
        );
        let expected: BTreeSet<(u16, u8)> = (6000..).zip(table.map(|(_, _, out)| out)).collect();
        assert_eq!(seen, expected, "to {to}");
    }
    assert_eq!(lab.node(2).drops("ecn_not_capable"), 0);
}

#[test]
fn congestion_marked_on_the_way_arrives_inside() {
    inner_ecn_takes_the_outer_mark(Families::V4);
}

#[test]
fn congestion_marked_on_an_ipv6_underlay_arrives_inside() {
    inner_ecn_takes_the_outer_mark(Families::V6);
}
