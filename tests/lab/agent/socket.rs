//! Clients of a unix socket that misbehave, and a relay between plugin and daemon that changes their versions.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Opens connections that say these bytes and then nothing; when standard input ends, prints how many the server
/// has left open.
pub(crate) fn loiter(path: &Path, count: usize, hex: &str) -> Result<()> {
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16))
        .collect::<Result<_, _>>()
        .context("bytes in hex")?;
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).context("allow more descriptors")?;
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream =
            UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        // The server may have closed it by now.
        let _ = stream.write_all(&bytes);
        streams.push(stream);
    }
    println!("loitering");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let mut open = 0;
    for stream in &mut streams {
        stream.set_nonblocking(true)?;
        match stream.read(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => open += 1,
            _ => {}
        }
    }
    println!("{open}");
    Ok(())
}

/// Passes on one request and one reply per connection, each with another version in its header: either side takes the
/// other for one that is older or newer by so much. A request of the kind `unknown` becomes one that no version has.
pub(crate) fn skew(path: &Path, target: &Path, by: i8, unknown: Option<u8>) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    println!("relaying");
    for client in listener.incoming() {
        let (mut client, target) = (client?, target.to_owned());
        thread::spawn(move || -> std::io::Result<()> {
            let mut server = UnixStream::connect(&target)?;
            pass(&mut client, &mut server, by, unknown)?;
            pass(&mut server, &mut client, by, None)
        });
    }
    Ok(())
}

fn pass(from: &mut UnixStream, to: &mut UnixStream, by: i8, unknown: Option<u8>) -> std::io::Result<()> {
    let mut frame = vec![0; wire::ipc::HEADER_LEN];
    from.read_exact(&mut frame)?;
    let length = wire::ipc::decode_header(frame[..].try_into().map_err(std::io::Error::other)?);
    let length = length.map_err(std::io::Error::other)?;
    frame.resize(frame.len() + length, 0);
    from.read_exact(&mut frame[wire::ipc::HEADER_LEN..])?;
    frame[4] = frame[4].wrapping_add_signed(by);
    if let Some(kind) = frame.get_mut(wire::ipc::HEADER_LEN).filter(|kind| Some(**kind) == unknown) {
        // The greatest number that bincode writes in one byte.
        *kind = 250;
    }
    to.write_all(&frame)
}
