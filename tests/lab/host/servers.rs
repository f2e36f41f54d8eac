//! What listens on a host, and what holds on to what listens.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use anyhow::Context;

use super::Host;
use crate::must;
use crate::packet;
use crate::process::Process;

impl Host {
    /// Starts a TCP and UDP server on all its addresses, on a free port; ready when this returns.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn serve(&self) -> Server {
        self.serve_on(0)
    }

    /// Starts a TCP and UDP server on this port.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn serve_on(&self, port: u16) -> Server {
        let process = self.tool("serve").arg(port).spawn();
        let line = process.wait_stdout(|line| line.starts_with("listening "));
        let port = must(line["listening ".len()..].parse().context("the server's port"));
        Server { host: self.clone(), port, process }
    }

    /// Opens so many connections to a unix socket, says these bytes on each and then nothing. Finishing it yields, on
    /// the last line, how many of them the server had left open by then.
    ///
    /// # Panics
    /// If it cannot connect.
    #[track_caller]
    pub fn loiter(&self, path: &str, count: usize, bytes: &[u8]) -> Process {
        let process = self.tool("loiter").args([path, &count.to_string(), &packet::hex(bytes)]).spawn();
        process.wait_stdout(|line| line == "loitering");
        process
    }
}

/// A server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    host: Host,
    port: u16,
    process: Process,
}

impl Server {
    /// The port, TCP and UDP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its first IPv4 address with the port.
    ///
    /// # Panics
    /// If its host has none.
    #[must_use]
    #[track_caller]
    pub fn v4(&self) -> SocketAddr {
        (self.host.v4(), self.port).into()
    }

    /// Its first IPv6 address with the port.
    ///
    /// # Panics
    /// If its host has none.
    #[must_use]
    #[track_caller]
    pub fn v6(&self) -> SocketAddr {
        (self.host.v6(), self.port).into()
    }

    /// Any address with the port.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> SocketAddr {
        (address, self.port).into()
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

impl Deref for Server {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}
