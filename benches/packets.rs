//! Micro-benches of the packet path.

use std::net::IpAddr;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use overlayd::core::forward::{Egress, Ingress};
use overlayd::core::table::{CounterBook, Direct, Table};
use wire::packet::{ENCAP_LEN, VNET_LEN};

/// Reports allocations, of which the packet path must have none.
#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// Packets per iteration of the benches that take one packet at a time.
const ROUND: usize = 64;

mod egress {
    use super::*;

    #[divan::bench]
    fn tcp_super_packet_of_46_segments(bencher: Bencher<'_, '_>) {
        let frame = benches::tcp_frame(46);
        push(bencher, &frame, 1);
    }

    #[divan::bench]
    fn tcp_super_packet_that_leaves_whole(bencher: Bencher<'_, '_>) {
        let frame = benches::tcp_frame(44);
        let on_link = vec![IpAddr::V4(benches::underlay(1)).into()];
        let table = benches::table(1000, 0).with_direct(Direct { on_link, elsewhere: Vec::new() });
        let (own, ports) = (IpAddr::V4(benches::underlay(0)), (40_000, 8472));
        let mut egress = Egress::new(0);
        bencher.counter(BytesCount::new(benches::packet_len(&frame))).bench_local(|| {
            let whole = egress.whole(&table, black_box(&frame), &mut |_| {}).map(|packet| {
                packet.count(1);
                packet.header(own, ports)
            });
            assert!(black_box(whole).is_some_and(|header| header.is_ok()));
        });
    }

    #[divan::bench(args = [0, 64, 1200])]
    fn udp_datagrams(bencher: Bencher<'_, '_>, payload: usize) {
        let frame = benches::udp_frame(payload);
        push(bencher, &frame, ROUND);
    }

    fn push(bencher: Bencher<'_, '_>, frame: &[u8], times: usize) {
        let table = benches::table(1000, 0);
        let mut egress = Egress::new(0);
        let segments = benches::datagrams(frame).len();
        bencher
            .counter(BytesCount::new(benches::packet_len(frame) * times))
            .counter(ItemsCount::new(segments * times))
            .bench_local(|| {
                let mut send = |batch: overlayd::core::forward::Datagrams<'_>| {
                    black_box(batch);
                };
                for _ in 0..times {
                    let _ = black_box(egress.push(&table, 1, black_box(frame), &mut send));
                }
                egress.flush(&mut send);
            });
    }
}

mod ingress {
    use super::*;

    #[divan::bench(args = [1, 44])]
    fn tcp_segments(bencher: Bencher<'_, '_>, segments: usize) {
        push(bencher, &benches::datagrams(&benches::tcp_frame(segments)));
    }

    #[divan::bench]
    fn tcp_super_packet_that_came_whole(bencher: Bencher<'_, '_>) {
        let frame = benches::tcp_frame(44);
        // Behind the same headers as its first segment.
        let encap = benches::datagrams(&frame)[0][..ENCAP_LEN].to_vec();
        let mut datagram = [&encap, &frame[VNET_LEN..]].concat();
        let table = benches::table(1000, 1);
        let from = IpAddr::V4(benches::underlay(0));
        let mut ingress = Ingress::new(0);
        ingress.set_mtu(benches::MTU as u32);
        bencher.counter(BytesCount::new(datagram.len())).bench_local(|| {
            // The room for the device's header lies in them.
            datagram[..ENCAP_LEN].copy_from_slice(&encap);
            let mut written = 0;
            let mut message = ingress.message(&table, 1, from, 0);
            let taken =
                message.push_alone(black_box(&mut datagram), &mut |frame| written = black_box(frame).len());
            assert!(taken.is_ok() && written == frame.len());
        });
    }

    #[divan::bench(args = [64, 1200])]
    fn udp_datagrams(bencher: Bencher<'_, '_>, payload: usize) {
        let one = benches::datagrams(&benches::udp_frame(payload));
        push(bencher, &vec![one[0].clone(); ROUND]);
    }

    fn push(bencher: Bencher<'_, '_>, datagrams: &[Vec<u8>]) {
        let table = benches::table(1000, 1);
        let from = IpAddr::V4(benches::underlay(0));
        let mut ingress = Ingress::new(0);
        let bytes: usize = datagrams.iter().map(Vec::len).sum();
        bencher.counter(BytesCount::new(bytes)).counter(ItemsCount::new(datagrams.len())).bench_local(|| {
            let mut write = |frame: &[u8]| {
                black_box(frame);
            };
            let mut message = ingress.message(&table, 1, from, 0);
            for datagram in datagrams {
                let _ = black_box(message.push(black_box(datagram), &mut write));
            }
            drop(message);
            ingress.flush(&mut write);
        });
    }
}

mod table {
    use super::*;

    #[divan::bench(args = [10, 1000, 5000])]
    fn lookup_v4(bencher: Bencher<'_, '_>, peers: u32) {
        let table = benches::table(peers, 0);
        let all: Vec<IpAddr> = (0..ROUND as u32).map(|n| benches::pod(n * 79 % peers).into()).collect();
        lookup(bencher, &table, &all);
    }

    #[divan::bench(args = [10, 1000, 5000])]
    fn lookup_v6(bencher: Bencher<'_, '_>, peers: u32) {
        let table = benches::table(peers, 0);
        let all: Vec<IpAddr> = (0..ROUND as u32).map(|n| benches::pod_v6(n * 79 % peers).into()).collect();
        lookup(bencher, &table, &all);
    }

    fn lookup(bencher: Bencher<'_, '_>, table: &Table, addresses: &[IpAddr]) {
        bencher.counter(ItemsCount::new(addresses.len())).bench_local(|| {
            for address in addresses {
                black_box(table.underlay_of(*black_box(address)));
            }
        });
    }

    #[divan::bench(args = [10, 1000, 5000])]
    fn build(bencher: Bencher<'_, '_>, peers: u32) {
        let own = benches::own(0);
        let peers = benches::peers(peers, 0);
        let mut counters = CounterBook::default();
        bencher.bench_local(|| Table::build(&own, &peers, benches::VNI, 2, &mut counters));
    }
}

mod checksum {
    use super::*;

    #[divan::bench(args = [20, 64, 1400, 65_000])]
    fn sum(bencher: Bencher<'_, '_>, length: usize) {
        let data = vec![0x5a; length];
        bencher
            .counter(BytesCount::new(length))
            .bench_local(|| wire::offload::Sum::default().bytes(black_box(&data)).checksum());
    }

    #[divan::bench(args = [64, 1400, 65_000])]
    fn copy_and_sum(bencher: Bencher<'_, '_>, length: usize) {
        let data = vec![0x5a; length];
        let mut out = vec![0; length];
        bencher
            .counter(BytesCount::new(length))
            .bench_local(|| wire::offload::copy_sum(black_box(&data), black_box(&mut out)).checksum());
    }
}
