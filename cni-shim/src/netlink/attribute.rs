//! Netlink attributes (`struct nlattr` of `linux/netlink.h`): length and type in host order, payload padded to four bytes.
//!
//! Links and netfilter objects are written and read by these: the few attributes that matter here, in place of code for all
//! that exist.

/// Length of the attribute header.
const HEADER: usize = 4;

/// `NLA_F_NESTED` of `linux/netlink.h`.
const NESTED: u16 = 0x8000;

/// `NLA_TYPE_MASK`: the type without its two flag bits.
const TYPE_MASK: u16 = 0x3fff;

/// Attributes being written.
#[derive(Debug, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// What was written.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes were written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One attribute. The callers' payloads stay far below the 64 KiB that the length field can say.
    #[must_use]
    pub fn raw(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(HEADER + payload.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Attributes within an attribute.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.raw(kind | NESTED, &inner.0)
    }

    /// With the terminator that the kernel's string attributes have.
    #[must_use]
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.raw(kind, &payload)
    }

    /// In host order, as rtnetlink's numbers.
    #[must_use]
    pub fn host32(self, kind: u16, number: u32) -> Self {
        self.raw(kind, &number.to_ne_bytes())
    }

    /// In network order, as all of netfilter's numbers.
    #[must_use]
    pub fn be32(self, kind: u16, number: u32) -> Self {
        self.raw(kind, &number.to_be_bytes())
    }

    /// In network order.
    #[must_use]
    pub fn be64(self, kind: u16, number: u64) -> Self {
        self.raw(kind, &number.to_be_bytes())
    }
}

/// The attributes in a message: type without flags, payload. Ends at the first malformed one.
pub fn each(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & TYPE_MASK, payload))
    })
}

/// The first attribute of this type.
#[must_use]
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    each(bytes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// A number in host order.
#[must_use]
pub fn host32(bytes: &[u8], kind: u16) -> Option<u32> {
    find(bytes, kind)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A number in network order.
#[must_use]
pub fn be32(bytes: &[u8], kind: u16) -> Option<u32> {
    find(bytes, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// A number in network order.
#[must_use]
pub fn be64(bytes: &[u8], kind: u16) -> Option<u64> {
    find(bytes, kind)?.try_into().ok().map(u64::from_be_bytes)
}

/// A text without its terminator.
#[must_use]
pub fn text(bytes: &[u8], kind: u16) -> Option<String> {
    find(bytes, kind).map(until_nul)
}

/// Bytes up to the first terminator, as text.
#[must_use]
pub fn until_nul(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_as_written() {
        let inner = Attributes::default().be32(2, 0xdead_beef).be64(3, 7).host32(5, 9);
        let bytes = Attributes::default().text(1, "overlayd").nested(4, &inner).bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text(&bytes, 1).as_deref(), Some("overlayd"));
        let inner = find(&bytes, 4).unwrap();
        assert_eq!((be32(inner, 2), be64(inner, 3), host32(inner, 5)), (Some(0xdead_beef), Some(7), Some(9)));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_end_the_walk(bytes in proptest::collection::vec(0u8.., 0..64)) {
            let total: usize = each(&bytes).map(|(_, payload)| payload.len()).sum();
            proptest::prop_assert!(total <= bytes.len());
        }

        #[test]
        fn a_zero_length_attribute_does_not_loop(kind in 0u16..) {
            let mut bytes = vec![0, 0];
            bytes.extend(kind.to_ne_bytes());
            proptest::prop_assert_eq!(each(&bytes).count(), 0);
        }
    }
}
