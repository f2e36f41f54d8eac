//! Packets made by hand, for tests that play the attacker or the broken peer.

use std::net::{IpAddr, SocketAddr};

use wire::packet::MacAddr;

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The Internet checksum (RFC 1071).
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A whole IP packet with a UDP datagram, checksums right.
///
/// # Panics
/// If the families differ, or the payload is over 65,000 bytes.
#[must_use]
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= 65_000, "payload too long for a test packet");
    let length = (8 + payload.len()) as u16;
    let mut datagram = Vec::with_capacity(usize::from(length));
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(destination.port().to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let mut pseudo = Vec::new();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => pseudo.extend([a.octets(), b.octets()].concat()),
        (IpAddr::V6(a), IpAddr::V6(b)) => pseudo.extend([a.octets(), b.octets()].concat()),
        _ => panic!("{source} and {destination} are of different families"),
    }
    // The same sum for both families: the upper half of IPv6's length and the zeroes add nothing.
    pseudo.extend([0, 17]);
    pseudo.extend(length.to_be_bytes());
    pseudo.extend(&datagram);
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(source.ip(), destination.ip(), 17, &datagram)
}

/// A whole IP packet with any payload: TTL 64, IPv4 with don't-fragment.
///
/// # Panics
/// If the families differ.
#[must_use]
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            packet.extend([0x45, 0]);
            packet.extend(((20 + payload.len()) as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(a.octets());
            packet.extend(b.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(a.octets());
            packet.extend(b.octets());
        }
        _ => panic!("{source} and {destination} are of different families"),
    }
    packet.extend(payload);
    packet
}

/// A VXLAN payload (RFC 7348): header with the I flag and this VNI, Ethernet header, inner packet.
#[must_use]
pub fn vxlan(vni: u32, source: MacAddr, destination: MacAddr, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(destination.0);
    payload.extend(source.0);
    let ethertype: u16 = if inner.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
    payload.extend(ethertype.to_be_bytes());
    payload.extend(inner);
    payload
}
