//! The frame header: length, version, three zero bytes.

/// Bytes before the payload.
pub const HEADER_LEN: usize = 8;

/// Largest payload in bytes.
pub const FRAME_LIMIT: usize = 64 * 1024;

/// Version that this build writes.
pub const VERSION: u8 = 1;

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

/// Reads a header and returns the payload's length in bytes.
///
/// # Errors
/// Says which rule of the header is broken.
pub fn decode_header(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let _ = header;
    todo!()
}
