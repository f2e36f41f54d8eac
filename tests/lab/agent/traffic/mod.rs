//! Traffic tools. Each prints one JSON document on standard output, and has a deadline.

pub(crate) mod http;
pub(crate) mod raw;
pub(crate) mod relay;
pub(crate) mod server;
pub(crate) mod sniff;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use serde::Serialize;

/// Prints a report.
pub(crate) fn report(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Becomes true when standard input ends: how a caller says "enough".
pub(crate) fn told_to_stop() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    stop
}

/// Without the `::ffff:` that a dual-stack socket puts before IPv4 addresses.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

/// Pseudo-random bytes that do not compress or repeat within a segment.
pub(crate) fn pattern(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut rng = fastrand::Rng::with_seed(seed);
    move |buffer| rng.fill(buffer)
}
