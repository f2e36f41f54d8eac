//! Makes a kernel vxlan device: the leftover that tests put in the daemon's way.

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Adds it to the calling thread's namespace, down.
pub(crate) fn add(name: &str, vni: u32, port: u16) -> Result<()> {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(vni),
                InfoVxlan::Port(port),
                InfoVxlan::Learning(false),
            ])),
        ]),
    ];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::NewLink(link)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE).context("open netlink")?;
    socket.bind_auto().context("bind netlink")?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).context("ask for a vxlan device")?;
    let (answer, _) = socket.recv_from_full().context("answer to a vxlan device")?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).context("answer")?.payload {
        NetlinkPayload::Error(error) if error.raw_code() == 0 => Ok(()),
        NetlinkPayload::Error(error) => {
            Err(error.to_io()).with_context(|| format!("make vxlan device {name}"))
        }
        other => bail!("unexpected answer to a vxlan device: {other:?}"),
    }
}
