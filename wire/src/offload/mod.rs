//! Segmentation of super-packets, coalescing of segments, and the Internet checksum.
//!
//! A super-packet is one IP packet whose payload stands for several of equal size; the virtio-net header says
//! which size. [`Segments`] cuts one up as the kernel would, [`Coalescer`] joins segments so that cutting the
//! result up again gives the same packets. Both touch each payload byte once, checksumming while copying.
//!
//! The functions that walk payloads are deliberately not `#[inline]`: they are then compiled with this crate, which is
//! optimised in debug builds too, and link-time optimisation inlines them where release builds want it.

mod candidate;
mod checksum;
mod coalesce;
#[cfg(test)]
mod sample;
mod segment;
mod tunnel;

pub use checksum::{Sum, copy_sum, pseudo_header, update_word};
pub use coalesce::{Coalescer, Delivery};
pub use segment::{OffloadError, Segments, finish, split};
pub use tunnel::{Outer, TUNNEL_VNET_LEN, TunnelHeader};
