//! VXLAN (RFC 7348, section 5) with the inner Ethernet header: the 22 bytes between UDP and the inner packet.

use super::MacAddr;

/// Bytes of the VXLAN header and the inner Ethernet header.
pub const ENCAP_LEN: usize = 22;

/// Largest VXLAN network identifier: 24 bits.
pub const VNI_MAX: u32 = 0x00ff_ffff;

/// EtherType of IPv4 (IANA "IEEE 802 Numbers").
pub const ETHERTYPE_IPV4: u16 = 0x0800;

/// EtherType of IPv6 (IANA "IEEE 802 Numbers").
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The only flags accepted and sent: I, "the VNI is valid" (RFC 7348, section 5). Linux refuses any other bit too,
/// unless an extension that gives it a meaning is on (`vxlan_rcv`, drivers/net/vxlan/vxlan_core.c).
const FLAGS: u8 = 0x08;

/// A ready header: what precedes every inner packet of one family to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncapHeader(pub [u8; ENCAP_LEN]);

impl EncapHeader {
    /// Builds the header. Bits of `vni` above the lower 24 are ignored.
    #[must_use]
    pub const fn new(vni: u32, destination: MacAddr, source: MacAddr, ethertype: u16) -> Self {
        let [_, v0, v1, v2] = vni.to_be_bytes();
        let [e0, e1] = ethertype.to_be_bytes();
        let d = destination.0;
        let s = source.0;
        Self([
            FLAGS, 0, 0, 0, v0, v1, v2, 0, d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4],
            s[5], e0, e1,
        ])
    }
}

/// A received datagram, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap<'a> {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Inner Ethernet destination.
    pub destination: MacAddr,
    /// Inner Ethernet source.
    pub source: MacAddr,
    /// What follows the inner Ethernet header.
    pub ethertype: u16,
    /// The bytes after the inner Ethernet header: a packet and perhaps Ethernet padding.
    pub payload: &'a [u8],
}

/// Why a datagram is not VXLAN as we speak it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncapError {
    /// Shorter than [`ENCAP_LEN`].
    #[error("shorter than a VXLAN and an Ethernet header")]
    Truncated,
    /// The I flag is missing, or a reserved bit is set.
    #[error("VXLAN flags or reserved bits are not those of RFC 7348")]
    Flags,
}

impl<'a> Encap<'a> {
    /// Takes a UDP payload apart.
    ///
    /// # Errors
    /// See [`EncapError`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, EncapError> {
        let Some((header, payload)) = datagram.split_first_chunk::<ENCAP_LEN>() else {
            return Err(EncapError::Truncated);
        };
        let [f, r0, r1, r2, v0, v1, v2, r3, d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, e0, e1] = *header;
        if f != FLAGS || (r0 | r1 | r2 | r3) != 0 {
            return Err(EncapError::Flags);
        }
        Ok(Self {
            vni: u32::from_be_bytes([0, v0, v1, v2]),
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ethertype: u16::from_be_bytes([e0, e1]),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_has_the_layout_of_rfc_7348() {
        let header =
            EncapHeader::new(0x0012_3456, MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]), 0x86dd);
        assert_eq!(
            header.0,
            [8, 0, 0, 0, 0x12, 0x34, 0x56, 0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd]
        );
    }

    #[test]
    fn every_reserved_bit_is_refused() {
        let good = EncapHeader::new(1, MacAddr([2; 6]), MacAddr([4; 6]), ETHERTYPE_IPV4).0;
        for (byte, bits) in [(0, 0xff), (1, 0xff), (2, 0xff), (3, 0xff), (7, 0xff)] {
            for bit in 0..8 {
                let mut bad = good;
                bad[byte] ^= (1 << bit) & bits;
                assert_eq!(Encap::parse(&bad), Err(EncapError::Flags), "byte {byte} bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn parse_undoes_new(vni in 0..=VNI_MAX, d: [u8; 6], s: [u8; 6], ethertype: u16, payload: Vec<u8>) {
            let mut datagram = EncapHeader::new(vni, MacAddr(d), MacAddr(s), ethertype).0.to_vec();
            datagram.extend(&payload);
            let encap = Encap { vni, destination: MacAddr(d), source: MacAddr(s), ethertype, payload: &payload };
            prop_assert_eq!(Encap::parse(&datagram), Ok(encap));
        }

        #[test]
        fn short_datagrams_are_truncated(datagram in proptest::collection::vec(any::<u8>(), 0..ENCAP_LEN)) {
            prop_assert_eq!(Encap::parse(&datagram), Err(EncapError::Truncated));
        }
    }
}
