//! The messages, and the only place that names bincode.

use std::net::IpAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::FrameError;

/// The identity of one interface of one container in one network (CNI spec 1.1, "container id and interface name").
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Give this attachment addresses. The answer is [`Reply::Leased`]. Asking again before the veth
    /// exists gives the same lease.
    Allocate(Attachment),
    /// The addresses of the lease just given turned out to be in use in the kernel (`EEXIST`): give others.
    Taken {
        /// Who asks.
        attachment: Attachment,
        /// The addresses that could not be used.
        addresses: Vec<IpAddr>,
    },
    /// The attachment is gone, or was never finished. The answer is [`Reply::Done`], also when unknown.
    Release(Attachment),
    /// Does the daemon know this attachment with these addresses, and can it carry its packets?
    Check {
        /// Who asks.
        attachment: Attachment,
        /// What the attachment believes it holds.
        addresses: Vec<IpAddr>,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The addresses to plumb.
    Leased(Lease),
    /// Yes.
    Done,
    /// No, and why, in words for a person.
    Refused {
        /// How the plugin should class it.
        kind: RefusalKind,
        /// The cause.
        message: String,
    },
}

/// Classes of refusal, each a CNI error code in the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The daemon cannot serve yet (no pod CIDR, no device): try again later.
    NotReady,
    /// Every address is in use.
    Exhausted,
    /// The request itself is wrong.
    Invalid,
    /// CHECK found a difference.
    Mismatch,
    /// Something failed inside the daemon.
    Internal,
}

/// Addresses for one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// IPv4 first, at most one per family.
    pub addresses: Vec<LeaseAddress>,
    /// MTU of both veth ends in bytes.
    pub mtu: u32,
}

/// One address and the gateway that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAddress {
    /// The pod's address (a /32 or /128 on the pod's interface).
    pub address: IpAddr,
    /// The pod's next hop.
    pub gateway: IpAddr,
}

/// A whole frame, header included.
///
/// # Errors
/// If the message is over the limit.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let _ = message;
    todo!()
}

/// Reads a payload (without header). Trailing bytes are an error.
///
/// # Errors
/// If the payload is not exactly one message.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    let _ = payload;
    todo!()
}
