//! What is let in, what is refused, and the congestion mark.

use super::*;

#[test]
fn congestion_marks_combine_by_rfc_6040() {
    // Figure 4: rows inner, columns outer Not-ECT, ECT(0), ECT(1), CE.
    let outer = [NOT_ECT, ECT_0, ECT_1, CE];
    let figure = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
        (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    for (inner, row) in figure {
        for (outer, expected) in outer.into_iter().zip(row) {
            let expected = expected.map(|ecn| 0xb8 | ecn);
            assert_eq!(combine_ecn(0xb8 | inner, outer), expected, "inner {inner} outer {outer}");
        }
    }
}

#[test]
fn a_mark_is_put_on_the_inner_packet_with_its_checksum_kept_right() {
    let mut packet = udp("10.244.1.5", "10.244.2.5", 53, b"hello");
    packet[1] = 2;
    packet[10..12].fill(0);
    let checksum = Sum::default().bytes(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    let written = decap(CE, &[wrap(&packet)]);
    let out = &written[0][VNET_LEN..];
    assert_eq!(out[1], 3);
    assert!(Sum::default().bytes(&out[..20]).is_valid());
    assert_eq!(out[20..], packet[20..]);
}

#[test]
fn received_packets_are_counted_for_their_peer() {
    let (table, book) = table(2);
    let mut ingress = Ingress::new(0);
    let mut message = ingress.message(&table, 9, ip("192.0.2.1"), 0);
    message.push(&good(), &mut |_| {}).expect("delivered");
    drop(message);
    let rx = book.peers["node-1"].sum().rx;
    assert_eq!((rx.packets, rx.bytes, rx.last_ms), (1, 33, Some(9)));
}

#[test]
fn a_datagram_alone_is_what_it_is_among_others() {
    let giant = tcp_super(7, 1410, &[7; 60_000]);
    assert_eq!(decap_alone(&wrap(&giant[VNET_LEN..])), (vec![giant], 43));
    let packet = udp("10.244.1.5", "10.244.2.5", 53, b"hi");
    assert_eq!(decap_alone(&[wrap(&packet), vec![0; 16]].concat()), (vec![frame(&packet)], 1));
}

#[test]
fn ethernet_padding_is_cut_off() {
    let packet = udp("10.244.1.5", "10.244.2.5", 53, b"hi");
    assert_eq!(decap(0, &[[wrap(&packet), vec![0; 16]].concat()]), [frame(&packet)]);
}

#[test]
fn ingress_truncated() {
    for length in 0..ENCAP_LEN {
        assert_eq!(refuse_ingress(&good()[..length]), DropReason::Truncated);
    }
}

#[test]
fn ingress_bad_flags() {
    for (at, value) in [(0, 0), (0, 0x88), (1, 1), (7, 1)] {
        let mut datagram = good();
        datagram[at] = value;
        assert_eq!(refuse_ingress(&datagram), DropReason::BadFlags);
    }
}

#[test]
fn ingress_wrong_vni() {
    let mut datagram = good();
    datagram[6] = 2;
    assert_eq!(refuse_ingress(&datagram), DropReason::WrongVni);
}

#[test]
fn ingress_unknown_source() {
    assert_eq!(refuse_ingress_from("192.0.2.77", 0, &good()), DropReason::UnknownSource);
    assert_eq!(refuse_ingress_from("192.0.2.2", 0, &good()), DropReason::UnknownSource);
    assert_eq!(refuse_ingress_from("2001:db8::1", 0, &good()), DropReason::UnknownSource);
}

#[test]
fn ingress_inner_broadcast() {
    let mut datagram = good();
    datagram[8..14].fill(0xff);
    assert_eq!(refuse_ingress(&datagram), DropReason::InnerBroadcast);
}

#[test]
fn ingress_not_our_mac() {
    let mut datagram = good();
    datagram[13] = 3;
    assert_eq!(refuse_ingress(&datagram), DropReason::NotOurMac);
}

#[test]
fn ingress_not_ip() {
    for ethertype in [[0x08, 0x06], [0x81, 0x00], [0x88, 0xcc]] {
        let mut datagram = good();
        datagram[20..22].copy_from_slice(&ethertype);
        assert_eq!(refuse_ingress(&datagram), DropReason::NotIp);
    }
}

#[test]
fn ingress_malformed_inner() {
    let datagram = good();
    assert_eq!(refuse_ingress(&datagram[..datagram.len() - 1]), DropReason::MalformedInner);
    assert_eq!(refuse_ingress(&datagram[..ENCAP_LEN]), DropReason::MalformedInner);
    let mut other_family = good();
    other_family[20..22].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    assert_eq!(refuse_ingress(&other_family), DropReason::MalformedInner);
}

#[test]
fn ingress_spoofed_source() {
    for source in ["10.244.3.5", "10.244.2.6", "192.0.2.1", "127.0.0.1"] {
        assert_eq!(refuse_ingress(&wrap(&udp(source, "10.244.2.5", 53, b""))), DropReason::SpoofedSource);
    }
    assert_eq!(refuse_ingress(&wrap(&udp("fd00:3::5", "fd00:2::5", 53, b""))), DropReason::SpoofedSource);
    assert_eq!(
        decap(0, &[wrap(&udp("10.244.1.0", "10.244.2.5", 53, b""))]).len(),
        1,
        "the tunnel address is the node"
    );
}

#[test]
fn ingress_not_unicast() {
    for destination in ["224.0.0.1", "255.255.255.255", "0.0.0.0"] {
        assert_eq!(refuse_ingress(&wrap(&udp("10.244.1.5", destination, 53, b""))), DropReason::NotUnicast);
    }
    assert_eq!(refuse_ingress(&wrap(&udp("fd00:1::5", "ff02::1", 53, b""))), DropReason::NotUnicast);
}

#[test]
fn ingress_vxlan_in_vxlan() {
    for destination in ["10.244.2.0", "192.0.2.2", "192.0.2.3"] {
        let datagram = wrap(&udp("10.244.1.5", destination, 8472, &good()));
        assert_eq!(refuse_ingress(&datagram), DropReason::VxlanInVxlan);
    }
    let between_pods = wrap(&udp("10.244.1.5", "10.244.2.5", 8472, &good()));
    assert_eq!(decap(0, &[between_pods]).len(), 1);
}

#[test]
fn the_tunnel_port_can_be_told() {
    let ((sender, _), (table, _)) = (table(1), table(2));
    let mut ingress = Ingress::new(0);
    ingress.set_tunnel_port(4789);
    let datagram = wrap(&udp("10.244.1.5", "10.244.2.0", 4789, b""));
    let verdict = ingress.message(&table, 0, ip("192.0.2.1"), 0).push(&datagram, &mut |_| {});
    assert_eq!(verdict, Err(DropReason::VxlanInVxlan));
    let mut egress = Egress::new(0);
    egress.set_tunnel_port(4789);
    let frame = frame(&udp("10.244.1.5", "10.244.2.0", 4789, b""));
    assert_eq!(egress.push(&sender, 0, &frame, &mut |_| {}), Err(DropReason::EgressVxlanInVxlan));
}

#[test]
fn ingress_not_ours() {
    assert_eq!(refuse_ingress(&wrap(&udp("10.244.1.5", "10.244.3.5", 53, b""))), DropReason::NotOurs);
    assert_eq!(refuse_ingress(&wrap(&udp("10.244.1.5", "8.8.8.8", 53, b""))), DropReason::NotOurs);
}

#[test]
fn ingress_ecn_not_capable() {
    assert_eq!(refuse_ingress_from("192.0.2.1", CE, &good()), DropReason::EcnNotCapable);
}
