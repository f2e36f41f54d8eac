//! Laws of both directions together.

use super::*;

/// Super-packets and plain ones of two families, good ones and drops, both ways, with a new table in between.
#[test]
fn a_warm_packet_path_does_not_allocate() {
    let ((out, _out_book), (in_, _in_book)) = (table(1), table(2));
    let (mut egress, mut ingress) = (Egress::new(0), Ingress::new(0));
    let frames = [
        tcp_super(1, 1398, &[7; 44 * 1398]),
        frame(&udp("10.244.1.5", "10.244.2.5", 53, &[1; 64])),
        frame(&udp("fd00:1::5", "fd00:2::5", 53, &[2; 1200])),
        frame(&packet("10.244.1.5", "10.244.2.5", 1, &[3; 56])),
        frame(&udp("10.244.1.5", "10.99.9.9", 53, &[4; 64])),
    ];
    let mut written = 0;
    let mut turn = || {
        for frame in &frames {
            let mut send = |batch: Datagrams<'_>| {
                let mut message = ingress.message(&in_, 0, ip("192.0.2.1"), 0);
                for datagram in batch.bytes.chunks(batch.segment) {
                    let _ = message.push(datagram, &mut |_| written += 1);
                }
            };
            let _ = egress.push(&out, 0, frame, &mut send);
            egress.flush(&mut send);
        }
        ingress.flush(&mut |_| written += 1);
    };
    turn();

    let allocated = crate::allocations::during(|| (0..100).for_each(|_| turn()));

    assert_eq!(allocated, 0);
    assert!(written >= 101 * 4);
}

#[test]
fn super_packets_that_leave_and_come_whole_do_not_allocate() {
    let on_link = vec!["192.0.2.0/24".parse().expect("a prefix")];
    let out = table(1).0.with_direct(Direct { on_link, elsewhere: Vec::new() });
    let (in_, _book) = table(2);
    let (mut egress, mut ingress) = (Egress::new(0), Ingress::new(0));
    ingress.set_mtu(1450);
    let frame = tcp_super(0, 1400, &[7; 60_000]);
    let mut datagram = wrap(&frame[VNET_LEN..]);
    let encap: [u8; ENCAP_LEN] = *datagram.first_chunk().expect("wrapped");
    let mut written = 0;
    let mut turn = || {
        let whole = egress.whole(&out, &frame, &mut |_| {}).expect("may leave whole");
        assert!(whole.header(ip("192.0.2.1"), (40_000, 8472)).is_ok());
        whole.count(0);
        // In place only the room before the packet changes.
        datagram[..ENCAP_LEN].copy_from_slice(&encap);
        let mut message = ingress.message(&in_, 0, ip("192.0.2.1"), 0);
        assert_eq!(message.push_alone(&mut datagram, &mut |_| written += 1), Ok(()));
    };
    turn();

    let allocated = crate::allocations::during(|| (0..100).for_each(|_| turn()));

    assert_eq!(allocated, 0);
    assert_eq!(written, 101);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever node 1 sends arrives at node 2 as the same packets, each flow in order.
    #[test]
    fn encapsulation_and_decapsulation_are_inverse(
        sends in proptest::collection::vec((0_u8..4, 1_usize..4000, 500_u16..1500), 1..40),
    ) {
        let mut frames = Vec::new();
        let mut sequence = 0;
        for (kind, length, size) in sends {
            let payload: Vec<u8> = (0..length).map(|at| at as u8 ^ kind).collect();
            frames.push(match kind {
                0 => {
                    sequence += length as u32;
                    tcp_super(sequence - length as u32, size, &payload)
                }
                1 => frame(&udp_from(7000 + size % 4, "fd00:1::5", "fd00:2::5", 53, &payload[..length.min(1400)])),
                2 => frame(&packet("10.244.1.5", "10.244.2.5", 1, &payload[..length.min(1400)])),
                _ => frame(&udp_from(7000 + size % 4, "10.244.1.5", "10.244.2.5", 53, &payload[..length.min(1400)])),
            });
        }
        let mut written = Vec::new();
        for batch in encap(&frames) {
            written.extend(decap(batch.ecn, &batch.datagrams));
        }
        prop_assert_eq!(by_flow(&written), by_flow(&frames));
    }

    /// What is kept from one datagram for the next never changes a verdict, a frame or a count.
    #[test]
    fn datagrams_of_one_message_are_judged_like_each_alone(
        picks in proptest::collection::vec((0_usize..6, proptest::option::weighted(0.3, (0_usize..60, any::<u8>()))), 1..40),
        known: bool, ecn in 0_u8..4,
    ) {
        let kinds = [
            good(),
            wrap(&tcp(1, &[1; 100])),
            wrap(&udp("fd00:1::5", "fd00:2::5", 53, b"six")),
            wrap(&udp("10.244.1.5", "10.244.2.0", 53, b"to the node")),
            wrap(&udp("10.244.1.5", "10.244.2.0", 8472, b"the tunnel")),
            wrap(&udp("10.244.1.6", "10.244.2.5", 8472, b"a pod's own")),
        ];
        let datagrams: Vec<Vec<u8>> = picks
            .into_iter()
            .map(|(kind, damage)| {
                let mut datagram = kinds[kind].clone();
                if let Some((at, value)) = damage {
                    datagram[at % 40] = value;
                }
                datagram
            })
            .collect();
        let from = ip(if known { "192.0.2.1" } else { "192.0.2.99" });
        let judge = |per_message: usize| {
            let (table, book) = table(2);
            let mut ingress = Ingress::new(0);
            let (mut verdicts, mut written) = (Vec::new(), Vec::new());
            for some in datagrams.chunks(per_message) {
                let mut message = ingress.message(&table, 7, from, ecn);
                for datagram in some {
                    verdicts.push(message.push(datagram, &mut |frame| written.push(frame.to_vec())));
                }
            }
            ingress.flush(&mut |frame| written.push(frame.to_vec()));
            let counts: Vec<_> = book.peers.values().map(|counters| counters.sum()).collect();
            (verdicts, written, counts)
        };
        prop_assert_eq!(judge(40), judge(1));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        inputs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..150), any::<bool>()), 1..30),
        ecn: u8,
    ) {
        let (table, _book) = table(2);
        let (mut egress, mut ingress) = (Egress::new(0), Ingress::new(7));
        ingress.set_mtu(60);
        for (input, real) in inputs {
            let mut datagram = input.clone();
            if real {
                datagram = good();
                for pair in input.chunks_exact(2).take(4) {
                    let at = usize::from(pair[0]) % datagram.len();
                    datagram[at] = pair[1];
                }
            }
            let _ = ingress.message(&table, 0, ip("192.0.2.1"), ecn).push(&datagram, &mut |_| {});
            let _ = egress.push(&table, 0, &input, &mut |_| {});
            let _ = egress.push(&table, 0, &frame(datagram.get(ENCAP_LEN..).unwrap_or_default()), &mut |_| {});
            split(&input, &mut |_| {});
        }
        ingress.flush(&mut |_| {});
        egress.flush(&mut |_| {});
    }
}

type FlowKey = (IpAddr, u8, Option<(u16, u16)>);

/// The plain packets of each flow, in order, without what an unfragmentable packet's identification says.
fn by_flow(frames: &[Vec<u8>]) -> BTreeMap<FlowKey, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
    for frame in frames {
        split(frame, &mut |frame| {
            let mut packet = frame[VNET_LEN..].to_vec();
            let inner = Inner::parse(&packet).expect("sound");
            if inner.is_v4() {
                packet[4..6].fill(0);
                packet[10..12].fill(0);
            }
            flows.entry((inner.source, inner.protocol, inner.ports)).or_default().push(packet);
        });
    }
    flows
}
