//! wireguard-go as a contender: the user-space tunnel that most people know. It encrypts, which the others do not.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};

/// UDP port of both ends.
pub(crate) const PORT: u16 = 51_820;

/// Name of the device.
pub(crate) const DEVICE: &str = "wg0";

/// Bytes that it adds to a packet, IP and UDP aside: header, counter, tag.
pub(crate) const OVERHEAD: u32 = 32;

/// Two pairs of private and public keys, made up. They keep no secret.
const KEYS: [(&str, &str); 2] = [
    (
        "4011111111111111111111111111111111111111111111111111111111111111",
        "ab0f8aae7d7d47de5bfead939f1ce32ad7d572255f866636f6a5847c294cbc1a",
    ),
    (
        "4022222222222222222222222222222222222222222222222222222222222222",
        "d4760496b14c197a0bbee603628c730304d5d903f042823d658f6585d9518b15",
    ),
];

/// Configures a running wireguard-go over its socket.
#[derive(Debug, clap::Args)]
pub(crate) struct Configure {
    /// Which end this is: 0 or 1.
    end: usize,
    /// The other end.
    peer: SocketAddr,
}

/// Tells it keys and peer, as `wg setconf` would.
pub(crate) fn configure(options: &Configure) -> Result<()> {
    let [own, other] = [options.end % 2, (options.end + 1) % 2].map(|end| KEYS[end]);
    let path = format!("/var/run/wireguard/{DEVICE}.sock");
    let mut stream = UnixStream::connect(&path).with_context(|| format!("connect to {path}"))?;
    let (private, public, peer) = (own.0, other.1, options.peer);
    write!(
        stream,
        "set=1\nprivate_key={private}\nlisten_port={PORT}\nreplace_peers=true\npublic_key={public}\nendpoint={peer}\n\
         allowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n"
    )?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(answer.trim() == "errno=0", "wireguard-go refused: {answer}");
    Ok(())
}
