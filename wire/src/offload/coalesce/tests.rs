//! What joins, what does not, and that nothing is lost or changed either way.

use proptest::prelude::*;

use super::super::sample::Sample;
use super::*;
use crate::packet::UDP;

fn push(coalescer: &mut Coalescer, packet: &[u8], out: &mut Vec<Vec<u8>>) {
    let inner = Inner::parse(packet).expect("sound");
    coalescer.push(&Delivery { packet, inner, tos: inner.tos }, &mut |frame| out.push(frame.to_vec()));
}

fn run(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    run_with(&mut Coalescer::default(), packets)
}

fn run_with(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for packet in packets {
        push(coalescer, packet, &mut out);
    }
    coalescer.flush(&mut |frame| out.push(frame.to_vec()));
    out
}

/// The plain packets that frames stand for.
fn plain(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for frame in frames {
        split(frame, |frame| packets.push(frame[VNET_LEN..].to_vec())).expect("sound");
    }
    packets
}

fn alone(packet: &[u8]) -> Vec<u8> {
    [&[0; VNET_LEN], packet].concat()
}

fn gso_type(frame: &[u8]) -> u8 {
    frame[1]
}

/// Puts right checksums on an edited packet without IP options or extension headers.
fn resum(packet: &mut [u8]) {
    resum_l4(packet);
    resum_ip(packet);
}

fn resum_l4(packet: &mut [u8]) {
    let inner = Inner::parse(packet).expect("sound");
    let at = inner.transport + if inner.protocol == TCP { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let length = packet.len() - inner.transport;
    let sum = pseudo_header(inner.source, inner.destination, inner.protocol, length);
    let checksum = sum.bytes(&packet[inner.transport..]).checksum();
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn resum_ip(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let checksum = Sum::default().bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn udp(payload: &[u8], size: u16) -> Sample {
    Sample { udp: true, ..Sample::tcp(payload, size) }
}

fn v6(sample: &Sample) -> Sample {
    Sample { v6: true, ..sample.clone() }
}

/// Three segments, the middle one edited: which edits keep them from being joined?
fn joined_despite(sample: &Sample, edit: impl Fn(&mut Vec<u8>)) -> bool {
    let mut packets = sample.segments();
    assert_eq!(packets.len(), 3);
    edit(&mut packets[1]);
    let out = run(&packets);
    assert_eq!(plain(&out), packets, "nothing may change or change places");
    out.len() == 1
}

#[test]
fn tcp_segments_that_differ_where_the_next_would_not_are_not_joined() {
    let sample = Sample::tcp(&[5; 3000], 1000);
    assert!(joined_despite(&sample, |_| {}));
    let edits: &[(&str, usize, u8)] = &[
        ("tos", 1, 4),
        ("dont fragment", 6, 0x40),
        ("ttl", 8, 1),
        ("sequence", 27, 1),
        ("acknowledgment", 31, 1),
        ("fin", 33, 0x01),
        ("syn", 33, 0x02),
        ("rst", 33, 0x04),
        ("urg", 33, 0x20),
        ("ece", 33, 0x40),
        ("cwr", 33, 0x80),
        ("accurate ecn", 32, 0x01),
        ("window", 35, 1),
        ("urgent pointer", 39, 1),
        ("timestamp", 47, 1),
    ];
    for (what, at, bits) in edits {
        let edit = |packet: &mut Vec<u8>| {
            packet[*at] ^= bits;
            resum(packet);
        };
        assert!(!joined_despite(&sample, edit), "{what}");
    }
    let edits: &[(&str, usize, u8)] =
        &[("traffic class", 1, 0x40), ("flow label", 3, 1), ("hop limit", 7, 1)];
    for (what, at, bits) in edits {
        let edit = |packet: &mut Vec<u8>| packet[*at] ^= bits;
        assert!(!joined_despite(&v6(&sample), edit), "{what}");
    }
}

#[test]
fn identification_must_count_up_where_it_means_something() {
    let fragmentable = Sample { dont_fragment: false, ..Sample::tcp(&[5; 3000], 1000) };
    let edit = |packet: &mut Vec<u8>| {
        packet[5] ^= 0x40;
        resum_ip(packet);
    };
    assert!(!joined_despite(&fragmentable, edit));
    let mut packets = Sample::tcp(&[5; 3000], 1000).segments();
    for packet in &mut packets {
        packet[4..6].fill(0);
        resum_ip(packet);
    }
    assert_eq!(run(&packets).len(), 1, "the identification of an unfragmentable packet means nothing");
}

#[test]
fn a_push_ends_the_super_packet_at_once() {
    let mut packets = Sample::tcp(&[5; 3000], 1000).segments();
    packets[1][33] |= PSH as u8;
    resum(&mut packets[1]);
    let mut out = Vec::new();
    let mut coalescer = Coalescer::default();
    push(&mut coalescer, &packets[0], &mut out);
    push(&mut coalescer, &packets[1], &mut out);
    assert_eq!(out.len(), 1, "no flush needed");
    assert_eq!(plain(&out), packets[..2]);
}

#[test]
fn a_short_segment_ends_the_super_packet_and_a_longer_one_starts_another() {
    let short_first = [Sample::tcp(&[5; 500], 1000).segments(), {
        let next = Sample { sequence: 1500, id: 8, ..Sample::tcp(&[6; 1000], 1000) };
        next.segments()
    }]
    .concat();
    let out = run(&short_first);
    assert_eq!(out, [alone(&short_first[0]), alone(&short_first[1])]);
}

#[test]
fn packets_without_payload_pass_alone_and_in_order() {
    let mut packets = Sample::tcp(&[5; 2000], 1000).segments();
    packets.insert(1, Sample { id: 8, sequence: 2000, ..Sample::tcp(&[], 1) }.packet());
    let out = run(&packets);
    assert_eq!(plain(&out), packets);
    assert_eq!(out.len(), 3);
    let empty = [udp(&[], 1).packet(), udp(&[], 1).packet()];
    assert_eq!(run(&empty), [alone(&empty[0]), alone(&empty[1])]);
}

#[test]
fn fragments_and_options_pass_alone_after_what_was_before_them() {
    let mut packets = Sample::tcp(&[5; 2000], 1000).segments();
    let mut fragment = packets[1].clone();
    fragment[6] = 0x20;
    resum_ip(&mut fragment);
    let mut options = packets[1].clone();
    options[0] = 0x46;
    options.splice(20..20, [1, 1, 1, 1]);
    let length = (options.len() as u16).to_be_bytes();
    options[2..4].copy_from_slice(&length);
    options[10..12].fill(0);
    let checksum = Sum::default().bytes(&options[..24]).checksum();
    options[10..12].copy_from_slice(&checksum.to_be_bytes());
    for odd in [fragment, options] {
        packets.truncate(1);
        packets.push(odd.clone());
        packets.push(odd);
        assert_eq!(run(&packets), packets.iter().map(|packet| alone(packet)).collect::<Vec<_>>());
    }
}

#[test]
fn extension_headers_are_never_joined() {
    let mut packets = v6(&Sample::tcp(&[5; 2000], 1000)).segments();
    for packet in &mut packets {
        packet.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
        packet[6] = 60;
        let length = ((packet.len() - 40) as u16).to_be_bytes();
        packet[4..6].copy_from_slice(&length);
    }
    assert_eq!(run(&packets), packets.iter().map(|packet| alone(packet)).collect::<Vec<_>>());
}

#[test]
fn udp_without_checksum_is_never_joined() {
    let mut packets = udp(&[5; 2000], 1000).segments();
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(run(&packets), packets.iter().map(|packet| alone(packet)).collect::<Vec<_>>());
}

#[test]
fn a_udp_super_packet_has_at_most_64_datagrams() {
    let packets = udp(&[5; 130], 1).segments();
    let out = run(&packets);
    assert_eq!(out.len(), 3);
    assert_eq!(plain(&out), packets);
}

#[test]
fn a_super_packet_fits_an_ip_length() {
    let packets = Sample::tcp(&[5; 65_000], 1398).segments();
    let more = Sample { sequence: 1000 + 65_000, id: 7 + 47, ..Sample::tcp(&[6; 5000], 1398) }.segments();
    let packets = [&packets[..46], &more[..0]].concat();
    let out = run(&packets);
    assert_eq!(out.len(), 1);
    let full: Vec<_> = (0..60)
        .map(|n| {
            Sample { sequence: 1000 + n * 1398, id: 7 + n as u16, ..Sample::tcp(&[5; 1398], 1398) }.packet()
        })
        .collect();
    let out = run(&full);
    assert_eq!(plain(&out), full);
    assert_eq!(out.iter().map(Vec::len).max(), Some(VNET_LEN + 52 + 46 * 1398));
}

#[test]
fn kinds_that_are_off_pass_alone() {
    let mut coalescer = Coalescer::default();
    coalescer.set_tso(false);
    coalescer.set_uso(false);
    for sample in [Sample::tcp(&[5; 2000], 1000), udp(&[5; 2000], 1000)] {
        let packets = sample.segments();
        assert_eq!(run_with(&mut coalescer, &packets), [alone(&packets[0]), alone(&packets[1])]);
    }
}

#[test]
fn a_wrong_checksum_is_passed_on_unmodified_and_hides_nothing() {
    for sample in [Sample::tcp(&[5; 3000], 1000), udp(&[5; 3000], 1000), v6(&Sample::tcp(&[5; 3000], 1000))] {
        for bad in 0..3 {
            let mut packets = sample.segments();
            let last = packets[bad].len() - 1;
            packets[bad][last] ^= 1;
            let out = run(&packets);
            assert!(out.contains(&alone(&packets[bad])));
            assert_eq!(plain(&out), packets);
        }
    }
}

#[test]
fn a_wrong_ipv4_header_checksum_is_passed_on_unmodified() {
    let mut packets = Sample::tcp(&[5; 3000], 1000).segments();
    packets[1][10] ^= 1;
    let out = run(&packets);
    assert_eq!(plain(&out), packets);
    assert!(out.contains(&alone(&packets[1])));
}

#[test]
fn a_checksum_left_partial_by_the_sender_is_handed_on_as_partial() {
    for sample in [Sample::tcp(&[5; 900], 1000), udp(&[5; 900], 1000), v6(&udp(&[5; 900], 1000))] {
        let mut expected = sample.frame();
        let packet = expected[VNET_LEN..].to_vec();
        expected[1..6].fill(0);
        assert_eq!(run(std::slice::from_ref(&packet)), [expected]);
        assert_eq!(plain(&run(&[packet])), [sample.packet()]);
    }
}

#[test]
fn a_giant_from_a_peer_kernel_gets_a_segment_size_that_fits_the_mtu() {
    for sample in [Sample::tcp(&[5; 60_000], 1398), v6(&Sample::tcp(&[5; 60_000], 1378))] {
        let giant = sample.frame()[VNET_LEN..].to_vec();
        let mut coalescer = Coalescer::default();
        coalescer.set_mtu(1450);
        assert_eq!(run_with(&mut coalescer, std::slice::from_ref(&giant)), [sample.frame()]);
        // The same with its checksum finished.
        assert_eq!(run_with(&mut coalescer, &[sample.packet()]), [sample.frame()]);
        // A device that takes no super-packets gets plain ones.
        coalescer.set_tso(false);
        let out = run_with(&mut coalescer, &[giant]);
        assert_eq!(out, sample.segments().iter().map(|packet| alone(packet)).collect::<Vec<_>>());
    }
}

#[test]
fn a_giant_stands_for_what_it_will_be_cut_into() {
    for sample in [Sample::tcp(&[5; 60_000], 1398), v6(&Sample::tcp(&[5; 60_000], 1378))] {
        let mut coalescer = Coalescer::default();
        let packet = sample.packet();
        let inner = Inner::parse(&packet).expect("sound");
        assert_eq!(coalescer.stands_for(&packet, &inner), (1, packet.len() as u64), "no MTU is known");
        coalescer.set_mtu(1450);
        let segments = sample.segments();
        let bytes: usize = segments.iter().map(Vec::len).sum();
        assert_eq!(coalescer.stands_for(&packet, &inner), (segments.len() as u64, bytes as u64));
        let one = &segments[0];
        let inner = Inner::parse(one).expect("sound");
        assert_eq!(coalescer.stands_for(one, &inner), (1, one.len() as u64));
    }
}

#[test]
fn a_giant_follows_what_its_flow_sent_before() {
    let sample = Sample::tcp(&[5; 2000], 1000);
    let giant = Sample { sequence: 3000, id: 9, ..Sample::tcp(&[6; 60_000], 1398) };
    let mut coalescer = Coalescer::default();
    coalescer.set_mtu(1450);
    let mut packets = sample.segments();
    packets.push(giant.frame()[VNET_LEN..].to_vec());
    assert_eq!(run_with(&mut coalescer, &packets), [sample.frame(), giant.frame()]);
}

/// What comes of packets that lie behind room for a header each.
fn run_in_place(coalescer: &mut Coalescer, packets: &[Vec<u8>], tos: Option<u8>) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for packet in packets {
        let mut place = [&[0xee; VNET_LEN], packet.as_slice()].concat();
        let inner = Inner::parse(packet).expect("sound");
        let tos = tos.unwrap_or(inner.tos);
        coalescer.push_in_place(&mut place, inner, tos, &mut |frame| out.push(frame.to_vec()));
    }
    coalescer.flush(&mut |frame| out.push(frame.to_vec()));
    out
}

#[test]
fn a_giant_is_handed_on_where_it_lies_after_what_its_flow_sent_before() {
    let before = Sample::tcp(&[5; 2000], 1000);
    let giant = Sample { sequence: 3000, id: 9, ..Sample::tcp(&[6; 60_000], 1398) };
    let mut packets = before.segments();
    packets.push(giant.frame()[VNET_LEN..].to_vec());
    let mut coalescer = Coalescer::default();
    coalescer.set_mtu(1450);
    assert_eq!(run_in_place(&mut coalescer, &packets, None), [before.frame(), giant.frame()]);
    let marked = Sample { tos: 3, ..giant.clone() };
    let ect = Sample { tos: 2, ..giant }.frame()[VNET_LEN..].to_vec();
    assert_eq!(run_in_place(&mut coalescer, &[ect], Some(3)), [marked.frame()]);
}

#[test]
fn a_changed_tos_keeps_checksums_right_and_still_joins() {
    for sample in [
        Sample { tos: 2, ..Sample::tcp(&[5; 3000], 1000) },
        Sample { tos: 2, ..v6(&Sample::tcp(&[5; 3000], 1000)) },
    ] {
        let marked = Sample { tos: 3, ..sample.clone() };
        let mut coalescer = Coalescer::default();
        let mut out = Vec::new();
        for packet in sample.segments() {
            let inner = Inner::parse(&packet).expect("sound");
            let delivery = Delivery { packet: &packet, inner, tos: 3 };
            coalescer.push(&delivery, &mut |frame| out.push(frame.to_vec()));
        }
        coalescer.flush(&mut |frame| out.push(frame.to_vec()));
        assert_eq!(out, [marked.frame()]);
        let packet = Sample { psh: true, ..sample.clone() }.packet();
        let inner = Inner::parse(&packet).expect("sound");
        coalescer.push(&Delivery { packet: &packet, inner, tos: 3 }, &mut |frame| out.push(frame.to_vec()));
        assert_eq!(out[1], alone(&Sample { psh: true, ..marked }.packet()));
    }
}

#[test]
fn the_largest_ipv6_packet_passes() {
    for protocol in [TCP, UDP, 58] {
        let mut packet = vec![0; 40 + 65_535];
        packet[0] = 0x60;
        packet[4..6].fill(0xff);
        packet[6] = protocol;
        packet[44..46].fill(0xff);
        packet[52] = 0x50;
        resum_l4(&mut packet);
        assert_eq!(run(std::slice::from_ref(&packet)), [alone(&packet)]);
    }
}

#[test]
fn more_flows_than_are_held_open_lose_nothing() {
    let flow = |n: u8| {
        let mut packets = Sample::tcp(&[n; 3000], 1000).segments();
        for packet in &mut packets {
            packet[21] = n;
            resum(packet);
        }
        packets
    };
    let flows: Vec<_> = (0..20).map(flow).collect();
    let packets: Vec<_> =
        (0..3).flat_map(|round| flows.iter().map(move |flow| flow[round].clone())).collect();
    let mut sent = plain(&run(&packets));
    sent.sort();
    let mut expected = packets;
    expected.sort();
    assert_eq!(sent, expected);
}

/// Which flow a packet belongs to, for order.
fn flow_of(packet: &[u8]) -> (IpAddr, IpAddr, u8, Option<(u16, u16)>) {
    let inner = Inner::parse(packet).expect("sound");
    (inner.source, inner.destination, inner.protocol, inner.ports)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn joining_what_was_cut_gives_the_super_packet_back(sample in Sample::any()) {
        prop_assert_eq!(run(&sample.segments()), vec![sample.frame()]);
    }

    #[test]
    fn in_place_comes_what_comes_of_a_copy(samples in proptest::collection::vec((Sample::any(), any::<bool>()), 1..4), mtu in 0u32..3000, tso: bool) {
        let packets: Vec<Vec<u8>> = samples
            .iter()
            .map(|(sample, undone)| if *undone { sample.frame()[VNET_LEN..].to_vec() } else { sample.packet() })
            .collect();
        let fresh = || {
            let mut coalescer = Coalescer::default();
            coalescer.set_mtu(mtu);
            coalescer.set_tso(tso);
            coalescer
        };
        prop_assert_eq!(run_in_place(&mut fresh(), &packets, None), run_with(&mut fresh(), &packets));
    }

    /// Flows interleaved, some packets damaged anywhere: nothing is lost, changed, or out of its flow's order.
    #[test]
    fn every_flow_keeps_its_packets_and_their_order(
        samples in proptest::collection::vec(Sample::any(), 1..4),
        turns in proptest::collection::vec(any::<prop::sample::Index>(), 40),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..70, any::<u8>()), 0..6),
    ) {
        let mut queues: Vec<_> = samples.iter().map(|sample| sample.segments().into_iter()).collect();
        let mut packets: Vec<Vec<u8>> = Vec::new();
        for turn in turns {
            let at = turn.index(queues.len());
            packets.extend(queues[at].next());
        }
        prop_assume!(!packets.is_empty());
        for (which, at, value) in damage {
            let which = which.index(packets.len());
            let packet = &mut packets[which];
            let at = at % packet.len();
            packet[at] = value;
        }
        packets.retain(|packet| Inner::parse(packet).is_ok_and(|inner| inner.length == packet.len()));
        let out = run(&packets);
        let mut sent = plain_unrepaired(&out);
        prop_assert_eq!(sent.len(), packets.len());
        for packet in &packets {
            let flow = flow_of(packet);
            let next = sent.iter().position(|sent| flow_of(sent) == flow);
            prop_assert!(next.is_some());
            let next = sent.remove(next.expect("just seen"));
            prop_assert_eq!(without_meaningless_id(&next), without_meaningless_id(packet));
        }
    }

    #[test]
    fn arbitrary_packets_never_panic(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 1..6),
        v6: bool, udp: bool, mtu in 0_u32..100, tos: u8,
    ) {
        let mut coalescer = Coalescer::default();
        coalescer.set_mtu(mtu);
        for mut packet in packets {
            let total = packet.len() as u16;
            let protocol = if udp { UDP } else { TCP };
            if v6 && packet.len() >= 40 {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
                packet[6] = protocol;
            } else if packet.len() >= 20 {
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&total.to_be_bytes());
                packet[6..8].fill(0);
                packet[9] = protocol;
            }
            let Ok(inner) = Inner::parse(&packet) else { continue };
            coalescer.push(&Delivery { packet: &packet, inner, tos }, &mut |_| {});
        }
        coalescer.flush(&mut |_| {});
    }
}

/// Blanks the identification where it means nothing, if the header's checksum is right.
fn without_meaningless_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] == 0x45 && packet[6] & 0x40 != 0 && Sum::default().bytes(&packet[..20]).is_valid() {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Like [`plain`], but a packet whose checksum field happens to be the partial one stays as it came.
fn plain_unrepaired(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for frame in frames {
        if gso_type(frame) == VirtioNetHdr::GSO_NONE {
            packets.push(frame[VNET_LEN..].to_vec());
        } else {
            packets.extend(plain(std::slice::from_ref(frame)));
        }
    }
    packets
}
