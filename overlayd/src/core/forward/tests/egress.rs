//! What is sent, in which batches, and what is refused.

use super::*;

#[test]
fn a_packet_goes_to_the_peer_that_owns_its_destination() {
    for (source, destination) in
        [("10.244.1.5", "10.244.2.5"), ("fd00:1::5", "fd00:2::5"), ("10.244.1.0", "10.244.2.9")]
    {
        let packet = udp(source, destination, 53, b"hello");
        let sent = encap(&[frame(&packet)]);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].to, ip("192.0.2.2"));
        assert_eq!(sent[0].datagrams, [wrap(&packet)]);
        assert_eq!(decap(0, &sent[0].datagrams), [frame(&packet)]);
    }
}

#[test]
fn a_super_packet_fills_one_send_and_its_rest_is_carried_on() {
    let (table, book) = table(1);
    let mut sent = Vec::new();
    let mut egress = Egress::new(0);
    let payload = vec![7; 47 * 1400];
    let frame = tcp_super(0, 1400, &payload[..46 * 1400]);
    egress.push(&table, 5, &frame, &mut keep(&mut sent)).expect("sent");
    assert_eq!(sent.iter().map(|batch| batch.datagrams.len()).collect::<Vec<_>>(), [44]);
    let next = tcp_super(46 * 1400, 1400, &payload[..3 * 1400]);
    egress.push(&table, 6, &next, &mut keep(&mut sent)).expect("sent");
    egress.flush(&mut keep(&mut sent));
    assert_eq!(sent.iter().map(|batch| batch.datagrams.len()).collect::<Vec<_>>(), [44, 5]);
    let tx = book.peers["node-2"].sum().tx;
    assert_eq!((tx.packets, tx.bytes, tx.last_ms), (49, 49 * 1440, Some(6)));
}

/// Node 1's table, with its peers as neighbours on an uplink that segments.
fn direct_table() -> (Table, CounterBook) {
    let (table, book) = table(1);
    let on_link = vec!["192.0.2.0/24".parse().expect("a prefix")];
    (table.with_direct(Direct { on_link, elsewhere: Vec::new() }), book)
}

#[test]
fn a_super_packet_to_a_neighbour_may_leave_whole_after_what_waits_of_its_flow() {
    let (table, book) = direct_table();
    let mut sent = Vec::new();
    let mut egress = Egress::new(0);
    egress.push(&table, 4, &frame(&tcp(0, &[7; 100])), &mut keep(&mut sent)).expect("sent");
    let next = tcp_super(100, 1400, &[8; 3000]);
    let whole = egress.whole(&table, &next, &mut keep(&mut sent)).expect("may leave whole");
    assert_eq!(sent.len(), 1, "what waits goes first");
    assert_eq!(
        (whole.to, whole.port_slot, whole.packet),
        (ip("192.0.2.2"), sent[0].port_slot, &next[VNET_LEN..])
    );
    let header = whole.header(ip("192.0.2.1"), (40_000, 8472)).expect("fits");
    assert!(header.as_bytes().ends_with(&wrap(&next[VNET_LEN..])[..ENCAP_LEN]));
    whole.count(9);
    let tx = book.peers["node-2"].sum().tx;
    // One of 140 bytes; 1400, 1400 and 200 bytes behind 40 each.
    assert_eq!((tx.packets, tx.bytes, tx.last_ms), (4, 140 + 3120, Some(9)));
}

#[test]
fn only_tcp_super_packets_to_neighbours_leave_whole() {
    let mut send = |_: Datagrams<'_>| panic!("nothing waits");
    let whole = tcp_super(0, 1400, &[7; 3000]);
    let (far, _book) = table(1);
    assert!(Egress::new(0).whole(&far, &whole, &mut send).is_none(), "the peer is no neighbour");
    let (near, _book) = direct_table();
    let mut datagrams = [&[1, 5, 28, 0, 100, 0, 20, 0, 6, 0][..], &packet_of(1000)].concat();
    let mut egress = Egress::new(0);
    assert!(egress.whole(&near, &datagrams, &mut send).is_none(), "the receiver could not tell their size");
    datagrams[..VNET_LEN].fill(0);
    assert!(egress.whole(&near, &datagrams, &mut send).is_none(), "a plain packet");
    let mut astray = whole.clone();
    astray[VNET_LEN + 18] = 77;
    assert!(egress.whole(&near, &astray, &mut send).is_none(), "no peer owns it");
    assert!(egress.whole(&near, &whole[..20], &mut send).is_none(), "cut off");
    assert!(egress.whole(&near, &whole, &mut send).is_some());
}

#[test]
fn the_segment_limit_is_kept() {
    let (table, _book) = table(1);
    for limit in [1, 7, 64, 128, 500] {
        let mut sent = Vec::new();
        let mut egress = Egress::new(0);
        egress.set_segments_max(limit);
        egress.push(&table, 0, &tcp_super(0, 100, &[7; 30_000]), &mut keep(&mut sent)).expect("sent");
        egress.flush(&mut keep(&mut sent));
        let most = sent.iter().map(|batch| batch.datagrams.len()).max();
        assert_eq!(most, Some(limit.min(SEGMENTS_MAX)));
        assert_eq!(sent.iter().map(|batch| batch.datagrams.len()).sum::<usize>(), 300);
    }
}

#[test]
fn a_short_datagram_ends_a_batch_and_a_longer_one_starts_another() {
    let sizes = [100, 100, 60, 100, 120, 120];
    let frames = sizes.map(|size| frame(&udp("10.244.1.5", "10.244.2.5", 53, &vec![1; size])));
    let sent = encap(&frames);
    let sizes: Vec<Vec<usize>> = sent
        .iter()
        .map(|batch| batch.datagrams.iter().map(|datagram| datagram.len() - 50).collect())
        .collect();
    assert_eq!(sizes, [vec![100, 100, 60], vec![100], vec![120, 120]]);
}

#[test]
fn flows_that_take_turns_share_no_batch_and_spoil_none() {
    let frames: Vec<_> = (0..60)
        .map(|n| {
            frame(&udp_from(
                1000 + n % 3,
                "10.244.1.5",
                &format!("10.244.{}.5", 2 + n % 3),
                53,
                &[n as u8; 40],
            ))
        })
        .collect();
    let sent = encap(&frames);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|batch| batch.datagrams.len() == 20));
}

#[test]
fn congestion_marks_are_copied_out_and_split_batches() {
    let marked = |tos: u8| {
        let mut packet = udp("10.244.1.5", "10.244.2.5", 53, b"hello");
        packet[1] = tos;
        packet[10..12].fill(0);
        let checksum = Sum::default().bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    };
    let sent = encap(&[0xb8, 0xba, 0xbb, 0xb9].map(|tos| frame(&marked(tos))));
    assert_eq!(sent.iter().map(|batch| batch.ecn).collect::<Vec<_>>(), [0, 2, 3, 1]);
}

#[test]
fn egress_no_peer() {
    assert_eq!(refuse_egress(&frame(&udp("10.244.1.5", "10.99.0.1", 53, b""))), DropReason::NoPeer);
    assert_eq!(refuse_egress(&frame(&udp("fd00:1::5", "fd00:99::1", 53, b""))), DropReason::NoPeer);
}

#[test]
fn egress_not_ip() {
    assert_eq!(refuse_egress(&frame(&[0x55; 40])), DropReason::EgressNotIp);
    assert_eq!(refuse_egress(&frame(&[])), DropReason::EgressNotIp);
}

#[test]
fn egress_malformed() {
    let packet = udp("10.244.1.5", "10.244.2.5", 53, b"hello");
    assert_eq!(refuse_egress(&[0; 9]), DropReason::EgressMalformed);
    assert_eq!(refuse_egress(&frame(&packet[..30])), DropReason::EgressMalformed);
    let mut bad_offload = tcp_super(0, 100, &[1; 300]);
    bad_offload[1] = VirtioNetHdr::GSO_UDP_L4;
    assert_eq!(refuse_egress(&bad_offload), DropReason::EgressMalformed);
    let mut bad_checksum = frame(&packet);
    bad_checksum[0] = VirtioNetHdr::NEEDS_CSUM;
    bad_checksum[6] = 200;
    assert_eq!(refuse_egress(&bad_checksum), DropReason::EgressMalformed);
}

#[test]
fn egress_too_big() {
    let packet = udp("10.244.1.5", "10.244.2.5", 53, &[1; 65_507]);
    assert_eq!(refuse_egress(&frame(&packet)), DropReason::EgressTooBig);
    assert_eq!(refuse_egress(&tcp_super(0, 65_495, &[1; 65_495])), DropReason::EgressTooBig);
    assert_eq!(encap(&[frame(&packet_of(BATCH_BYTES - ENCAP_LEN))]).len(), 1);
    assert_eq!(refuse_egress(&frame(&packet_of(BATCH_BYTES - ENCAP_LEN + 1))), DropReason::EgressTooBig);
}

#[test]
fn egress_not_unicast() {
    for destination in ["224.0.0.22", "255.255.255.255", "0.0.0.0"] {
        assert_eq!(
            refuse_egress(&frame(&udp("10.244.1.0", destination, 53, b""))),
            DropReason::EgressNotUnicast
        );
    }
    assert_eq!(refuse_egress(&frame(&udp("fd00:1::", "ff02::2", 53, b""))), DropReason::EgressNotUnicast);
}

#[test]
fn egress_own_destination() {
    assert_eq!(
        refuse_egress(&frame(&udp("10.244.1.5", "10.244.1.77", 53, b""))),
        DropReason::EgressOwnDestination
    );
}

#[test]
fn egress_vxlan_in_vxlan() {
    let reason = DropReason::EgressVxlanInVxlan;
    // Our own datagram, routed into the device.
    assert_eq!(refuse_egress(&frame(&udp("192.0.2.1", "10.244.2.5", 8472, b""))), reason);
    assert_eq!(refuse_egress(&frame(&udp("192.0.2.1", "192.0.2.2", 8472, b""))), reason);
    // Somebody aims at the peer's socket through the tunnel.
    assert_eq!(refuse_egress(&frame(&udp("10.244.1.5", "10.244.2.0", 8472, b""))), reason);
    // Between pods it is their own business.
    assert_eq!(encap(&[frame(&udp("10.244.1.5", "10.244.2.5", 8472, b""))]).len(), 1);
    assert_eq!(encap(&[frame(&udp("10.244.1.5", "10.244.2.0", 8473, b""))]).len(), 1);
}
