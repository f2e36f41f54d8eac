//! Synchronous rtnetlink: one socket, one request at a time, typed values in and out.
//!
//! A socket belongs to the network namespace of the thread that opened it, for ever.

mod address;
mod link;
mod neighbour;
mod route;
mod socket;

pub use address::Address;
pub use link::{Link, VethSpec};
pub use neighbour::Neighbour;
pub use route::{Route, RouteKind};
pub use socket::{Netlink, NetlinkError};
