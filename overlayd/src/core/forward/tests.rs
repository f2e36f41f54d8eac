//! A node with nine peers, and packets for it.

mod egress;
mod ingress;
mod laws;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wire::offload::{Sum, pseudo_header};
use wire::packet::{ENCAP_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EncapHeader, MacAddr, VNET_LEN, VirtioNetHdr};

use super::ingress::combine_ecn;
use super::*;
use crate::core::cluster::{Own, Peer, PeerPath};
use crate::core::table::{CounterBook, Direct, PeerTraffic, Table};

const VNI: u32 = 1;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Node 1 to 9: pods in 10.244.n.0/24 and fd00:n::/64, underlay 192.0.2.n.
fn own(n: u8) -> Own {
    Own {
        name: format!("node-{n}"),
        pod_cidrs: cidrs(n),
        underlay_v4: Some([192, 0, 2, n].into()),
        underlay_v6: None,
        mac: MacAddr([2, 0, 0, 0, 0, n]),
    }
}

fn cidrs(n: u8) -> Vec<ipnet::IpNet> {
    [format!("10.244.{n}.0/24"), format!("fd00:{n}::/64")]
        .map(|cidr| cidr.parse().expect("a prefix"))
        .to_vec()
}

fn table(n: u8) -> (Table, CounterBook) {
    let peer = |n: u8| {
        let path = PeerPath {
            underlay: [192, 0, 2, n].into(),
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            pod_cidrs: cidrs(n),
        };
        Peer { name: format!("node-{n}"), paths: vec![path] }
    };
    let peers: Vec<Peer> = (1..=9).filter(|other| *other != n).map(peer).collect();
    let mut book = CounterBook::default();
    (Table::build(&own(n), &peers, VNI, 1, &mut book), book)
}

/// An IP packet with right header checksum; UDP or TCP with right checksum too.
fn packet(source: &str, destination: &str, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (source, destination) = (ip(source), ip(destination));
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [a, b] = (20 + l4.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, a, b, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let checksum = Sum::default().bytes(&header).checksum();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [a, b] = (l4.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, a, b, protocol, 64];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => panic!("one family"),
    };
    let start = packet.len();
    packet.extend(l4);
    let at = start + if protocol == UDP { 6 } else { 16 };
    if matches!(protocol, UDP | 6) {
        let sum = pseudo_header(source, destination, protocol, l4.len()).bytes(&packet[start..]);
        let checksum = sum.checksum();
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

fn udp(source: &str, destination: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    udp_from(40_000, source, destination, port, payload)
}

fn udp_from(from: u16, source: &str, destination: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut l4: Vec<u8> = [from, port, length, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    l4.extend(payload);
    packet(source, destination, UDP, &l4)
}

fn tcp(sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut l4 = vec![0x9c, 0x40, 0, 80];
    l4.extend(sequence.to_be_bytes());
    l4.extend([0, 0, 0, 9, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    l4.extend(payload);
    packet("10.244.1.5", "10.244.2.5", 6, &l4)
}

/// A TCP super-packet from node 1 to node 2 as the TUN device hands it out.
fn tcp_super(sequence: u32, size: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = tcp(sequence, payload);
    let sum = pseudo_header(ip("10.244.1.5"), ip("10.244.2.5"), 6, packet.len() - 20).fold();
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    let [g0, g1] = size.to_le_bytes();
    [&[1, 1, 40, 0, g0, g1, 20, 0, 16, 0][..], &packet].concat()
}

fn frame(packet: &[u8]) -> Vec<u8> {
    [&[0; VNET_LEN], packet].concat()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    to: IpAddr,
    port_slot: usize,
    ecn: u8,
    datagrams: Vec<Vec<u8>>,
}

fn keep(sent: &mut Vec<Sent>) -> impl FnMut(Datagrams<'_>) {
    |batch| {
        let datagrams: Vec<_> = batch.bytes.chunks(batch.segment).map(<[u8]>::to_vec).collect();
        assert_eq!(datagrams.len() as u64, batch.packets);
        assert!(batch.bytes.len() <= BATCH_BYTES && datagrams.len() <= SEGMENTS_MAX);
        assert!(batch.port_slot < SOURCE_PORTS);
        sent.push(Sent { to: batch.to, port_slot: batch.port_slot, ecn: batch.ecn, datagrams });
    }
}

fn encap(frames: &[Vec<u8>]) -> Vec<Sent> {
    let (table, _book) = table(1);
    let mut sent = Vec::new();
    let mut egress = Egress::new(0);
    for frame in frames {
        assert_eq!(egress.push(&table, 0, frame, &mut keep(&mut sent)), Ok(()));
    }
    egress.flush(&mut keep(&mut sent));
    sent
}

fn refuse_egress(frame: &[u8]) -> DropReason {
    let (table, book) = table(1);
    let mut egress = Egress::new(0);
    let mut send = |_: Datagrams<'_>| panic!("a dropped packet must not be sent");
    let reason = egress.push(&table, 0, frame, &mut send).expect_err("a drop");
    egress.flush(&mut send);
    assert!(book.peers.values().all(|counters| counters.sum() == PeerTraffic::default()));
    reason
}

/// What node 2 makes of datagrams from node 1.
fn decap(ecn: u8, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (table, _book) = table(2);
    let mut written = Vec::new();
    let mut ingress = Ingress::new(0);
    let mut message = ingress.message(&table, 0, ip("192.0.2.1"), ecn);
    for datagram in datagrams {
        assert_eq!(message.push(datagram, &mut |frame| written.push(frame.to_vec())), Ok(()));
    }
    drop(message);
    ingress.flush(&mut |frame| written.push(frame.to_vec()));
    written
}

/// The same of one that comes alone, and as how many packets it counts.
fn decap_alone(datagram: &[u8]) -> (Vec<Vec<u8>>, u64) {
    let (table, book) = table(2);
    let mut written = Vec::new();
    let mut ingress = Ingress::new(0);
    ingress.set_mtu(1450);
    let mut place = datagram.to_vec();
    let taken = ingress
        .message(&table, 0, ip("192.0.2.1"), 0)
        .push_alone(&mut place, &mut |frame| written.push(frame.to_vec()));
    assert_eq!(taken, Ok(()));
    ingress.flush(&mut |frame| written.push(frame.to_vec()));
    (written, book.peers["node-1"].sum().rx.packets)
}

fn refuse_ingress_from(from: &str, ecn: u8, datagram: &[u8]) -> DropReason {
    let (table, book) = table(2);
    let mut ingress = Ingress::new(0);
    let mut write = |_: &[u8]| panic!("a dropped packet must not reach the device");
    let reason = ingress.message(&table, 0, ip(from), ecn).push(datagram, &mut write).expect_err("a drop");
    let mut alone = datagram.to_vec();
    let same = ingress.message(&table, 0, ip(from), ecn).push_alone(&mut alone, &mut write);
    assert_eq!(same, Err(reason), "alone or with others");
    ingress.flush(&mut write);
    assert!(book.peers.values().all(|counters| counters.sum() == PeerTraffic::default()));
    reason
}

fn refuse_ingress(datagram: &[u8]) -> DropReason {
    refuse_ingress_from("192.0.2.1", 0, datagram)
}

fn good() -> Vec<u8> {
    wrap(&udp("10.244.1.5", "10.244.2.5", 53, b"hello"))
}

/// A packet as node 1 would send it to node 2, whatever is in it.
fn wrap(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    let header = EncapHeader::new(VNI, own(2).mac, own(1).mac, ethertype);
    [&header.0[..], packet].concat()
}

#[test]
fn names_are_snake_case_and_differ() {
    let names: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), DropReason::ALL.len());
    assert!(names.iter().all(|name| name.bytes().all(|c| c == b'_' || c.is_ascii_lowercase())));
    assert!(DropReason::ALL.iter().all(|reason| reason.meaning().len() > 20));
    assert!(DropReason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
}

fn packet_of(length: usize) -> Vec<u8> {
    udp("10.244.1.5", "10.244.2.5", 53, &vec![1; length - 28])
}
