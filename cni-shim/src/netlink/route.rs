//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType,
    RouteVia,
};

use super::{FAMILIES, Message, Netlink, NetlinkError, family};

/// `RT_TABLE_LOCAL` of `linux/rtnetlink.h`: the kernel's own table of local and broadcast addresses.
const TABLE_LOCAL: u32 = 255;

/// `RTN_UNICAST` and `RTN_UNREACHABLE` of `linux/rtnetlink.h`.
const UNICAST: u8 = 1;
const UNREACHABLE: u8 = 7;

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
    /// Outgoing interface; `None` for a multipath route, and for an unreachable one (IPv6 names loopback there).
    pub link: Option<u32>,
    /// Next hop; `None` for a multipath route.
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
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let what = format_args!("list routes");
            let message = Message { kind: libc::RTM_GETROUTE, body: message };
            all.extend(self.dump(&message, what, |payload| {
                // A kernel without IPv6 answers an IPv6 dump with every family it has.
                RouteMessage::parse(payload)
                    .ok()
                    .filter(|message| message.header.address_family == family)
                    .filter(|message| !message.header.flags.contains(RouteFlags::Cloned))
                    .and_then(|message| route(&message))
                    .filter(|route| route.table != TABLE_LOCAL)
            })?);
        }
        Ok(all)
    }

    /// Adds a route exclusively (`NLM_F_CREATE | NLM_F_EXCL`).
    ///
    /// # Errors
    /// `EEXIST` if destination, table and metric are taken.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let what = format_args!("add route {}", route.destination);
        self.request(
            &Message { kind: libc::RTM_NEWROUTE, body: request(route) },
            NLM_F_CREATE | NLM_F_EXCL,
            what,
        )
    }

    /// Adds a route or replaces the one with the same destination, table and metric.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn replace_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let what = format_args!("replace route {}", route.destination);
        self.request(
            &Message { kind: libc::RTM_NEWROUTE, body: request(route) },
            NLM_F_CREATE | NLM_F_REPLACE,
            what,
        )
    }

    /// Deletes exactly this route (destination, table, metric, protocol, kind and link must match).
    ///
    /// The kernel takes metric 0 for any metric: of several routes it then deletes the one with the least. IPv6
    /// compares no kind; two routes that differ in nothing else cannot both exist there.
    ///
    /// # Errors
    /// `ESRCH` if it is not there.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let mut message = request(route);
        // RT_SCOPE_NOWHERE matches every scope (`fib_table_delete` in net/ipv4/fib_trie.c).
        message.header.scope = RouteScope::NoWhere;
        // Compared too, if given; they say nothing about identity.
        message.attributes.retain(|attribute| {
            !matches!(attribute, RouteAttribute::Metrics(_) | RouteAttribute::PrefSource(_))
        });
        let what = format_args!("delete route {}", route.destination);
        self.request(&Message { kind: libc::RTM_DELROUTE, body: message }, 0, what)
    }

    /// The route that the kernel would take to this address (`RTM_GETROUTE` for one destination).
    ///
    /// # Errors
    /// `ENETUNREACH` if there is none.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Route, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        if destination.is_ipv4() {
            // IPv4 names the main table otherwise; IPv6 always names the real one and refuses the flag.
            message.header.flags = RouteFlags::LookupTable;
        }
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let what = format_args!("look up the route to {destination}");
        let message = Message { kind: libc::RTM_GETROUTE, body: message };
        let found = self.get(&message, what, |payload| route(&RouteMessage::parse(payload).ok()?))?;
        found.ok_or_else(|| {
            let cause = format!("malformed answer about the route to {destination}");
            std::io::Error::new(std::io::ErrorKind::InvalidData, cause).into()
        })
    }
}

fn request(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.addr());
    header.destination_prefix_length = route.destination.prefix_len();
    header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.protocol = route.protocol.into();
    header.kind = RouteType::from(match route.kind {
        RouteKind::Unicast => UNICAST,
        RouteKind::Unreachable => UNREACHABLE,
        RouteKind::Other(kind) => kind,
    });
    let on_link = route.kind == RouteKind::Unicast && route.gateway.is_none();
    header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    // A default route has no destination attribute; IPv6 refuses a zero-length one with bytes.
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let kind = match u8::from(header.kind) {
        UNICAST => RouteKind::Unicast,
        UNREACHABLE => RouteKind::Unreachable,
        other => RouteKind::Other(other),
    };
    let unspecified: IpAddr = if header.address_family == FAMILIES[0] {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let mut route = Route {
        destination: IpNet::new(unspecified, header.destination_prefix_length).ok()?,
        table: header.table.into(),
        metric: 0,
        kind,
        protocol: header.protocol.into(),
        link: None,
        gateway: None,
        source: None,
        mtu: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = IpNet::new(ip(address)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(link) if kind != RouteKind::Unreachable => route.link = Some(*link),
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::Via(RouteVia::Inet(gateway)) => route.gateway = Some((*gateway).into()),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => route.gateway = Some((*gateway).into()),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
