//! Cutting super-packets into the packets they stand for.
//!
//! The rules are those of the kernel's own segmentation (net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c,
//! net/ipv4/af_inet.c): lengths, IPv4 identification counting up, TCP sequence numbers, CWR only on the
//! first segment, FIN and PSH only on the last, checksums. What does not change between segments is summed
//! once; each segment adds its own few words and its payload, summed while copied.

use zerocopy::IntoBytes;

use super::checksum::{Sum, copy_sum, pseudo_header};
use crate::packet::{Fragment, GsoKind, Inner, Malformed, TCP, UDP, VNET_LEN, VirtioNetHdr};

/// TCP flags in the low byte of the word at offset 12 (RFC 9293, section 3.1; CWR: RFC 3168, section 6.1).
pub(super) const FIN: u16 = 0x01;
pub(super) const SYN: u16 = 0x02;
pub(super) const RST: u16 = 0x04;
pub(super) const PSH: u16 = 0x08;
pub(super) const URG: u16 = 0x20;
pub(super) const CWR: u16 = 0x80;

/// Bytes of a UDP header.
pub(super) const UDP_LEN: usize = 8;

/// Bytes of a TCP header without options.
pub(super) const TCP_LEN: usize = 20;

/// Why a frame's virtio-net header cannot be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// Too short for a virtio-net header.
    #[error("frame is shorter than its virtio-net header")]
    Truncated,
    /// The packet behind it is not IP.
    #[error("packet behind the virtio-net header: {0}")]
    Packet(#[from] Malformed),
    /// The checksum would lie outside the packet.
    #[error("checksum position lies outside the packet")]
    ChecksumPosition,
    /// A kind of super-packet that was not negotiated, or that does not fit the packet behind it.
    #[error("super-packet kind does not fit the packet")]
    Kind,
}

/// A super-packet about to be cut up.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    size: usize,
    transport: usize,
    ip: IpPart,
    l4: L4Part,
}

/// What the segments' IP headers have in common.
#[derive(Clone, Copy, Debug)]
enum IpPart {
    V4 { id: u16, base: Sum },
    V6,
}

/// What the segments' transport headers have in common.
#[derive(Clone, Copy, Debug)]
enum L4Part {
    Tcp { sequence: u32, flags: u16, base: Sum },
    Udp { base: Sum },
}

impl<'a> Segments<'a> {
    /// Prepares a super-packet; `None` if the header announces a plain packet (then [`finish`] it).
    ///
    /// # Errors
    /// If the header does not fit the packet.
    pub fn new(vnet: &VirtioNetHdr, packet: &'a [u8], inner: &Inner) -> Result<Option<Self>, OffloadError> {
        let protocol = match vnet.kind().ok_or(OffloadError::Kind)? {
            GsoKind::None => return Ok(None),
            GsoKind::Tcp4 if inner.is_v4() => TCP,
            GsoKind::Tcp6 if !inner.is_v4() => TCP,
            GsoKind::Udp => UDP,
            GsoKind::Tcp4 | GsoKind::Tcp6 => return Err(OffloadError::Kind),
        };
        let size = usize::from(vnet.gso_size.get());
        if inner.protocol != protocol || inner.fragment != Fragment::Whole || size == 0 {
            return Err(OffloadError::Kind);
        }
        let packet = packet.get(..inner.length).ok_or(OffloadError::Kind)?;
        let l4 = packet.get(inner.transport..).ok_or(OffloadError::Kind)?;
        let l4_len = transport_header_len(protocol, l4).ok_or(OffloadError::Kind)?;
        let (headers, payload) = packet.split_at(inner.transport + l4_len);
        if payload.is_empty() {
            return Err(OffloadError::Kind);
        }
        let pseudo = pseudo_header(inner.source, inner.destination, protocol, 0);
        let l4 = L4Part::of(protocol, &headers[inner.transport..], pseudo).ok_or(OffloadError::Kind)?;
        let ip = IpPart::of(headers, inner);
        Ok(Some(Self { headers, payload, size, transport: inner.transport, ip, l4 }))
    }

    /// How many segments there are: at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// Bytes of the headers that each segment has.
    #[must_use]
    pub fn headers(&self) -> usize {
        self.headers.len()
    }

    /// Bytes of segment `index` as an IP packet.
    #[must_use]
    pub fn length(&self, index: usize) -> usize {
        self.headers.len() + self.part(index).len()
    }

    /// Writes segment `index` to the start of `out` and returns its length; `None` if it does not fit or does not exist.
    pub fn emit(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        let part = self.part(index);
        if part.is_empty() {
            return None;
        }
        let length = self.headers.len() + part.len();
        let (headers, body) = out.get_mut(..length)?.split_at_mut(self.headers.len());
        headers.copy_from_slice(self.headers);
        let payload = copy_sum(part, body);
        let (ip, l4) = headers.split_at_mut(self.transport);
        self.ip.patch(ip, length, index);
        self.patch_l4(l4, index, payload, length - self.transport)?;
        Some(length)
    }

    fn part(&self, index: usize) -> &'a [u8] {
        let start = index.saturating_mul(self.size).min(self.payload.len());
        let end = start.saturating_add(self.size).min(self.payload.len());
        &self.payload[start..end]
    }

    fn patch_l4(&self, l4: &mut [u8], index: usize, payload: Sum, length: usize) -> Option<()> {
        match self.l4 {
            L4Part::Tcp { sequence, flags, base } => {
                let tcp = l4.first_chunk_mut::<TCP_LEN>()?;
                let sequence = sequence.wrapping_add((index * self.size) as u32);
                let mut flags = flags;
                if index > 0 {
                    flags &= !CWR;
                }
                if index + 1 < self.count() {
                    flags &= !(FIN | PSH);
                }
                let sum = base.plus(payload).long(length as u32).long(sequence).word(flags);
                tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
                tcp[12..14].copy_from_slice(&flags.to_be_bytes());
                tcp[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
            }
            L4Part::Udp { base } => {
                let udp = l4.first_chunk_mut::<UDP_LEN>()?;
                // The length stands in the pseudo header and in the header.
                let sum = base.plus(payload).long(length as u32).word(length as u16);
                udp[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                udp[6..8].copy_from_slice(&never_zero(sum.checksum()).to_be_bytes());
            }
        }
        Some(())
    }
}

impl IpPart {
    fn of(headers: &[u8], inner: &Inner) -> Self {
        if !inner.is_v4() {
            return Self::V6;
        }
        let Some((fixed, options)) = headers[..inner.transport].split_first_chunk::<20>() else {
            return Self::V6;
        };
        let mut fixed = *fixed;
        let id = u16::from_be_bytes([fixed[4], fixed[5]]);
        fixed[2..6].fill(0);
        fixed[10..12].fill(0);
        Self::V4 { id, base: Sum::default().bytes(&fixed).bytes(options) }
    }

    fn patch(self, ip: &mut [u8], length: usize, index: usize) {
        match self {
            Self::V4 { id, base } => {
                let Some(header) = ip.first_chunk_mut::<20>() else { return };
                let id = id.wrapping_add(index as u16);
                header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                header[4..6].copy_from_slice(&id.to_be_bytes());
                let sum = base.word(length as u16).word(id);
                header[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
            }
            Self::V6 => {
                let Some(header) = ip.first_chunk_mut::<40>() else { return };
                header[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            }
        }
    }
}

impl L4Part {
    fn of(protocol: u8, header: &[u8], pseudo: Sum) -> Option<Self> {
        if protocol == UDP {
            let ports = header.first_chunk::<4>()?;
            return Some(Self::Udp { base: pseudo.bytes(ports) });
        }
        let (fixed, options) = header.split_first_chunk::<TCP_LEN>()?;
        let mut fixed = *fixed;
        let sequence = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        let flags = u16::from_be_bytes([fixed[12], fixed[13]]);
        fixed[4..8].fill(0);
        fixed[12..14].fill(0);
        fixed[16..18].fill(0);
        Some(Self::Tcp { sequence, flags, base: pseudo.bytes(&fixed).bytes(options) })
    }
}

/// Writes a plain packet to the start of `out`, finishing its checksum if the header asks for it, and returns
/// its length.
///
/// # Errors
/// If the checksum's position lies outside the packet, or `out` is too small.
pub fn finish(
    vnet: &VirtioNetHdr,
    packet: &[u8],
    inner: &Inner,
    out: &mut [u8],
) -> Result<usize, OffloadError> {
    let packet = packet.get(..inner.length).ok_or(OffloadError::ChecksumPosition)?;
    let out = out.get_mut(..packet.len()).ok_or(OffloadError::ChecksumPosition)?;
    if !vnet.needs_csum() {
        out.copy_from_slice(packet);
        return Ok(packet.len());
    }
    let start = usize::from(vnet.csum_start.get());
    let at = start + usize::from(vnet.csum_offset.get());
    if start > packet.len() || at + 2 > packet.len() {
        return Err(OffloadError::ChecksumPosition);
    }
    let (head, rest) = packet.split_at(start);
    out[..start].copy_from_slice(head);
    let checksum = copy_sum(rest, &mut out[start..]).checksum();
    let checksum = if inner.protocol == UDP { never_zero(checksum) } else { checksum };
    out[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(packet.len())
}

/// Turns a frame (virtio-net header and packet, plain or super-packet) into finished packets, each with an
/// empty virtio-net header in front: for a device that refuses the frame as it is. Allocates.
///
/// # Errors
/// If the virtio-net header does not fit the packet.
pub fn split(frame: &[u8], mut write: impl FnMut(&[u8])) -> Result<(), OffloadError> {
    let (vnet, packet) = VirtioNetHdr::split(frame).ok_or(OffloadError::Truncated)?;
    let inner = Inner::parse(packet)?;
    let mut out = vec![0; VNET_LEN + inner.length];
    out[..VNET_LEN].copy_from_slice(VirtioNetHdr::default().as_bytes());
    let Some(segments) = Segments::new(&vnet, packet, &inner)? else {
        let length = finish(&vnet, packet, &inner, &mut out[VNET_LEN..])?;
        write(&out[..VNET_LEN + length]);
        return Ok(());
    };
    for index in 0..segments.count() {
        if let Some(length) = segments.emit(index, &mut out[VNET_LEN..]) {
            write(&out[..VNET_LEN + length]);
        }
    }
    Ok(())
}

/// Length of a TCP or UDP header that lies wholly in `l4`.
pub(super) fn transport_header_len(protocol: u8, l4: &[u8]) -> Option<usize> {
    let length = match protocol {
        TCP => usize::from(l4.get(12)? >> 4) * 4,
        _ => UDP_LEN,
    };
    let least = if protocol == TCP { TCP_LEN } else { UDP_LEN };
    (length >= least && length <= l4.len()).then_some(length)
}

/// Zero in a UDP checksum field means "none" (RFC 768), so a computed zero is sent as its other form.
pub(super) fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sample::{Sample, checksums_are_right};
    use super::*;

    fn cut(frame: &[u8]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        split(frame, |frame| {
            assert_eq!(frame[..VNET_LEN], [0; VNET_LEN]);
            packets.push(frame[VNET_LEN..].to_vec());
        })
        .expect("sound");
        packets
    }

    #[test]
    fn cwr_stays_on_the_first_and_fin_and_psh_on_the_last() {
        let sample = Sample::tcp(&[9; 3000], 1400);
        let mut frame = sample.frame();
        frame[VNET_LEN + 20 + 13] |= (CWR | FIN | PSH) as u8;
        let flags: Vec<u16> = cut(&frame).iter().map(|packet| u16::from(packet[33])).collect();
        let ack = 0x10;
        assert_eq!(flags, [ack | CWR, ack, ack | FIN | PSH]);
        assert!(cut(&frame).iter().all(|packet| checksums_are_right(packet)));
    }

    #[test]
    fn a_computed_udp_checksum_of_zero_is_sent_as_ffff() {
        let mut sample = Sample { udp: true, ..Sample::tcp(&[0; 4], 2) };
        // Choose the payload so that the sum of each datagram comes out as zero.
        let checksum = |payload: &[u8]| {
            let one = Sample { udp: true, ..Sample::tcp(payload, 2) }.packet();
            [one[26], one[27]]
        };
        let magic = checksum(&[0, 0]);
        sample.payload = [magic, magic].concat();
        for packet in cut(&sample.frame()) {
            assert_eq!(packet[26..28], [0xff, 0xff]);
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let sample = Sample::tcp(&[1; 3000], 1400);
        let frame = sample.frame();
        let edited = |edit: fn(&mut Vec<u8>)| {
            let mut frame = frame.clone();
            edit(&mut frame);
            split(&frame, |_| panic!("nothing may come out"))
        };
        assert_eq!(edited(|frame| frame[1] = 3), Err(OffloadError::Kind));
        assert_eq!(edited(|frame| frame[1] = VirtioNetHdr::GSO_TCPV6), Err(OffloadError::Kind));
        assert_eq!(edited(|frame| frame[1] = VirtioNetHdr::GSO_UDP_L4), Err(OffloadError::Kind));
        assert_eq!(edited(|frame| frame[4..6].fill(0)), Err(OffloadError::Kind));
        assert_eq!(edited(|frame| frame[VNET_LEN + 32] = 0x40), Err(OffloadError::Kind));
        assert_eq!(edited(|frame| frame[VNET_LEN + 6] |= 0x20), Err(OffloadError::Kind));
        assert_eq!(edited(|frame| frame.truncate(9)), Err(OffloadError::Truncated));
        assert_eq!(edited(|frame| frame[VNET_LEN] = 0x55), Err(OffloadError::Packet(Malformed::NotIp)));
        let plain = |frame: &mut Vec<u8>| {
            frame[1] = 0;
            frame[6..8].fill(0xff);
        };
        assert_eq!(edited(plain), Err(OffloadError::ChecksumPosition));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn segments_are_the_packets_made_from_scratch(sample in Sample::any()) {
            prop_assert_eq!(cut(&sample.frame()), sample.segments());
        }

        #[test]
        fn finishing_a_partial_checksum_gives_the_whole_one(sample in Sample::any()) {
            let mut frame = sample.frame();
            frame[1] = VirtioNetHdr::GSO_NONE;
            let packets = cut(&frame);
            prop_assert_eq!(packets, vec![sample.packet()]);
        }

        #[test]
        fn arbitrary_frames_never_panic(frame in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            let mut frame = frame;
            if let Some(byte) = frame.get_mut(VNET_LEN) {
                *byte = if v6 { 0x60 } else { 0x45 };
            }
            let _ = split(&frame, |_| {});
        }

        #[test]
        fn damaged_frames_never_panic(sample in Sample::any(), at: prop::sample::Index, value: u8, cut: prop::sample::Index) {
            let mut frame = sample.frame();
            let at = at.index(frame.len().min(80));
            frame[at] = value;
            frame.truncate(cut.index(frame.len() + 1));
            let _ = split(&frame, |_| {});
        }
    }
}
