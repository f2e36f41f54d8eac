//! Links: read, veth creation, the few attributes that we set.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{
    IFLA_ADDRESS, IFLA_ALT_IFNAME, IFLA_EXT_MASK, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_NET_NS_FD, IFLA_PROP_LIST, IFLA_TXQLEN,
};
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use wire::packet::MacAddr;

use super::attribute::{self, Attributes};
use super::{Message, Netlink, NetlinkError};

/// `RTM_NEWLINKPROP` of `linux/rtnetlink.h`.
const RTM_NEWLINKPROP: u16 = 108;

// `VETH_INFO_PEER` of `linux/veth.h`; `IFLA_VXLAN_ID` and `IFLA_VXLAN_PORT` of `linux/if_link.h`.
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_PORT: u16 = 15;

/// `RTEXT_FILTER_SKIP_STATS` of `linux/rtnetlink.h`: counters are most of a link's description.
const SKIP_STATS: u32 = 1 << 3;

/// What is said about a link.
#[derive(Debug, Default)]
struct LinkRequest {
    header: LinkHeader,
    attributes: Attributes,
}

impl LinkRequest {
    /// About the link of this index.
    fn of(index: u32) -> Self {
        Self { header: LinkHeader { index, ..LinkHeader::default() }, attributes: Attributes::default() }
    }

    fn with(self, add: impl FnOnce(Attributes) -> Attributes) -> Self {
        Self { attributes: add(self.attributes), ..self }
    }
}

impl Emitable for LinkRequest {
    fn buffer_len(&self) -> usize {
        self.header.buffer_len() + self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(self.header.buffer_len());
        self.header.emit(header);
        attributes.copy_from_slice(self.attributes.as_slice());
    }
}

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
        let body = LinkRequest::default().with(|all| all.host32(IFLA_EXT_MASK, SKIP_STATS));
        self.dump(&Message { kind: libc::RTM_GETLINK, body }, format_args!("list links"), link)
    }

    /// One link by name, or `None`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let body =
            LinkRequest::default().with(|all| all.text(IFLA_IFNAME, name).host32(IFLA_EXT_MASK, SKIP_STATS));
        let message = Message { kind: libc::RTM_GETLINK, body };
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
        let body = LinkRequest::of(index).with(|all| all.host32(IFLA_EXT_MASK, SKIP_STATS));
        let message = Message { kind: libc::RTM_GETLINK, body };
        let found = self.get(&message, format_args!("read link {index}"), |payload| {
            LinkHeader::parse(payload).ok().map(|header| header.flags.contains(LinkFlags::Running))
        });
        Ok(found?.unwrap_or(false))
    }

    /// Creates a veth pair; both ends are down afterwards.
    ///
    /// # Errors
    /// `EEXIST` if either name is taken.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<(), NetlinkError> {
        let peer = Attributes::default()
            .text(IFLA_IFNAME, spec.pod_name)
            .raw(IFLA_ADDRESS, &spec.pod_mac.0)
            .host32(IFLA_MTU, spec.mtu)
            .raw(IFLA_NET_NS_FD, &spec.pod_netns.as_raw_fd().to_ne_bytes());
        // The peer is described by a link message of its own, header included.
        let mut described = vec![0; LinkHeader::default().buffer_len()];
        described.extend(peer.bytes());
        let info = Attributes::default()
            .text(IFLA_INFO_KIND, "veth")
            .nested(IFLA_INFO_DATA, &Attributes::default().raw(VETH_INFO_PEER, &described));
        let body = LinkRequest::default().with(|all| {
            all.text(IFLA_IFNAME, spec.host_name)
                .raw(IFLA_ADDRESS, &spec.host_mac.0)
                .host32(IFLA_MTU, spec.mtu)
                .host32(IFLA_GROUP, spec.group)
                .nested(IFLA_LINKINFO, &info)
        });
        let what = format_args!("create veth pair {} and {}", spec.host_name, spec.pod_name);
        self.request(&Message { kind: libc::RTM_NEWLINK, body }, NLM_F_CREATE | NLM_F_EXCL, what)
    }

    /// Sets `IFLA_IFALIAS`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_alias(&mut self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        self.set_link(index, |all| all.raw(IFLA_IFALIAS, alias.as_bytes()), format_args!("alias"))
    }

    /// Adds an alternative name.
    ///
    /// # Errors
    /// `EEXIST` if a link has it.
    pub fn add_link_altname(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let property = Attributes::default().text(IFLA_ALT_IFNAME, name);
        let body = LinkRequest::of(index).with(|all| all.nested(IFLA_PROP_LIST, &property));
        self.request(
            &Message { kind: RTM_NEWLINKPROP, body },
            NLM_F_CREATE | NLM_F_EXCL,
            format_args!("add alternative name {name} to link {index}"),
        )
    }

    /// Sets or clears `IFF_UP`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut body = LinkRequest::of(index);
        body.header.change_mask = LinkFlags::Up;
        body.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        let state = if up { "up" } else { "down" };
        self.request(&Message { kind: libc::RTM_SETLINK, body }, 0, format_args!("set link {index} {state}"))
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.set_link(index, |all| all.host32(IFLA_MTU, mtu), format_args!("mtu {mtu}"))
    }

    /// Sets the transmit queue's length in packets.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn set_link_tx_queue_len(&mut self, index: u32, packets: u32) -> Result<(), NetlinkError> {
        self.set_link(
            index,
            |all| all.host32(IFLA_TXQLEN, packets),
            format_args!("transmit queue length {packets}"),
        )
    }

    /// Deletes a link.
    ///
    /// # Errors
    /// `ENODEV` if it is gone.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.request(
            &Message { kind: libc::RTM_DELLINK, body: LinkRequest::of(index) },
            0,
            format_args!("delete link {index}"),
        )
    }

    fn set_link(
        &mut self,
        index: u32,
        attribute: impl FnOnce(Attributes) -> Attributes,
        what: std::fmt::Arguments<'_>,
    ) -> Result<(), NetlinkError> {
        let body = LinkRequest::of(index).with(attribute);
        self.request(
            &Message { kind: libc::RTM_SETLINK, body },
            0,
            format_args!("set {what} of link {index}"),
        )
    }
}

/// A link from its description; `None` if that is no link's.
fn link(payload: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(payload).ok()?;
    let attributes = payload.get(header.buffer_len()..)?;
    let info = attribute::find(attributes, IFLA_LINKINFO).unwrap_or_default();
    let kind = attribute::text(info, IFLA_INFO_KIND).unwrap_or_default();
    let properties = attribute::find(attributes, IFLA_PROP_LIST).unwrap_or_default();
    let vxlan = attribute::find(info, IFLA_INFO_DATA).filter(|_| kind == "vxlan").unwrap_or_default();
    let number = |kind| attribute::host32(attributes, kind).unwrap_or(0);
    Some(Link {
        index: header.index,
        name: attribute::text(attributes, IFLA_IFNAME)?,
        mtu: number(IFLA_MTU),
        up: header.flags.contains(LinkFlags::Up),
        loopback: header.flags.contains(LinkFlags::Loopback),
        mac: attribute::find(attributes, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()).map(MacAddr),
        group: number(IFLA_GROUP),
        alias: attribute::text(attributes, IFLA_IFALIAS),
        altnames: attribute::each(properties)
            .filter(|(kind, _)| *kind == IFLA_ALT_IFNAME)
            .map(|(_, name)| attribute::until_nul(name))
            .collect(),
        tx_queue_len: number(IFLA_TXQLEN),
        vxlan_port: attribute::find(vxlan, IFLA_VXLAN_PORT)
            .and_then(|port| port.try_into().ok())
            .map(u16::from_be_bytes),
        vxlan_vni: attribute::host32(vxlan, IFLA_VXLAN_ID),
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(attributes: Attributes) -> Vec<u8> {
        let mut request = LinkRequest::of(7).with(|_| attributes);
        request.header.flags = LinkFlags::Up;
        let mut bytes = vec![0xff; request.buffer_len()];
        request.emit(&mut bytes);
        bytes
    }

    #[test]
    fn a_description_reads_back() {
        let vxlan =
            Attributes::default().host32(IFLA_VXLAN_ID, 9).raw(IFLA_VXLAN_PORT, &8472_u16.to_be_bytes());
        let info = Attributes::default().text(IFLA_INFO_KIND, "vxlan").nested(IFLA_INFO_DATA, &vxlan);
        let names = Attributes::default().text(IFLA_ALT_IFNAME, "one").text(IFLA_ALT_IFNAME, "two");
        let bytes = described(
            Attributes::default()
                .text(IFLA_IFNAME, "vx0")
                .raw(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])
                .host32(IFLA_MTU, 1450)
                .host32(IFLA_GROUP, 5)
                .host32(IFLA_TXQLEN, 1000)
                .text(IFLA_IFALIAS, "whose")
                .nested(IFLA_PROP_LIST, &names)
                .nested(IFLA_LINKINFO, &info),
        );
        let expected = Link {
            index: 7,
            name: "vx0".into(),
            kind: "vxlan".into(),
            mtu: 1450,
            up: true,
            loopback: false,
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            group: 5,
            alias: Some("whose".into()),
            altnames: vec!["one".into(), "two".into()],
            tx_queue_len: 1000,
            vxlan_port: Some(8472),
            vxlan_vni: Some(9),
        };
        assert_eq!(link(&bytes), Some(expected));
    }

    #[test]
    fn what_is_not_ethernet_or_has_no_kind_is_a_link_too() {
        let bytes = described(Attributes::default().text(IFLA_IFNAME, "tun0").raw(IFLA_ADDRESS, &[]));
        let found = link(&bytes).unwrap();
        assert_eq!((found.name.as_str(), found.mac, found.kind.as_str()), ("tun0", None, ""));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_link_or_none(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = link(&bytes);
        }
    }
}
