//! What each fuzz target does with one input. Included by the targets and by the tests that replay the
//! committed corpus, so that both do the same. An entry returns, or it panics: then a law is broken.

use wire::ipc::{FRAME_LIMIT, HEADER_LEN, Reply, Request, decode, decode_header, encode};
use wire::offload::{Coalescer, Delivery, Outer, TUNNEL_VNET_LEN, TunnelHeader, split};
use wire::packet::{ENCAP_LEN, Encap, EncapHeader, Inner, VNET_LEN, VirtioNetHdr};
use wire::tag::{ALIAS_LIMIT, Alias};

/// Largest IP packet.
const PACKET_MAX: usize = 65_535;

/// A frame from the other side: header and payload. What decodes means the same after being written again.
pub(super) fn ipc_frame(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    let payload = match decode_header(*header) {
        Ok(length) => {
            assert!(length <= FRAME_LIMIT, "the header promised more than the limit");
            rest.get(..length).unwrap_or(rest)
        }
        Err(_) => rest,
    };
    let payload_of = |frame: Vec<u8>| frame.get(HEADER_LEN..).unwrap_or_default().to_vec();
    if let Ok(request) = decode::<Request>(payload) {
        let again = encode(&request).map(payload_of).and_then(|payload| decode(&payload));
        assert_eq!(again, Ok(request), "a request changed its meaning");
    }
    if let Ok(reply) = decode::<Reply>(payload) {
        let again = encode(&reply).map(payload_of).and_then(|payload| decode(&payload));
        assert_eq!(again, Ok(reply), "a reply changed its meaning");
    }
}

/// The alias of a link. What is taken for ours is written the same again.
pub(super) fn alias(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Some(alias) = Alias::parse(text) {
        assert_eq!(alias.emit(), text, "an alias is not canonical");
        assert!(text.len() <= ALIAS_LIMIT && !alias.addresses.is_empty(), "an impossible alias");
    }
}

/// A frame as the TUN device gives it: virtio-net header and packet. What is cut from it are packets.
pub(super) fn tun_frame(data: &[u8]) {
    let _ = split(data, |frame| {
        let (vnet, packet) = frame.split_at(VNET_LEN);
        assert_eq!(vnet, [0; VNET_LEN], "a finished packet asks for more");
        let inner = Inner::parse(packet).expect("what was cut is a packet");
        assert_eq!(inner.length, packet.len(), "a cut packet has another length than it says");
    });
    let Some((vnet, packet)) = VirtioNetHdr::split(data) else { return };
    let Ok(inner) = Inner::parse(packet) else { return };
    for [source, destination] in [[[192, 0, 2, 1]; 2].map(Into::into), [[0xfd; 16]; 2].map(Into::into)] {
        let outer = Outer { source, destination, ports: (1, 2), ecn: 0 };
        let Ok(header) = TunnelHeader::new(&outer, &EncapHeader([0; ENCAP_LEN]), &vnet, packet, &inner)
        else {
            continue;
        };
        let frame = header.as_bytes().len() + inner.length;
        let ethernet = TUNNEL_VNET_LEN + 14;
        assert!(frame - ethernet <= PACKET_MAX + 40, "an outer packet is larger than a packet can be");
    }
}

/// An MTU in two bytes, and a packet that comes alone: handed on where it lies it is what a copy of it is.
pub(super) fn giant(data: &[u8]) {
    let Some((mtu, packet)) = data.split_first_chunk::<2>() else { return };
    let Ok(inner) = Inner::parse(packet) else { return };
    let take = |push: &mut dyn FnMut(&mut Coalescer, &mut Vec<Vec<u8>>)| {
        let (mut coalescer, mut frames) = (Coalescer::default(), Vec::new());
        coalescer.set_mtu(u16::from_be_bytes(*mtu).into());
        push(&mut coalescer, &mut frames);
        coalescer.flush(&mut |frame| frames.push(frame.to_vec()));
        frames
    };
    let copied = take(&mut |coalescer, frames| {
        coalescer.push(&Delivery { packet, inner, tos: 0 }, &mut |frame| frames.push(frame.to_vec()));
    });
    let in_place = take(&mut |coalescer, frames| {
        let mut place = [&[0; VNET_LEN], packet].concat();
        coalescer.push_in_place(&mut place, inner, 0, &mut |frame| frames.push(frame.to_vec()));
    });
    assert_eq!(in_place, copied, "what lies elsewhere is another packet");
    assert_eq!(copied.len(), 1, "one packet in and one out");
}

/// Datagrams from a peer, each with its length in two bytes before it: taken apart, joined, and cut again.
/// Every packet that was put in comes out.
pub(super) fn decap(data: &[u8]) {
    let mut coalescer = Coalescer::default();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut taken = 0;
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (datagram, after) = after.split_at(length);
        rest = after;
        let Ok(encap) = Encap::parse(datagram) else { continue };
        let Ok(inner) = Inner::parse(encap.payload) else { continue };
        let Some(packet) = encap.payload.get(..inner.length) else { continue };
        coalescer.push(&Delivery { packet, inner, tos: 0 }, &mut |frame| frames.push(frame.to_vec()));
        taken += 1;
    }
    coalescer.flush(&mut |frame| frames.push(frame.to_vec()));
    let mut given = 0;
    for frame in frames {
        assert!(frame.len() <= VNET_LEN + PACKET_MAX, "a frame is larger than a packet can be");
        split(&frame, |_| given += 1).expect("what was joined can be cut");
    }
    assert_eq!(given, taken, "packets in and packets out");
}
