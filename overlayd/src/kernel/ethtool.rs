//! What a link can do, asked by ethtool's generic netlink (`linux/ethtool_netlink.h`, `linux/genetlink.h`).

use std::io;
use std::time::Duration;

use cni_shim::netlink::attribute::{self, Attributes};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `ETHTOOL_MSG_FEATURES_GET`; `ETHTOOL_A_FEATURES_HEADER`, `_ACTIVE`; `ETHTOOL_A_HEADER_DEV_INDEX`.
const GET_FEATURES: u8 = 11;
const FEATURES_HEADER: u16 = 1;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_LINK: u16 = 1;

/// `ETHTOOL_A_BITSET_BITS`, `ETHTOOL_A_BITSET_BIT_NAME`.
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;

/// `NLM_F_REQUEST` and `NLMSG_ERROR` of `linux/netlink.h`.
const REQUEST: u16 = 1;
const ERROR: u16 = 2;

/// `struct nlmsghdr`, and the same with `struct genlmsghdr`.
const MESSAGE_HEADER: usize = 16;
const HEADERS: usize = MESSAGE_HEADER + 4;

/// Segmentation below the headers of a UDP tunnel, without and with an outer checksum (`net/ethtool/common.c`).
const TUNNEL_FEATURES: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];

/// How long the answer may take: the kernel gives it within the system call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The socket, opened with the first question.
#[derive(Default)]
pub(super) struct Ethtool(Option<Open>);

struct Open {
    socket: Socket,
    family: u16,
}

impl std::fmt::Debug for Ethtool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ethtool").finish_non_exhaustive()
    }
}

impl Ethtool {
    /// Whether this link segments TCP below the headers of a UDP tunnel, outer checksum included. One that cannot be asked
    /// (gone, or a kernel without this interface) does not.
    pub(super) fn segments_tunnels(&mut self, link: u32) -> bool {
        let mut ask = || -> io::Result<bool> {
            let open = match &mut self.0 {
                Some(open) => open,
                none => none.insert(open()?),
            };
            open.has_tunnel_features(link)
        };
        ask().unwrap_or(false)
    }
}

fn open() -> io::Result<Open> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    let name = Attributes::default().text(FAMILY_NAME, "ethtool");
    let answer = request(&socket, CONTROL, GET_FAMILY, &name)?;
    let family =
        attribute::find(&answer, FAMILY_ID).and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes);
    Ok(Open { socket, family: family.ok_or(io::ErrorKind::InvalidData)? })
}

impl Open {
    fn has_tunnel_features(&self, link: u32) -> io::Result<bool> {
        let header = Attributes::default().host32(HEADER_LINK, link);
        let body = Attributes::default().nested(FEATURES_HEADER, &header);
        let answer = request(&self.socket, self.family, GET_FEATURES, &body)?;
        Ok(has_tunnel_features(&answer))
    }
}

/// The list of active features names those that are on.
fn has_tunnel_features(answer: &[u8]) -> bool {
    let bits =
        attribute::find(answer, FEATURES_ACTIVE).and_then(|active| attribute::find(active, BITSET_BITS));
    let names: Vec<String> = attribute::each(bits.unwrap_or_default())
        .filter_map(|(_, bit)| attribute::text(bit, BIT_NAME))
        .collect();
    TUNNEL_FEATURES.iter().all(|feature| names.iter().any(|name| name == feature))
}

/// Sends one request and returns the attributes of its answer.
fn request(socket: &Socket, family: u16, command: u8, body: &Attributes) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADERS + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADERS + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number and port are of no interest with one answer per request; then the command and its version.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(body.as_slice());
    socket.send(&message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind == Some(ERROR) {
        let errno = answer.get(MESSAGE_HEADER..HEADERS).and_then(|code| code.try_into().ok());
        return Err(io::Error::from_raw_os_error(-errno.map_or(-libc::EIO, i32::from_ne_bytes)));
    }
    Ok(answer.get(HEADERS..).unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(names: &[&str]) -> Vec<u8> {
        let bits = names.iter().fold(Attributes::default(), |bits, name| {
            bits.nested(1, &Attributes::default().host32(1, 7).text(BIT_NAME, name))
        });
        let set = Attributes::default().host32(2, 64).nested(BITSET_BITS, &bits);
        Attributes::default().nested(FEATURES_ACTIVE, &set).bytes()
    }

    #[test]
    fn both_features_must_be_on() {
        let [plain, csum] = TUNNEL_FEATURES;
        assert!(has_tunnel_features(&active(&["rx-gro", csum, plain])));
        for names in [&[plain][..], &[csum], &["tx-tcp-segmentation"], &[]] {
            assert!(!has_tunnel_features(&active(names)), "{names:?}");
        }
        assert!(!has_tunnel_features(&[]));
    }

    /// Loopback segments everything in software (`NETIF_F_GSO_SOFTWARE`), tunnels not among it.
    #[test]
    fn the_kernel_answers_for_a_link_and_for_none() {
        let mut ethtool = Ethtool::default();
        assert!(!ethtool.segments_tunnels(1));
        let open = ethtool.0.as_ref().expect("the kernel knows ethtool");
        assert!(open.has_tunnel_features(1).is_ok());
        assert_eq!(open.has_tunnel_features(i32::MAX as u32).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
