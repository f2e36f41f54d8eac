//! Formats of the packets that cross the TUN device and the underlay.

mod ether;

pub use ether::MacAddr;
