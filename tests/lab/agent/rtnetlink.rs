//! Requests to rtnetlink that the product has no use for: kernel vxlan devices, as leftovers in the daemon's way and as
//! peers, and what tests take away.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use wire::packet::MacAddr;

/// Adds a kernel vxlan device to the calling thread's namespace, down.
pub(crate) fn add_vxlan(name: &str, vni: u32, port: u16) -> Result<()> {
    make_vxlan(name, vec![InfoVxlan::Id(vni), InfoVxlan::Port(port), InfoVxlan::Learning(false)], None)
}

/// Adds one that has a local address and a MAC of its own, down.
pub(crate) fn add_tunnel(name: &str, vni: u32, port: u16, local: IpAddr, mac: MacAddr) -> Result<()> {
    let local = match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    let options = vec![InfoVxlan::Id(vni), local, InfoVxlan::Port(port), InfoVxlan::Learning(false)];
    make_vxlan(name, options, Some(mac))
}

fn make_vxlan(name: &str, options: Vec<InfoVxlan>, mac: Option<MacAddr>) -> Result<()> {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(options)),
        ]),
    ];
    link.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
        .with_context(|| format!("make vxlan device {name}"))
}

/// Sends a vxlan device's frames to this MAC in datagrams to that node.
pub(crate) fn forward(link: u32, mac: MacAddr, node: IpAddr) -> Result<()> {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = link;
    entry.header.state = NeighbourState::Permanent;
    // NTF_SELF: the device's own table, not that of a bridge.
    entry.header.flags = NeighbourFlags::Own;
    let octets = match node {
        IpAddr::V4(node) => NeighbourAddress::Inet(node),
        IpAddr::V6(node) => NeighbourAddress::Inet6(node),
    };
    entry.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()), NeighbourAttribute::Destination(octets)];
    request(RouteNetlinkMessage::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)
        .with_context(|| format!("forward {mac} to {node}"))
}

/// Deletes a neighbour entry.
pub(crate) fn delete_neighbour(link: u32, address: IpAddr) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link;
    let destination = match address {
        IpAddr::V4(address) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(address)
        }
        IpAddr::V6(address) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(address)
        }
    };
    message.attributes.push(NeighbourAttribute::Destination(destination));
    request(RouteNetlinkMessage::DelNeighbour(message), 0)
        .with_context(|| format!("delete neighbour {address}"))
}

fn request(message: RouteNetlinkMessage, flags: u16) -> Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE).context("open netlink")?;
    socket.bind_auto().context("bind netlink")?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).context("ask the kernel")?;
    let (answer, _) = socket.recv_from_full().context("the kernel's answer")?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).context("answer")?.payload {
        NetlinkPayload::Error(error) if error.raw_code() == 0 => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io().into()),
        other => bail!("unexpected answer: {other:?}"),
    }
}
