//! Inputs shared by the micro-benches: clusters of any size and the frames that cross them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlayd::core::cluster::{Own, Peer, PeerPath};
use overlayd::core::forward::Egress;
use overlayd::core::table::{CounterBook, Table};
use wire::packet::MacAddr;

/// VNI of every table here.
pub const VNI: u32 = 1;

/// Inner MTU over an uplink of 1500 bytes.
pub const MTU: usize = 1450;

const VNET: usize = 10;
const IP: usize = 20;
const TCP: usize = 32;
const UDP: usize = 8;

/// Underlay address of node `index`.
#[must_use]
pub fn underlay(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc0a8_0000 + index + 1)
}

/// Address of a pod on node `index`.
#[must_use]
pub fn pod(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + (index << 8) + 9)
}

/// IPv6 address of a pod on node `index`.
#[must_use]
pub fn pod_v6(index: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(index) << 64 | 9)
}

fn cidrs(index: u32) -> Vec<IpNet> {
    let v4 = Ipv4Net::new_assert(pod(index), 24).trunc();
    let v6 = Ipv6Net::new_assert(pod_v6(index), 64).trunc();
    vec![v4.into(), v6.into()]
}

fn mac(index: u32) -> MacAddr {
    let [a, b, c, d] = index.to_be_bytes();
    MacAddr::local([2, 0, a, b, c, d])
}

/// Node `index` as itself sees it.
#[must_use]
pub fn own(index: u32) -> Own {
    Own {
        name: format!("node-{index}"),
        pod_cidrs: cidrs(index),
        underlay_v4: Some(underlay(index)),
        underlay_v6: None,
        mac: mac(index),
    }
}

/// All nodes below `count` but `except`, as peers, each with a CIDR of either family.
#[must_use]
pub fn peers(count: u32, except: u32) -> Vec<Peer> {
    let peer = |index| Peer {
        name: format!("node-{index}"),
        paths: vec![PeerPath {
            underlay: IpAddr::V4(underlay(index)),
            mac: mac(index),
            pod_cidrs: cidrs(index),
        }],
    };
    (0..count).filter(|index| *index != except).map(peer).collect()
}

/// The table of node `index` in a cluster of `count`.
#[must_use]
pub fn table(count: u32, index: u32) -> Table {
    Table::build(&own(index), &peers(count, index), VNI, 1, &mut CounterBook::default())
}

fn ipv4(protocol: u8, l4_len: usize) -> [u8; IP] {
    let [a, b] = ((IP + l4_len) as u16).to_be_bytes();
    let mut header = [0x45, 0, a, b, 0, 7, 0x40, 0, 63, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&pod(0).octets());
    header[16..20].copy_from_slice(&pod(1).octets());
    let checksum = wire::offload::Sum::default().bytes(&header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn payload(length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(|at| (at * 7 + (at >> 8)) as u8)
}

/// A TCP super-packet from node 0 to node 1 as the TUN device hands it out, of this many full segments.
#[must_use]
pub fn tcp_frame(segments: usize) -> Vec<u8> {
    let size = MTU - IP - TCP;
    let [g0, g1] = (size as u16).to_le_bytes();
    let mut frame = vec![1, 1, (IP + TCP) as u8, 0, g0, g1, IP as u8, 0, 16, 0];
    frame.extend(ipv4(6, TCP + size * segments));
    let ports_and_numbers = [0x9c, 0x40, 0x14, 0x51, 0, 0, 0x10, 0, 0, 0, 0, 77];
    frame.extend(ports_and_numbers);
    let [c, d] = partial(6, TCP + size * segments);
    frame.extend([0x80, 0x10, 1, 0xf4, c, d, 0, 0]);
    frame.extend([1, 1, 8, 10, 0, 0, 0, 3, 0, 0, 0, 4]);
    frame.extend(payload(size * segments));
    frame
}

/// A UDP datagram with this much payload from node 0 to node 1, checksum partial as a socket leaves it.
#[must_use]
pub fn udp_frame(length: usize) -> Vec<u8> {
    let mut frame = vec![1, 0, 0, 0, 0, 0, IP as u8, 0, 6, 0];
    frame.extend(ipv4(17, UDP + length));
    let [a, b] = ((UDP + length) as u16).to_be_bytes();
    let [c, d] = partial(17, UDP + length);
    frame.extend([0x9c, 0x40, 0x14, 0x51, a, b, c, d]);
    frame.extend(payload(length));
    frame
}

/// What a socket leaves in the checksum field.
fn partial(protocol: u8, length: usize) -> [u8; 2] {
    wire::offload::pseudo_header(pod(0).into(), pod(1).into(), protocol, length).fold().to_be_bytes()
}

/// The datagrams that a frame of node 0 becomes on the underlay.
#[must_use]
pub fn datagrams(frame: &[u8]) -> Vec<Vec<u8>> {
    let table = table(2, 0);
    let mut egress = Egress::new(0);
    let mut datagrams = Vec::new();
    let mut send = |batch: overlayd::core::forward::Datagrams<'_>| {
        datagrams.extend(batch.bytes.chunks(batch.segment).map(<[u8]>::to_vec));
    };
    let verdict = egress.push(&table, 0, frame, &mut send);
    egress.flush(&mut send);
    assert_eq!(verdict, Ok(()), "the frame goes to a known peer");
    datagrams
}

/// Bytes of the packet in a frame.
#[must_use]
pub fn packet_len(frame: &[u8]) -> usize {
    frame.len() - VNET
}
