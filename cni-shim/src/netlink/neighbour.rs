//! Neighbour entries.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use wire::packet::MacAddr;

use super::{FAMILIES, Message, Netlink, NetlinkError, family};

/// A neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// Interface index.
    pub link: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: MacAddr,
    /// Whether the entry is permanent.
    pub permanent: bool,
}

impl Netlink {
    /// Adds or replaces a permanent neighbour entry.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_permanent_neighbour(
        &mut self,
        link: u32,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = link;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let what = format_args!("set neighbour {address} ({mac}) on link {link}");
        let message = Message { kind: libc::RTM_NEWNEIGH, body: message };
        self.request(&message, NLM_F_CREATE | NLM_F_REPLACE, what)
    }

    /// All neighbour entries with a link-layer address, both families.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let what = format_args!("list neighbours");
            let message = Message { kind: libc::RTM_GETNEIGH, body: message };
            all.extend(self.dump(&message, what, |payload| {
                NeighbourMessage::parse(payload)
                    .ok()
                    .filter(|message| message.header.family == family)
                    .and_then(neighbour)
            })?);
        }
        Ok(all)
    }
}

fn neighbour(message: NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(MacAddr),
            _ => {}
        }
    }
    Some(Neighbour {
        link: message.header.ifindex,
        address: address?,
        mac: mac?,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
