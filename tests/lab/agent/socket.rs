//! Clients of a unix socket that misbehave.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};

/// Opens connections that say these bytes and then nothing; when standard input ends, prints how many the server
/// has left open.
pub(crate) fn loiter(path: &Path, count: usize, hex: &str) -> Result<()> {
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16))
        .collect::<Result<_, _>>()
        .context("bytes in hex")?;
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream =
            UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        stream.write_all(&bytes).context("send")?;
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
