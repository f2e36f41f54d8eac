//! Interface addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use super::{FAMILIES, Message, Netlink, NetlinkError, family};

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Whether duplicate address detection still runs (`IFA_F_TENTATIVE`).
    pub tentative: bool,
}

impl Netlink {
    /// All addresses of the namespace, both families.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut message = AddressMessage::default();
            message.header.family = family;
            let what = format_args!("list addresses");
            let message = Message { kind: libc::RTM_GETADDR, body: message };
            all.extend(self.dump(&message, what, |payload| {
                AddressMessage::parse(payload)
                    .ok()
                    .filter(|message| message.header.family == family)
                    .and_then(|message| address(&message))
            })?);
        }
        Ok(all)
    }

    /// Adds an address exclusively; IPv6 without duplicate address detection (`IFA_F_NODAD`).
    ///
    /// # Errors
    /// `EEXIST` if it is there.
    pub fn add_address(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        let message = Message { kind: libc::RTM_NEWADDR, body: request(link, net) };
        self.request(&message, NLM_F_CREATE | NLM_F_EXCL, format_args!("add address {net} to link {link}"))
    }

    /// Removes an address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` if it is not there.
    pub fn delete_address(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        let message = Message { kind: libc::RTM_DELADDR, body: request(link, net) };
        self.request(&message, 0, format_args!("delete address {net} of link {link}"))
    }
}

fn request(link: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.index = link;
    message.header.prefix_len = net.prefix_len();
    if net.addr().is_loopback() {
        message.header.scope = AddressScope::Host;
    }
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    if net.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut other): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let mut tentative = false;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the neighbour's; IPv6 otherwise leaves IFA_LOCAL out.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(flags) => tentative = flags.contains(AddressFlags::Tentative),
            _ => {}
        }
    }
    let net = IpNet::new(local.or(other)?, message.header.prefix_len).ok()?;
    Some(Address { link: message.header.index, net, tentative })
}
