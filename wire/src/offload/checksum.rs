//! The Internet checksum (RFC 1071): the ones' complement of the ones' complement sum of 16-bit words.

use std::net::IpAddr;

/// A sum in progress: 32-bit words added up in 64 bits in the machine's byte order. Ones' complement addition does
/// not mind the byte order (RFC 1071, section 2 B), so bytes are swapped once, at the end.
///
/// Room for 2^32 words: no packet overflows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even offset of what is summed. An odd last byte is padded with zero, so only the last piece may be odd.
    #[must_use]
    #[inline]
    pub fn bytes(self, data: &[u8]) -> Self {
        let (words, rest) = data.as_chunks::<8>();
        // Two sums over one plain run of words: the form that compilers turn into vector code.
        let (mut low, mut high) = (0_u64, 0_u64);
        for word in words {
            let word = u64::from_ne_bytes(*word);
            low = low.wrapping_add(word & 0xffff_ffff);
            high = high.wrapping_add(word >> 32);
        }
        let (half, rest) = rest
            .split_first_chunk::<4>()
            .map_or((0, rest), |(half, rest)| (u64::from(u32::from_ne_bytes(*half)), rest));
        let last = match *rest {
            [a] => u32::from_ne_bytes([a, 0, 0, 0]),
            [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
            [a, b, c] => u32::from_ne_bytes([a, b, c, 0]),
            _ => 0,
        };
        let last = half + u64::from(last);
        Self(self.0.wrapping_add(low).wrapping_add(high).wrapping_add(last))
    }

    /// Adds one 16-bit word given as a number.
    #[must_use]
    #[inline]
    pub fn word(self, value: u16) -> Self {
        Self(self.0.wrapping_add(u64::from(value.to_be())))
    }

    /// Adds one 32-bit word given as a number.
    #[must_use]
    #[inline]
    pub fn long(self, value: u32) -> Self {
        Self(self.0.wrapping_add(u64::from(value.to_be())))
    }

    /// Adds another sum.
    #[must_use]
    #[inline]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The 16-bit sum, not complemented: what a partial checksum field holds.
    #[must_use]
    #[inline]
    pub fn fold(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        (sum as u16).to_be()
    }

    /// The checksum: what goes into the field.
    #[must_use]
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Whether this sum, taken over data with its checksum in place, says that the data is intact.
    #[must_use]
    #[inline]
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// Copies `from` to the start of `to` and sums it. Bytes that do not fit are left out of both.
///
/// The sum reads what the copy has just brought into the first-level cache: faster than to store each word as it is summed.
#[inline]
pub fn copy_sum(from: &[u8], to: &mut [u8]) -> Sum {
    let length = from.len().min(to.len());
    to[..length].copy_from_slice(&from[..length]);
    Sum::default().bytes(&to[..length])
}

/// The sum over a pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) for `length` bytes of transport.
#[must_use]
#[inline]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::default().long(source.to_bits()).long(destination.to_bits())
        }
        (source, destination) => Sum::default().address(source).address(destination),
    };
    sum.long(length as u32).word(u16::from(protocol))
}

/// The checksum after one 16-bit word of the data changed (RFC 1624, equation 3).
#[must_use]
#[inline]
pub fn update_word(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::default().word(!checksum).word(!old).word(new).checksum()
}

impl Sum {
    #[inline]
    fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.long(v4.to_bits()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 1, word by word.
    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn example_of_rfc_1071_section_3() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&data).fold(), 0xddf2);
    }

    #[test]
    fn a_real_ipv4_header_is_valid_with_its_checksum_in_place() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert!(Sum::default().bytes(&header).is_valid());
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        let data = vec![0xff; 65_536];
        assert_eq!(Sum::default().bytes(&data).checksum(), naive(&data));
    }

    proptest! {
        #[test]
        fn fast_is_naive(data in vec(any::<u8>(), 0..700)) {
            prop_assert_eq!(Sum::default().bytes(&data).checksum(), naive(&data));
        }

        #[test]
        fn copy_sum_copies_and_sums(data in vec(any::<u8>(), 0..700), room in 0_usize..700) {
            let mut out = vec![0xa5; room];
            let sum = copy_sum(&data, &mut out);
            let fits = data.len().min(room);
            prop_assert_eq!(&out[..fits], &data[..fits]);
            prop_assert!(out[fits..].iter().all(|byte| *byte == 0xa5));
            prop_assert_eq!(sum.checksum(), naive(&data[..fits]));
        }

        #[test]
        fn pieces_sum_up(a in vec(any::<u16>(), 0..90), b in vec(any::<u8>(), 0..90), word: u16, long: u32) {
            let a: Vec<u8> = a.into_iter().flat_map(u16::to_be_bytes).collect();
            let sum = Sum::default().bytes(&a).word(word).long(long).plus(Sum::default().bytes(&b));
            let whole = [&a[..], &word.to_be_bytes(), &long.to_be_bytes(), &b].concat();
            prop_assert_eq!(sum.checksum(), naive(&whole));
        }

        #[test]
        fn incremental_is_full(mut words in vec(any::<u16>(), 1..40), at: prop::sample::Index, new: u16) {
            let bytes = |words: &[u16]| -> Vec<u8> { words.iter().flat_map(|word| word.to_be_bytes()).collect() };
            let before = naive(&bytes(&words));
            let at = at.index(words.len());
            let old = std::mem::replace(&mut words[at], new);
            let updated = update_word(before, old, new);
            // All-zero data has no other form of zero to come from: there RFC 1624 says nothing.
            prop_assume!(words.iter().any(|word| *word != 0));
            prop_assert_eq!(updated, naive(&bytes(&words)));
        }
    }
}
