//! The header that a TUN device with `IFF_VNET_HDR` puts before each packet (virtio 1.3, section 5.1.6).

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of [`VirtioNetHdr`]: `TUNSETVNETHDRSZ` must say the same.
pub const VNET_LEN: usize = 10;

/// `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h), little endian.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct VirtioNetHdr {
    /// Bits: [`Self::NEEDS_CSUM`], [`Self::DATA_VALID`].
    pub flags: u8,
    /// Kind of super-packet, or [`Self::GSO_NONE`]; [`Self::GSO_ECN`] may be added.
    pub gso_type: u8,
    /// Bytes of all headers; a hint.
    pub hdr_len: U16,
    /// Payload bytes of each segment.
    pub gso_size: U16,
    /// Where to start checksumming, from the start of the packet.
    pub csum_start: U16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: U16,
}

const _: () = assert!(size_of::<VirtioNetHdr>() == VNET_LEN);

impl VirtioNetHdr {
    /// The checksum field holds only the pseudo-header's sum (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub const DATA_VALID: u8 = 2;
    /// Not a super-packet.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP datagrams of equal size, the last may be shorter.
    pub const GSO_UDP_L4: u8 = 5;
    /// Only the first TCP segment carries CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Splits a frame into header and packet; `None` if it is too short.
    #[must_use]
    pub fn split(frame: &[u8]) -> Option<(Self, &[u8])> {
        Self::read_from_prefix(frame).ok()
    }

    /// What kind of super-packet it announces; `None` for kinds that are never negotiated (UFO, unknown).
    #[must_use]
    pub fn kind(&self) -> Option<GsoKind> {
        match self.gso_type & !Self::GSO_ECN {
            Self::GSO_NONE => Some(GsoKind::None),
            Self::GSO_TCPV4 => Some(GsoKind::Tcp4),
            Self::GSO_TCPV6 => Some(GsoKind::Tcp6),
            Self::GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => None,
        }
    }

    /// Whether the checksum has to be finished.
    #[must_use]
    pub fn needs_csum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }
}

/// Kinds of super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// One plain packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_little_endian_in_the_order_of_the_uapi_header() {
        let header = VirtioNetHdr {
            flags: 1,
            gso_type: 4,
            hdr_len: U16::new(0x0102),
            gso_size: U16::new(0x0304),
            csum_start: U16::new(0x0506),
            csum_offset: U16::new(0x0708),
        };
        assert_eq!(header.as_bytes(), [1, 4, 2, 1, 4, 3, 6, 5, 8, 7]);
        assert_eq!(VirtioNetHdr::split(&[1, 4, 2, 1, 4, 3, 6, 5, 8, 7, 99]), Some((header, &[99][..])));
    }

    #[test]
    fn nine_bytes_are_no_header() {
        assert_eq!(VirtioNetHdr::split(&[0; 9]), None);
    }

    #[test]
    fn ufo_is_no_kind_of_ours() {
        assert_eq!(VirtioNetHdr { gso_type: 3, ..VirtioNetHdr::default() }.kind(), None);
        assert_eq!(VirtioNetHdr { gso_type: 0x81, ..VirtioNetHdr::default() }.kind(), Some(GsoKind::Tcp4));
    }
}
