//! The frame header: length, version, three zero bytes.

/// Bytes before the payload.
pub const HEADER_LEN: usize = 8;

/// Largest payload in bytes.
pub const FRAME_LIMIT: usize = 64 * 1024;

/// Version that this build writes. See the [module](super) for what raises it.
pub const VERSION: u8 = 2;

/// Why bytes are not a frame of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload would be larger than [`FRAME_LIMIT`].
    #[error("frame of {0} bytes is over the limit of {FRAME_LIMIT}")]
    TooLong(usize),
    /// The neighbour speaks another version.
    #[error("frame version {0} is not known here (this side speaks {VERSION})")]
    Version(u8),
    /// Reserved header bytes are not zero, or the payload does not decode.
    #[error("malformed frame: {0}")]
    Malformed(String),
}

/// Reads a header and returns the payload's length in bytes. Whoever reads a stream reads
/// [`HEADER_LEN`] bytes, calls this, and then reads exactly that many more.
///
/// # Errors
/// Says which rule of the header is broken: a version further than one from ours, reserved bytes
/// that are not zero, or a length over [`FRAME_LIMIT`].
pub fn decode_header(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let [a, b, c, d, version, reserved @ ..] = header;
    if version == 0 || version.abs_diff(VERSION) > 1 {
        return Err(FrameError::Version(version));
    }
    if reserved != [0; 3] {
        return Err(FrameError::Malformed(format!("reserved bytes are {reserved:02x?}, not zero")));
    }
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > FRAME_LIMIT {
        return Err(FrameError::TooLong(length));
    }
    Ok(length)
}

/// The header for a payload that is known to be within [`FRAME_LIMIT`].
pub(super) fn encode_header(length: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, VERSION, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_layout_is_fixed() {
        assert_eq!(encode_header(0x1234), [0x34, 0x12, 0, 0, 2, 0, 0, 0]);
        assert_eq!(decode_header([0x34, 0x12, 0, 0, 2, 0, 0, 0]), Ok(0x1234));
    }

    #[test]
    fn the_versions_next_to_ours_are_accepted_and_no_others() {
        assert_eq!(decode_header([1, 0, 0, 0, VERSION - 1, 0, 0, 0]), Ok(1));
        assert_eq!(decode_header([1, 0, 0, 0, VERSION + 1, 0, 0, 0]), Ok(1));
        assert_eq!(decode_header([1, 0, 0, 0, VERSION + 2, 0, 0, 0]), Err(FrameError::Version(VERSION + 2)));
        assert_eq!(decode_header([1, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::Version(0)));
        assert_eq!(decode_header([1, 0, 0, 0, 255, 0, 0, 0]), Err(FrameError::Version(255)));
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for at in 5..HEADER_LEN {
            let mut header = encode_header(1);
            header[at] = 1;
            assert!(matches!(decode_header(header), Err(FrameError::Malformed(_))), "byte {at}");
        }
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        assert_eq!(decode_header(encode_header(0x1_0000)), Ok(FRAME_LIMIT));
        assert_eq!(decode_header(encode_header(0x1_0001)), Err(FrameError::TooLong(FRAME_LIMIT + 1)));
        assert!(decode_header([0xff, 0xff, 0xff, 0xff, VERSION, 0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn an_accepted_header_promises_at_most_the_limit(header in any::<[u8; HEADER_LEN]>()) {
            if let Ok(length) = decode_header(header) {
                prop_assert!(length <= FRAME_LIMIT);
            }
        }
    }
}
