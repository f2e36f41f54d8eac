//! Packets for tests, made and judged by etherparse: an implementation that shares nothing with ours.

use etherparse::{
    IpHeaders, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TcpHeader, TransportSlice, UdpHeader,
};
use proptest::prelude::*;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::packet::{Inner, VirtioNetHdr};

/// What a super-packet is made of.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) port: u16,
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) tos: u8,
    pub(crate) sequence: u32,
    pub(crate) psh: bool,
    pub(crate) ece: bool,
    pub(crate) timestamps: bool,
    pub(crate) size: u16,
    pub(crate) payload: Vec<u8>,
}

impl Sample {
    /// Any that can be cut up and joined again into one.
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let bits = proptest::array::uniform6(any::<bool>());
        let payload = (1_u16..1500).prop_flat_map(|size| {
            let least = usize::from(size) + 1;
            (Just(size), proptest::collection::vec(any::<u8>(), least..least + 5000))
        });
        (bits, 1234_u16..1236, any::<u16>(), any::<u8>(), any::<u32>(), payload).prop_map(
            |([v6, udp, dont_fragment, psh, ece, timestamps], port, id, tos, sequence, (size, payload))| {
                let segments = if udp { 64 } else { usize::MAX };
                let keep = payload.len().min(usize::from(size).saturating_mul(segments)).min(65_000);
                let payload = payload[..keep].to_vec();
                Self { v6, udp, port, id, dont_fragment, tos, sequence, psh, ece, timestamps, size, payload }
            },
        )
    }

    pub(crate) fn tcp(payload: &[u8], size: u16) -> Self {
        Self {
            v6: false,
            udp: false,
            port: 1234,
            id: 7,
            dont_fragment: true,
            tos: 0,
            sequence: 1000,
            psh: false,
            ece: false,
            timestamps: true,
            size,
            payload: payload.to_vec(),
        }
    }

    /// The packet as one, with right checksums.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut l4 = Vec::new();
        let protocol = if self.udp { etherparse::IpNumber::UDP } else { etherparse::IpNumber::TCP };
        let l4_len = self.payload.len() + if self.udp { 8 } else { self.tcp_header().header_len() };
        let ip = if self.v6 {
            let mut header = Ipv6Header {
                payload_length: l4_len as u16,
                next_header: protocol,
                hop_limit: 63,
                source: [0xfd; 16],
                destination: [0xfc; 16],
                ..Ipv6Header::default()
            };
            header.traffic_class = self.tos;
            IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
        } else {
            let mut header = Ipv4Header::new(l4_len as u16, 63, protocol, [10, 244, 1, 9], [10, 244, 2, 8])
                .expect("length");
            header.dscp = etherparse::IpDscp::try_new(self.tos >> 2).expect("six bits");
            header.ecn = etherparse::IpEcn::try_new(self.tos & 3).expect("two bits");
            header.identification = self.id;
            header.dont_fragment = self.dont_fragment;
            header.header_checksum = header.calc_header_checksum();
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        };
        if self.udp {
            let mut udp = UdpHeader {
                source_port: self.port,
                destination_port: 4321,
                length: l4_len as u16,
                checksum: 0,
            };
            udp.checksum = match &ip {
                IpHeaders::Ipv4(header, _) => udp.calc_checksum_ipv4(header, &self.payload),
                IpHeaders::Ipv6(header, _) => udp.calc_checksum_ipv6(header, &self.payload),
            }
            .expect("length");
            l4.extend(udp.to_bytes());
        } else {
            let mut tcp = self.tcp_header();
            tcp.checksum = match &ip {
                IpHeaders::Ipv4(header, _) => tcp.calc_checksum_ipv4(header, &self.payload),
                IpHeaders::Ipv6(header, _) => tcp.calc_checksum_ipv6(header, &self.payload),
            }
            .expect("length");
            l4.extend(tcp.to_bytes());
        }
        match &ip {
            IpHeaders::Ipv4(header, _) => out.extend(header.to_bytes()),
            IpHeaders::Ipv6(header, _) => out.extend(header.to_bytes()),
        }
        out.extend(&l4);
        out.extend(&self.payload);
        out
    }

    fn tcp_header(&self) -> TcpHeader {
        let mut tcp = TcpHeader::new(self.port, 4321, self.sequence, 500);
        tcp.acknowledgment_number = 77;
        tcp.ack = true;
        tcp.psh = self.psh;
        tcp.ece = self.ece;
        if self.timestamps {
            tcp.set_options(&[etherparse::TcpOptionElement::Timestamp(3, 4)]).expect("fits");
        }
        tcp
    }

    /// The super-packet frame as the kernel hands it out: partial checksum, segment size.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut packet = self.packet();
        let transport = if self.v6 { 40 } else { 20 };
        let (at, gso_type) = match (self.udp, self.v6) {
            (true, _) => (6, VirtioNetHdr::GSO_UDP_L4),
            (false, false) => (16, VirtioNetHdr::GSO_TCPV4),
            (false, true) => (16, VirtioNetHdr::GSO_TCPV6),
        };
        let headers = packet.len() - self.payload.len();
        let inner = Inner::parse(&packet).expect("sound");
        let partial =
            super::pseudo_header(inner.source, inner.destination, inner.protocol, packet.len() - transport)
                .fold();
        packet[transport + at..transport + at + 2].copy_from_slice(&partial.to_be_bytes());
        let vnet = VirtioNetHdr {
            flags: VirtioNetHdr::NEEDS_CSUM,
            gso_type,
            hdr_len: U16::new(headers as u16),
            gso_size: U16::new(self.size),
            csum_start: U16::new(transport as u16),
            csum_offset: U16::new(at as u16),
        };
        [vnet.as_bytes(), &packet].concat()
    }

    /// The packets it stands for, each made from scratch.
    pub(crate) fn segments(&self) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(usize::from(self.size));
        let piece = |(index, part): (usize, &[u8])| {
            let sample = Self {
                id: self.id.wrapping_add(index as u16),
                sequence: self.sequence.wrapping_add((index * usize::from(self.size)) as u32),
                psh: self.psh && index + 1 == count,
                payload: part.to_vec(),
                ..self.clone()
            };
            sample.packet()
        };
        self.payload.chunks(usize::from(self.size)).enumerate().map(piece).collect()
    }
}

/// Whether etherparse finds all checksums of a packet right.
pub(crate) fn checksums_are_right(packet: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ip(packet).expect("a packet");
    let net = sliced.net.expect("IP");
    let transport = sliced.transport.expect("a transport");
    match (net, transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let header = ip.header().to_header();
            header.header_checksum == header.calc_header_checksum()
                && tcp.checksum()
                    == tcp.calc_checksum_ipv4(header.source, header.destination).expect("length")
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let header = ip.header().to_header();
            tcp.checksum() == tcp.calc_checksum_ipv6(header.source, header.destination).expect("length")
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let header = ip.header().to_header();
            header.header_checksum == header.calc_header_checksum()
                && udp.checksum()
                    == udp.to_header().calc_checksum_ipv4(&header, udp.payload()).expect("length")
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let header = ip.header().to_header();
            udp.checksum() == udp.to_header().calc_checksum_ipv6(&header, udp.payload()).expect("length")
        }
        _ => false,
    }
}
