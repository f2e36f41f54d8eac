//! Links: read, veth creation, the few attributes that we set.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    Prop,
};
use wire::packet::MacAddr;

use super::{Message, Netlink, NetlinkError};

/// `RTM_NEWLINKPROP` of `linux/rtnetlink.h`.
const RTM_NEWLINKPROP: u16 = 108;

/// A network device as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `IFLA_INFO_KIND` ("veth", "tun", "vxlan", ...); empty for physical devices and loopback.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether `IFF_UP` is set.
    pub up: bool,
    /// Whether `IFF_LOOPBACK` is set.
    pub loopback: bool,
    /// Link-layer address, if it has an Ethernet one.
    pub mac: Option<MacAddr>,
    /// Device group.
    pub group: u32,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// `IFLA_TXQLEN` in packets.
    pub tx_queue_len: u32,
    /// UDP port, if it is a vxlan device.
    pub vxlan_port: Option<u16>,
    /// VNI, if it is a vxlan device.
    pub vxlan_vni: Option<u32>,
}

/// A veth pair to create, the peer straight in another namespace.
#[derive(Clone, Debug)]
pub struct VethSpec<'a> {
    /// Name of the host end.
    pub host_name: &'a str,
    /// MAC of the host end (in the creating message: udev rewrites kernel-chosen ones).
    pub host_mac: MacAddr,
    /// Device group of the host end.
    pub group: u32,
    /// Name of the pod end.
    pub pod_name: &'a str,
    /// MAC of the pod end.
    pub pod_mac: MacAddr,
    /// Namespace of the pod end.
    pub pod_netns: BorrowedFd<'a>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

impl Netlink {
    /// All links of the namespace.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.dump(&Message { kind: libc::RTM_GETLINK, body: message }, format_args!("list links"), link)
    }

    /// One link by name, or `None`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let message = Message { kind: libc::RTM_GETLINK, body: message };
        match self.get(&message, format_args!("read link {name}"), link) {
            // The kernel finds alternative names too: such a link is another one.
            Ok(found) => Ok(found.filter(|link| link.name == name)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a link is up and sees its carrier (`IFF_RUNNING`): what is sent on it arrives.
    ///
    /// # Errors
    /// `ENODEV` if it is gone.
    pub fn link_is_running(&mut self, index: u32) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let message = Message { kind: libc::RTM_GETLINK, body: message };
        let found = self.get(&message, format_args!("read link {index}"), |payload| {
            LinkMessage::parse(payload).ok().map(|message| message.header.flags.contains(LinkFlags::Running))
        });
        Ok(found?.unwrap_or(false))
    }

    /// Creates a veth pair; both ends are down afterwards.
    ///
    /// # Errors
    /// `EEXIST` if either name is taken.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<(), NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(spec.pod_name.to_owned()),
            LinkAttribute::Address(spec.pod_mac.0.to_vec()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::NetNsFd(spec.pod_netns.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(spec.host_name.to_owned()),
            LinkAttribute::Address(spec.host_mac.0.to_vec()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::Group(spec.group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let what = format_args!("create veth pair {} and {}", spec.host_name, spec.pod_name);
        self.request(&Message { kind: libc::RTM_NEWLINK, body: message }, NLM_F_CREATE | NLM_F_EXCL, what)
    }

    /// Sets `IFLA_IFALIAS`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_alias(&mut self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        self.set_link(index, LinkAttribute::IfAlias(alias.to_owned()), format_args!("alias"))
    }

    /// Adds an alternative name.
    ///
    /// # Errors
    /// `EEXIST` if a link has it.
    pub fn add_link_altname(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())]));
        self.request(
            &Message { kind: RTM_NEWLINKPROP, body: message },
            NLM_F_CREATE | NLM_F_EXCL,
            format_args!("add alternative name {name} to link {index}"),
        )
    }

    /// Sets or clears `IFF_UP`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        let state = if up { "up" } else { "down" };
        self.request(
            &Message { kind: libc::RTM_SETLINK, body: message },
            0,
            format_args!("set link {index} {state}"),
        )
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.set_link(index, LinkAttribute::Mtu(mtu), format_args!("mtu {mtu}"))
    }

    /// Sets the transmit queue's length in packets.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_tx_queue_len(&mut self, index: u32, packets: u32) -> Result<(), NetlinkError> {
        self.set_link(
            index,
            LinkAttribute::TxQueueLen(packets),
            format_args!("transmit queue length {packets}"),
        )
    }

    /// Deletes a link.
    ///
    /// # Errors
    /// `ENODEV` if it is gone.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.request(
            &Message { kind: libc::RTM_DELLINK, body: message },
            0,
            format_args!("delete link {index}"),
        )
    }

    fn set_link(
        &mut self,
        index: u32,
        attribute: LinkAttribute,
        what: std::fmt::Arguments<'_>,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        self.request(
            &Message { kind: libc::RTM_SETLINK, body: message },
            0,
            format_args!("set {what} of link {index}"),
        )
    }
}

fn link(payload: &[u8]) -> Option<Link> {
    let message = LinkMessage::parse(payload).ok()?;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        mac: None,
        group: 0,
        alias: None,
        altnames: Vec::new(),
        tx_queue_len: 0,
        vxlan_port: None,
        vxlan_vni: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddr),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::PropList(properties) => {
                link.altnames.extend(properties.into_iter().filter_map(|property| match property {
                    Prop::AltIfName(name) => Some(name),
                    _ => None,
                }));
            }
            LinkAttribute::TxQueueLen(packets) => link.tx_queue_len = packets,
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.read_info(info)),
            _ => {}
        }
    }
    Some(link)
}

impl Link {
    fn read_info(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = kind.to_string(),
            LinkInfo::Data(InfoData::Vxlan(attributes)) => {
                for attribute in attributes {
                    match attribute {
                        InfoVxlan::Port(port) => self.vxlan_port = Some(*port),
                        InfoVxlan::Id(vni) => self.vxlan_vni = Some(*vni),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}
