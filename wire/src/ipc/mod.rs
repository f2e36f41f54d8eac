//! One request and one reply per connection between the CNI plugin and the daemon.
//!
//! A frame is a 4-byte little-endian payload length, a version byte, three zero bytes, and the
//! payload. Enum variants are only ever appended, so that neighbours one version apart understand each other.

mod frame;
mod message;

pub use frame::{FRAME_LIMIT, FrameError, HEADER_LEN, VERSION, decode_header};
pub use message::{Attachment, Lease, LeaseAddress, RefusalKind, Reply, Request, decode, encode};
