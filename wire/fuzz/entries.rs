//! What each fuzz target does with one input. Included by the targets and by the tests that replay the
//! committed corpus, so that both do the same. An entry returns, or it panics: then a law is broken.

use wire::ipc::{FRAME_LIMIT, HEADER_LEN, Reply, Request, decode, decode_header, encode};
use wire::tag::{ALIAS_LIMIT, Alias};

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
