//! Synchronous rtnetlink: one socket, one request at a time, typed values in and out.
//!
//! A socket belongs to the network namespace of the thread that opened it, for ever.

mod address;
pub mod attribute;
mod link;
mod neighbour;
mod route;
mod rule;
mod socket;

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;

pub use address::Address;
pub use link::{Link, VethSpec};
pub use neighbour::Neighbour;
pub use route::{Route, RouteKind};
pub use rule::Rule;
pub use socket::{Netlink, NetlinkError};

use socket::Message;

/// The families that we read, IPv4 first.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
