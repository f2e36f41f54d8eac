//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Netlink, NetlinkError};

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// Forwards or delivers by a link.
    Unicast,
    /// Answers with ICMP unreachable (`RTN_UNREACHABLE`).
    Unreachable,
    /// Any other `rtm_type`.
    Other(u8),
}

/// A route of one table. Two routes with the same destination, table and metric (and tos 0) exclude each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination; `0.0.0.0/0` or `::/0` for a default route.
    pub destination: IpNet,
    /// Routing table; `RT_TABLE_MAIN` is 254.
    pub table: u32,
    /// Metric (`RTA_PRIORITY`); 0 if the kernel reports none. IPv6 turns 0 into 1024.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// Outgoing interface.
    pub link: Option<u32>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// `RTAX_MTU` in bytes.
    pub mtu: Option<u32>,
    /// Whether the gateway is on the link whatever the addresses say (`RTNH_F_ONLINK`).
    pub onlink: bool,
}

impl Netlink {
    /// All routes of every table except `local` (255), both families, cloned cache entries left out.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        todo!()
    }

    /// Adds a route exclusively (`NLM_F_CREATE | NLM_F_EXCL`).
    ///
    /// # Errors
    /// `EEXIST` if destination, table and metric are taken.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let _ = route;
        todo!()
    }

    /// Adds a route or replaces the one with the same destination, table and metric.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn replace_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let _ = route;
        todo!()
    }

    /// Deletes exactly this route (destination, table, metric, protocol, kind and link must match).
    ///
    /// # Errors
    /// `ESRCH` if it is not there.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let _ = route;
        todo!()
    }

    /// The route that the kernel would take to this address (`RTM_GETROUTE` for one destination).
    ///
    /// # Errors
    /// `ENETUNREACH` if there is none.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Route, NetlinkError> {
        let _ = destination;
        todo!()
    }
}
