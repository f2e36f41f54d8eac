//! What stands under the TUN device's name, asked by rtnetlink: right in whatever network namespace the process is, unlike
//! a `/sys` that may be another one's.

use std::io;

use netlink_packet_core::Nla;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A link of the name in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// None.
    Absent,
    /// A TUN device with this index; `usable` if its flags are those we attach with.
    Tun { index: u32, usable: bool },
    /// A TAP device with this index.
    Tap { index: u32 },
    /// Something else, of this kind.
    Foreign(String),
}

/// `IFLA_TUN_*` in `include/uapi/linux/if_link.h`: one byte each.
const TUN_TYPE: u16 = 3;
const TUN_PI: u16 = 4;
const TUN_VNET_HDR: u16 = 5;
const TUN_MULTI_QUEUE: u16 = 7;

/// Looks the name up.
pub(super) fn inspect(name: &str) -> io::Result<Link> {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match request(RouteNetlinkMessage::GetLink(question), NLM_F_REQUEST) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(classify(&link)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel answered with something else")),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Link::Absent),
        Err(error) => Err(error),
    }
}

/// Deletes a link; one that is gone already is deleted.
pub(super) fn delete(index: u32) -> io::Result<()> {
    let mut order = LinkMessage::default();
    order.header.index = index;
    match request(RouteNetlinkMessage::DelLink(order), NLM_F_REQUEST | NLM_F_ACK) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

fn classify(link: &LinkMessage) -> Link {
    let mut kind = None;
    let mut flags = [None; 8];
    for attribute in &link.attributes {
        let LinkAttribute::LinkInfo(infos) = attribute else { continue };
        for info in infos {
            match info {
                LinkInfo::Kind(found) => kind = Some(found.clone()),
                LinkInfo::Data(InfoData::Tun(values)) => {
                    for value in values {
                        let mut byte = [0_u8; 8];
                        if value.value_len() == 1 {
                            value.emit_value(&mut byte[..1]);
                            if let Some(slot) = flags.get_mut(usize::from(value.kind())) {
                                *slot = Some(byte[0]);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
    }
    let Some(InfoKind::Tun) = kind else {
        return Link::Foreign(kind.map_or_else(|| "physical".to_owned(), |kind| kind.to_string()));
    };
    let flag = |number: u16| flags.get(usize::from(number)).copied().flatten();
    if flag(TUN_TYPE) != Some(libc::IFF_TUN as u8) {
        return Link::Tap { index: link.header.index };
    }
    let usable = flag(TUN_PI) == Some(0) && flag(TUN_VNET_HDR) == Some(1) && flag(TUN_MULTI_QUEUE) == Some(1);
    Link::Tun { index: link.header.index, usable }
}

/// Sends one message and reads its one answer.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>>
where
    RouteNetlinkMessage: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}
