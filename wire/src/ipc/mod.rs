//! One request and one reply per connection between the CNI plugin and the daemon.
//!
//! A frame is a 4-byte little-endian payload length, a version byte, three zero bytes, and the
//! payload: one message in bincode's variable-length little-endian encoding, without trailing bytes.
//!
//! # Neighbours of another version
//!
//! An upgrade replaces the plugin's binary and the daemon one after the other, so each must
//! understand a neighbour that is one version older or newer:
//!
//! * An enum variant may only be appended, and that adds one to [`VERSION`]. A message that both
//!   sides know has the same bytes in both versions; [`decode_header`] therefore accepts the version
//!   before and after its own.
//! * A reader that meets a variant it does not know gets [`FrameError::Malformed`]. The daemon then
//!   answers [`Reply::Refused`] with [`RefusalKind::Invalid`], which every version knows, and serves
//!   the next connection; the plugin reports it as an error of its own.
//! * Any other change (a field added, removed or retyped, variants reordered) changes the bytes of
//!   known messages. It adds two to [`VERSION`], so that both sides refuse one another by name.
//! * A plugin whose daemon is one version older therefore gets [`RefusalKind::Invalid`] for what is new, and no other
//!   harm. Variants that are appended together, before a release, share one number.
//!
//! | version | since then |
//! |---|---|
//! | 1 | [`Request::Allocate`], [`Request::Taken`], [`Request::Release`], [`Request::Check`] |
//! | 2 | [`Request::Status`], [`Request::AllocateThese`], [`Request::Adopt`], [`RefusalKind::Impaired`] |

mod frame;
mod message;

pub use frame::{FRAME_LIMIT, FrameError, HEADER_LEN, VERSION, decode_header};
pub use message::{Attachment, Lease, LeaseAddress, RefusalKind, Reply, Request, decode, encode};
