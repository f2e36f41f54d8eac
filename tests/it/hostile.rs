//! What must not come in: every kind of bad datagram is dropped, counted under its own reason and under no other,
//! never shows on the TUN device, and does not hurt the good packet behind it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use overlayd::core::cluster::vtep_mac;
use tests::{Families, Lab, Node, Pod, eventually, packet};
use wire::packet::MacAddr;

/// UDP port of the tunnel.
const PORT: u16 = 8472;

/// A datagram of the attacker.
struct Datagram {
    /// Outer source; the attacker's own address if `None`.
    source: Option<IpAddr>,
    /// Outer type of service.
    tos: u8,
    payload: Vec<u8>,
}

impl From<Vec<u8>> for Datagram {
    fn from(payload: Vec<u8>) -> Self {
        Self { source: None, tos: 0, payload }
    }
}

/// Two nodes: the first is a peer gone bad, the second the victim. The victim has one worker, so that it looks at
/// datagrams in the order in which they arrive.
struct Arena {
    lab: Lab,
    underlay: Families,
    client: Pod,
    server: Pod,
}

impl Arena {
    fn new(underlay: Families) -> Self {
        let lab = Lab::builder().nodes(2).underlay(underlay).pods(Families::Dual).start();
        lab.node(1).launch_daemon(&[]);
        lab.node(2).launch_daemon(&["--workers", "1"]);
        lab.nodes().iter().for_each(Node::wait_ready);
        let (client, server) = (lab.node(1).add_pod("client"), lab.node(2).add_pod("server"));
        Self { lab, underlay, client, server }
    }

    fn attacker(&self) -> Node {
        self.lab.node(1)
    }

    fn victim(&self) -> Node {
        self.lab.node(2)
    }

    fn address(&self, node: &Node) -> IpAddr {
        if self.underlay == Families::V6 { node.v6() } else { node.v4() }
    }

    /// A packet that the victim would take: from pod to pod.
    fn good(&self, v6: bool) -> Vec<u8> {
        let (source, destination) =
            if v6 { (self.client.v6(), self.server.v6()) } else { (self.client.v4(), self.server.v4()) };
        inner(source, destination)
    }

    /// It, as the victim's peer would send it.
    fn sealed(&self, inner: &[u8]) -> Vec<u8> {
        packet::vxlan(1, vtep_mac("node-1"), vtep_mac("node-2"), inner)
    }

    fn send(&self, datagrams: &[Datagram]) {
        let (attacker, victim) = (self.attacker(), self.victim());
        let packets: Vec<Vec<u8>> = datagrams
            .iter()
            .map(|datagram| {
                let source = datagram.source.unwrap_or_else(|| self.address(&attacker));
                let destination = SocketAddr::new(self.address(&victim), PORT);
                let mut ip = packet::udp(SocketAddr::new(source, 40_000), destination, &datagram.payload);
                // The kernel sums up an IPv4 header itself.
                match source {
                    IpAddr::V4(_) => ip[1] = datagram.tos,
                    IpAddr::V6(_) => (ip[0], ip[1]) = (0x60 | datagram.tos >> 4, datagram.tos << 4),
                }
                ip
            })
            .collect();
        // From the router: the attacker's own rules would give a pod's address as source the node's.
        self.lab.root().inject_all(&packets);
    }

    /// Drops of the way in. The way out is not looked at: a kernel talks to its routers now and then.
    fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = self.victim().status().drops;
        drops.retain(|reason, _| !reason.starts_with("egress_"));
        drops
    }

    /// Sends them, then a good packet, which must be the only one that reaches the TUN device; what was counted.
    #[track_caller]
    fn counted(&self, datagrams: &[Datagram]) -> BTreeMap<String, u64> {
        let before = self.drops();
        let sniffer = self.victim().sniff("ovl0");
        self.send(datagrams);
        let ping = self.client.ping(self.server.v4(), 64, 1);
        assert_eq!(ping.answered, 1, "a good packet behind the bad ones: {ping:?}");
        let arrived: Vec<_> = sniffer.stop().into_iter().filter(|packet| packet.incoming).collect();
        assert_eq!(arrived.len(), 1, "only the good packet reaches the TUN device: {arrived:?}");
        assert_eq!((arrived[0].source, arrived[0].protocol), (Some(self.client.v4()), 1));
        let mut counted = BTreeMap::new();
        eventually("every datagram is counted", Duration::from_secs(10), || {
            counted = self.drops();
            for (reason, count) in &mut counted {
                *count -= before[reason];
            }
            counted.retain(|_, count| *count > 0);
            counted.values().sum::<u64>() >= datagrams.len() as u64
        });
        counted
    }

    /// Sends them and sees each counted under this reason and nothing else.
    #[track_caller]
    fn refuses(&self, reason: &str, datagrams: impl IntoIterator<Item = impl Into<Datagram>>) {
        let datagrams: Vec<Datagram> = datagrams.into_iter().map(Into::into).collect();
        let expected = BTreeMap::from([(reason.to_owned(), datagrams.len() as u64)]);
        assert_eq!(self.counted(&datagrams), expected);
    }
}

/// A UDP packet to a port where nobody listens.
fn inner(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    packet::udp((source, 5000).into(), (destination, 5001).into(), b"inner payload")
}

#[expect(clippy::unwrap_used, reason = "a literal that is an address")]
fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn spoofed(arena: &Arena) -> Vec<Vec<u8>> {
    let sources =
        ["10.244.2.77", "10.244.3.1", "198.51.100.10", "192.0.2.11", "127.0.0.1", "0.0.0.0", "224.0.0.1"];
    let v4 = sources.iter().map(|source| inner(ip(source), arena.server.v4()));
    let sources =
        ["fd00:10:244:2::77", "fd00:10:244:3::1", "2001:db8:2::a", "fe80::1", "::1", "ff02::1", "::"];
    let v6 = sources.iter().map(|source| inner(ip(source), arena.server.v6()));
    v4.chain(v6).map(|packet| arena.sealed(&packet)).collect()
}

#[test]
fn an_inner_source_that_the_peer_does_not_own_is_a_spoofed_source() {
    let arena = Arena::new(Families::V4);
    arena.refuses("spoofed_source", spoofed(&arena));
}

fn from_strangers(arena: &Arena) -> Vec<Datagram> {
    let sources: &[&str] = match arena.underlay {
        Families::V6 => &["2001:db8:1::99", "2001:db8:1::1"],
        // Somebody on the subnet, the router, a host outside, a pod of the attacker.
        _ => &["192.0.2.99", "192.0.2.1", "198.51.100.10", "10.244.1.9"],
    };
    let payload = arena.sealed(&arena.good(false));
    sources
        .iter()
        .map(|source| Datagram { source: Some(ip(source)), tos: 0, payload: payload.clone() })
        .collect()
}

#[test]
fn an_outer_source_that_is_no_peer_is_an_unknown_source() {
    let arena = Arena::new(Families::V4);
    arena.refuses("unknown_source", from_strangers(&arena));
}

fn of_other_networks(arena: &Arena) -> Vec<Vec<u8>> {
    [0, 2, 0x0100, 0x01_0000, 0xff_ffff]
        .iter()
        .map(|vni| packet::vxlan(*vni, vtep_mac("node-1"), vtep_mac("node-2"), &arena.good(false)))
        .collect()
}

#[test]
fn another_vni_is_a_wrong_vni() {
    let arena = Arena::new(Families::V4);
    arena.refuses("wrong_vni", of_other_networks(&arena));
}

fn with_other_flags(arena: &Arena) -> Vec<Vec<u8>> {
    // No I flag; GBP (draft-smith-vxlan-group-policy); GPE's P and version bits; each reserved byte.
    let changes = [(0, 0x00), (0, 0x88), (0, 0x0c), (0, 0x18), (0, 0xff), (1, 1), (2, 0x80), (3, 1), (7, 1)];
    changes
        .iter()
        .map(|(at, value)| {
            let mut payload = arena.sealed(&arena.good(false));
            payload[*at] = *value;
            payload
        })
        .collect()
}

#[test]
fn flags_other_than_plain_vxlan_are_bad_flags() {
    let arena = Arena::new(Families::V4);
    arena.refuses("bad_flags", with_other_flags(&arena));
}

fn to_mac(arena: &Arena, destination: [u8; 6]) -> Vec<u8> {
    packet::vxlan(1, vtep_mac("node-1"), MacAddr(destination), &arena.good(false))
}

fn to_other_machines(arena: &Arena) -> Vec<Vec<u8>> {
    let mut almost = vtep_mac("node-2").0;
    almost[5] ^= 1;
    [almost, vtep_mac("node-1").0, [0; 6], [2, 0, 0, 0, 0, 1]].map(|mac| to_mac(arena, mac)).into()
}

#[test]
fn an_inner_ethernet_address_of_another_machine_is_not_our_mac() {
    let arena = Arena::new(Families::V4);
    arena.refuses("not_our_mac", to_other_machines(&arena));
}

fn to_groups(arena: &Arena) -> Vec<Vec<u8>> {
    let mut arp = to_mac(arena, [0xff; 6]);
    arp[20..22].copy_from_slice(&[0x08, 0x06]);
    let groups = [[0xff; 6], [0x01, 0x00, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]];
    groups.iter().map(|mac| to_mac(arena, *mac)).chain([arp]).collect()
}

#[test]
fn a_frame_to_an_ethernet_group_is_an_inner_broadcast() {
    let arena = Arena::new(Families::V4);
    arena.refuses("inner_broadcast", to_groups(&arena));
}

#[test]
fn a_datagram_shorter_than_the_headers_is_truncated_at_every_length() {
    let arena = Arena::new(Families::V4);
    let whole = arena.sealed(&arena.good(false));
    arena.refuses("truncated", (0..22).map(|length| whole[..length].to_vec()));
}

#[test]
fn an_inner_packet_shorter_than_it_says_is_malformed_at_every_length() {
    let arena = Arena::new(Families::V4);
    let cut = |v6| {
        let whole = arena.sealed(&arena.good(v6));
        (22..whole.len()).map(|length| whole[..length].to_vec()).collect::<Vec<_>>()
    };
    arena.refuses("malformed_inner", [cut(false), cut(true)].concat());
}

fn of_other_protocols(arena: &Arena) -> Vec<Vec<u8>> {
    // ARP, VLAN, MPLS, LLDP, a length instead of a type.
    [0x0806_u16, 0x8100, 0x8847, 0x88cc, 0x0040]
        .iter()
        .map(|ethertype| {
            let mut payload = arena.sealed(&arena.good(false));
            payload[20..22].copy_from_slice(&ethertype.to_be_bytes());
            payload
        })
        .collect()
}

#[test]
fn arp_and_other_ethertypes_are_not_ip() {
    let arena = Arena::new(Families::V4);
    arena.refuses("not_ip", of_other_protocols(&arena));
}

fn to_elsewhere(arena: &Arena) -> Vec<Vec<u8>> {
    let v4 = ["10.244.3.1", "10.244.1.5", "198.51.100.10", "192.0.2.12", "127.0.0.1", "169.254.1.1"];
    let v4 = v4.iter().map(|destination| inner(arena.client.v4(), ip(destination)));
    let v6 = ["fd00:10:244:3::1", "2001:db8:2::a", "::1", "fe80::1"];
    let v6 = v6.iter().map(|destination| inner(arena.client.v6(), ip(destination)));
    v4.chain(v6).map(|packet| arena.sealed(&packet)).collect()
}

#[test]
fn an_inner_destination_that_is_not_here_is_not_ours() {
    let arena = Arena::new(Families::V4);
    arena.refuses("not_ours", to_elsewhere(&arena));
}

fn to_inner_groups(arena: &Arena) -> Vec<Vec<u8>> {
    let v4 = ["224.0.0.1", "239.255.255.250", "255.255.255.255"];
    let v4 = v4.iter().map(|destination| inner(arena.client.v4(), ip(destination)));
    let v6 = ["ff02::1", "ff0e::1"].iter().map(|destination| inner(arena.client.v6(), ip(destination)));
    v4.chain(v6).map(|packet| arena.sealed(&packet)).collect()
}

#[test]
fn an_inner_multicast_or_broadcast_destination_is_not_unicast() {
    let arena = Arena::new(Families::V4);
    arena.refuses("not_unicast", to_inner_groups(&arena));
}

fn tunnels_in_the_tunnel(arena: &Arena) -> Vec<Vec<u8>> {
    let nested = arena.sealed(&arena.good(false));
    let wrapped = |source, destination| {
        let inner = packet::udp(SocketAddr::new(source, 40_000), SocketAddr::new(destination, PORT), &nested);
        arena.sealed(&inner)
    };
    let tunnel = arena.victim().tunnel_addresses();
    let client = &arena.client;
    // To the victim's end of the tunnel in each family, and to its underlay address.
    vec![
        wrapped(client.v4(), tunnel[0]),
        wrapped(client.v6(), tunnel[1]),
        wrapped(client.v4(), ip("192.0.2.12")),
        wrapped(client.v6(), ip("2001:db8:1::c")),
    ]
}

#[test]
fn a_tunnel_packet_to_the_node_inside_the_tunnel_is_vxlan_in_vxlan() {
    let arena = Arena::new(Families::V4);
    arena.refuses("vxlan_in_vxlan", tunnels_in_the_tunnel(&arena));
}

fn with_broken_headers(arena: &Arena) -> Vec<Vec<u8>> {
    let v4 = arena.good(false);
    let v6 = arena.good(true);
    let changed = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    let mut broken: Vec<Vec<u8>> = [
        // A header of 16 bytes, of 60 in a packet of 41, of version 5, of the other version under this ethertype.
        changed(&v4, 0, 0x44),
        changed(&v4, 0, 0x4f),
        changed(&v4, 0, 0x55),
        changed(&v4, 0, 0x65),
        // Total length over, and shorter than the header.
        changed(&v4, 3, 0xff),
        changed(&v4, 3, 19),
        changed(&v6, 0, 0x40),
        changed(&v6, 0, 0x00),
        changed(&v6, 5, 0xff),
        changed(&v6, 4, 0xff),
    ]
    .iter()
    .map(|packet| arena.sealed(packet))
    .collect();
    // Of the right kind under the wrong ethertype.
    for (packet, ethertype) in [(&v4, [0x86, 0xdd]), (&v6, [0x08, 0x00])] {
        let mut payload = arena.sealed(packet);
        payload[20..22].copy_from_slice(&ethertype);
        broken.push(payload);
    }
    // `sealed` reads the ethertype off the packet: a version that contradicts it needs it set back.
    for payload in &mut broken[..4] {
        payload[20..22].copy_from_slice(&[0x08, 0x00]);
    }
    for payload in &mut broken[6..8] {
        payload[20..22].copy_from_slice(&[0x86, 0xdd]);
    }
    broken
}

#[test]
fn inner_headers_that_contradict_themselves_are_malformed() {
    let arena = Arena::new(Families::V4);
    arena.refuses("malformed_inner", with_broken_headers(&arena));
}

fn with_congestion_that_cannot_be_told(arena: &Arena) -> Vec<Datagram> {
    // CE outside (RFC 3168), not-ECT inside, whatever the DSCP.
    [(false, 0x03), (true, 0x03), (false, 0xbb)]
        .iter()
        .map(|(v6, tos)| Datagram { source: None, tos: *tos, payload: arena.sealed(&arena.good(*v6)) })
        .collect()
}

#[test]
fn congestion_marked_on_what_cannot_carry_the_mark_is_ecn_not_capable() {
    let arena = Arena::new(Families::V4);
    arena.refuses("ecn_not_capable", with_congestion_that_cannot_be_told(&arena));
}

#[test]
fn the_same_checks_hold_over_an_ipv6_underlay() {
    let arena = Arena::new(Families::V6);
    let mut all: Vec<(&str, Vec<Datagram>)> = vec![
        ("unknown_source", from_strangers(&arena)),
        ("ecn_not_capable", with_congestion_that_cannot_be_told(&arena)),
    ];
    let whole = arena.sealed(&arena.good(true));
    let cut = [0, 7, 8, 21].map(|length| whole[..length].to_vec());
    for (reason, payloads) in [
        ("spoofed_source", spoofed(&arena)),
        ("wrong_vni", of_other_networks(&arena)),
        ("bad_flags", with_other_flags(&arena)),
        ("not_our_mac", to_other_machines(&arena)),
        ("inner_broadcast", to_groups(&arena)),
        ("not_ip", of_other_protocols(&arena)),
        ("not_ours", to_elsewhere(&arena)),
        ("not_unicast", to_inner_groups(&arena)),
        ("vxlan_in_vxlan", tunnels_in_the_tunnel(&arena)),
        ("malformed_inner", with_broken_headers(&arena)),
        ("truncated", cut.into()),
    ] {
        all.push((reason, payloads.into_iter().map(Datagram::from).collect()));
    }
    let expected: BTreeMap<String, u64> =
        all.iter().map(|(reason, datagrams)| ((*reason).to_owned(), datagrams.len() as u64)).collect();
    let datagrams: Vec<Datagram> = all.into_iter().flat_map(|(_, datagrams)| datagrams).collect();
    assert_eq!(arena.counted(&datagrams), expected);
}

#[test]
fn a_flood_of_garbage_is_dropped_to_the_last_datagram() {
    let arena = Arena::new(Families::V4);
    let mut rng = fastrand::Rng::with_seed(20_260_101);
    // From noise to what passes all checks but the last: each deeper layer is right with odds of one half.
    let mut garbage = || -> Datagram {
        let mut payload: Vec<u8> = (0..rng.usize(0..300)).map(|_| rng.u8(..)).collect();
        let right = packet::vxlan(1, vtep_mac("node-1"), vtep_mac("node-2"), &[0x45]);
        for layer in [0..8, 8..20, 20..23] {
            if payload.len() < layer.end || rng.bool() {
                break;
            }
            payload[layer.clone()].copy_from_slice(&right[layer]);
        }
        payload.into()
    };
    for _ in 0..4 {
        let datagrams: Vec<Datagram> = (0..250).map(|_| garbage()).collect();
        let counted = arena.counted(&datagrams);
        assert_eq!(counted.values().sum::<u64>(), 250, "{counted:?}");
    }
    assert!(arena.victim().daemon_runs());
}
