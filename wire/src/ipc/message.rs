//! The messages, and the only place that names bincode.

use std::net::IpAddr;

use bincode::Options;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::FrameError;
use super::frame::{FRAME_LIMIT, HEADER_LEN, encode_header};

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
    /// Could an attachment be added now? The answer is [`Reply::Done`] or why not. Since version 2.
    Status {
        /// Whether it would need addresses of the daemon.
        wants_addresses: bool,
    },
    /// Give this attachment these addresses of ours, and of each family without one here any. The answer is
    /// [`Reply::Leased`]. Since version 2.
    AllocateThese {
        /// Who asks.
        attachment: Attachment,
        /// At most one per family.
        addresses: Vec<IpAddr>,
    },
    /// This attachment has these addresses from elsewhere: what else goes with them? The answer is [`Reply::Leased`].
    /// Since version 2.
    Adopt {
        /// Who asks.
        attachment: Attachment,
        /// At most one per family.
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
    /// Every address is in use, or the one that was asked for.
    Exhausted,
    /// The request itself is wrong.
    Invalid,
    /// CHECK found a difference.
    Mismatch,
    /// Something failed inside the daemon.
    Internal,
    /// The daemon cannot serve, and attached pods feel it too. Answers [`Request::Status`] alone. Since version 2.
    Impaired,
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

/// Variable-length integers, little-endian, trailing bytes rejected, never more than [`FRAME_LIMIT`]
/// bytes: a length field that promises more fails before anything is allocated for it.
fn options() -> impl Options {
    bincode::DefaultOptions::new().with_limit(FRAME_LIMIT as u64)
}

/// A whole frame, header included.
///
/// # Errors
/// If the message is over the limit.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let length = bincode::DefaultOptions::new()
        .serialized_size(message)
        .map_err(|e| FrameError::Malformed(format!("the message cannot be written: {e}")))?;
    let too_long = || FrameError::TooLong(usize::try_from(length).unwrap_or(usize::MAX));
    let short = u32::try_from(length).map_err(|_| too_long())?;
    if length > FRAME_LIMIT as u64 {
        return Err(too_long());
    }
    let mut frame = Vec::with_capacity(HEADER_LEN + FRAME_LIMIT.min(short as usize));
    frame.extend_from_slice(&encode_header(short));
    options()
        .serialize_into(&mut frame, message)
        .map_err(|e| FrameError::Malformed(format!("the message cannot be written: {e}")))?;
    Ok(frame)
}

/// Reads a payload (without header). Trailing bytes are an error.
///
/// # Errors
/// If the payload is not exactly one message.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    if payload.len() > FRAME_LIMIT {
        return Err(FrameError::TooLong(payload.len()));
    }
    options().deserialize(payload).map_err(|e| FrameError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;
    use crate::ipc::decode_header;

    fn attachment() -> Attachment {
        Attachment { network: "net".into(), container: "c1".into(), ifname: "eth0".into() }
    }

    fn v4(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The payload of `message` is `expected`, and `expected` reads back as `message`.
    fn golden<T>(message: &T, expected: &[u8])
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let frame = encode(message).unwrap();
        let (header, payload) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
        assert_eq!(payload, expected, "{message:?}");
        assert_eq!(decode_header(*header), Ok(expected.len()));
        assert_eq!(decode::<T>(expected).as_ref(), Ok(message));
    }

    /// `attachment()`: three strings, each a length and its bytes.
    const ATTACHMENT: &[u8] = b"\x03net\x02c1\x04eth0";

    fn bytes(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn requests_have_these_bytes() {
        golden(&Request::Allocate(attachment()), &bytes(&[&[0], ATTACHMENT]));
        golden(
            &Request::Taken { attachment: attachment(), addresses: vec![v4("10.1.2.3")] },
            &bytes(&[&[1], ATTACHMENT, &[1, 0, 10, 1, 2, 3]]),
        );
        golden(&Request::Release(attachment()), &bytes(&[&[2], ATTACHMENT]));
        golden(
            &Request::Check { attachment: attachment(), addresses: vec![v4("10.1.2.3"), v4("fd00::7")] },
            &bytes(&[
                &[3],
                ATTACHMENT,
                &[2, 0, 10, 1, 2, 3],
                &[1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
            ]),
        );
        golden(&Request::Status { wants_addresses: false }, &[4, 0]);
        golden(&Request::Status { wants_addresses: true }, &[4, 1]);
        golden(
            &Request::AllocateThese { attachment: attachment(), addresses: vec![v4("10.1.2.3")] },
            &bytes(&[&[5], ATTACHMENT, &[1, 0, 10, 1, 2, 3]]),
        );
        golden(
            &Request::Adopt { attachment: attachment(), addresses: vec![v4("10.1.2.3")] },
            &bytes(&[&[6], ATTACHMENT, &[1, 0, 10, 1, 2, 3]]),
        );
    }

    #[test]
    fn replies_have_these_bytes() {
        let lease = Lease {
            addresses: vec![LeaseAddress { address: v4("10.1.2.3"), gateway: v4("169.254.1.1") }],
            mtu: 1450,
        };
        golden(&Reply::Leased(lease), &[0, 1, 0, 10, 1, 2, 3, 0, 169, 254, 1, 1, 0xfb, 0xaa, 0x05]);
        golden(&Reply::Done, &[1]);
        let kinds = [
            RefusalKind::NotReady,
            RefusalKind::Exhausted,
            RefusalKind::Invalid,
            RefusalKind::Mismatch,
            RefusalKind::Internal,
            RefusalKind::Impaired,
        ];
        for (index, kind) in (0..).zip(kinds) {
            golden(&Reply::Refused { kind, message: "no".into() }, &[2, index, 2, b'n', b'o']);
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert!(matches!(decode::<Reply>(&[1, 0]), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn a_variant_of_a_later_version_is_malformed_and_nothing_else() {
        assert!(matches!(decode::<Request>(&[7, 0]), Err(FrameError::Malformed(_))));
        assert!(matches!(decode::<Reply>(&[3]), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn a_length_that_promises_more_than_there_is_is_refused() {
        // Allocate, then a network name of 2^60 bytes (0xfd: eight-byte integer).
        let payload = bytes(&[&[0, 0xfd], &(1_u64 << 60).to_le_bytes(), b"net"]);
        assert!(matches!(decode::<Request>(&payload), Err(FrameError::Malformed(_))));
        // Taken with 2^32 addresses.
        let payload = bytes(&[&[1], ATTACHMENT, &[0xfd], &(1_u64 << 32).to_le_bytes()]);
        assert!(matches!(decode::<Request>(&payload), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_both_sides() {
        let message = |length| Reply::Refused { kind: RefusalKind::Internal, message: "x".repeat(length) };
        // Variant, kind, and a length of three bytes (0xfb + two, or 0xfc + four from 65536 on).
        assert!(encode(&message(FRAME_LIMIT - 5)).is_ok());
        assert_eq!(encode(&message(FRAME_LIMIT)), Err(FrameError::TooLong(FRAME_LIMIT + 7)));
        assert_eq!(decode::<Reply>(&vec![0; FRAME_LIMIT + 1]), Err(FrameError::TooLong(FRAME_LIMIT + 1)));
    }

    prop_compose! {
        fn attachments()(network in ".{0,12}", container in ".{0,12}", ifname in ".{0,12}") -> Attachment {
            Attachment { network, container, ifname }
        }
    }

    fn requests() -> impl Strategy<Value = Request> {
        let addresses = || prop::collection::vec(any::<IpAddr>(), 0..4);
        prop_oneof![
            attachments().prop_map(Request::Allocate),
            (attachments(), addresses())
                .prop_map(|(attachment, addresses)| Request::Taken { attachment, addresses }),
            attachments().prop_map(Request::Release),
            (attachments(), addresses())
                .prop_map(|(attachment, addresses)| Request::Check { attachment, addresses }),
            any::<bool>().prop_map(|wants_addresses| Request::Status { wants_addresses }),
            (attachments(), addresses())
                .prop_map(|(attachment, addresses)| Request::AllocateThese { attachment, addresses }),
            (attachments(), addresses())
                .prop_map(|(attachment, addresses)| Request::Adopt { attachment, addresses }),
        ]
    }

    proptest! {
        #[test]
        fn every_request_survives_encode_then_decode(request in requests()) {
            let frame = encode(&request).unwrap();
            let (header, payload) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
            prop_assert_eq!(decode_header(*header), Ok(payload.len()));
            prop_assert_eq!(decode::<Request>(payload), Ok(request));
        }

        #[test]
        fn no_strict_prefix_of_a_request_decodes(request in requests()) {
            let frame = encode(&request).unwrap();
            let payload = frame.get(HEADER_LEN..).unwrap();
            for end in 0..payload.len() {
                prop_assert!(decode::<Request>(&payload[..end]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(payload in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<Request>(&payload);
            let _ = decode::<Reply>(&payload);
        }
    }
}
