//! Everything on a host that makes, watches or carries traffic.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use super::Host;
use crate::must;
use crate::packet;
use crate::process::{PATIENCE, Process};
use crate::traffic::{Bulk, Flood, Http, Packet, Ping, RelayCounters, Rtt, Stream, TcpAnswer, UdpProbe};

/// How long a single connection or echo may take before it counts as failed.
const PROBE_TIME: Duration = Duration::from_secs(3);

/// Datagrams that may be lost, one after the other, before a question for the source counts as unanswered: on a machine
/// that does too much any queue may overflow. Loss is what [`Host::udp_stream`] and [`Host::udp_flood`] measure.
const SOURCE_PROBES: u32 = 3;

impl Host {
    /// Connects and asks which address the server sees. A refusal or timeout is an answer, not a panic.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn tcp(&self, server: SocketAddr) -> TcpAnswer {
        must(self.try_tcp(server))
    }

    /// As [`Host::tcp`].
    ///
    /// # Errors
    /// If the tool itself cannot run.
    pub fn try_tcp(&self, server: SocketAddr) -> Result<TcpAnswer> {
        self.tool("tcp-who").arg(server).arg(PROBE_TIME.as_millis()).try_json()
    }

    /// The address that a TCP server sees when this host connects to it.
    ///
    /// # Panics
    /// If the connection fails.
    #[must_use]
    #[track_caller]
    pub fn tcp_source(&self, server: SocketAddr) -> IpAddr {
        let answer = self.tcp(server);
        match answer.seen {
            Some(seen) => seen.ip(),
            None => {
                panic!("{} cannot reach {server} by TCP: {}", self.label, answer.error.unwrap_or_default())
            }
        }
    }

    /// Moves bytes to the server and compares hashes.
    ///
    /// # Panics
    /// If the transfer fails.
    #[must_use]
    #[track_caller]
    pub fn tcp_upload(&self, server: SocketAddr, bytes: u64) -> Bulk {
        must(self.bulk(server, bytes, "up", 42))
    }

    /// Moves bytes from the server to here and compares hashes.
    ///
    /// # Panics
    /// If the transfer fails.
    #[must_use]
    #[track_caller]
    pub fn tcp_download(&self, server: SocketAddr, bytes: u64) -> Bulk {
        must(self.bulk(server, bytes, "down", 43))
    }

    /// Moves zeroes to the server, unhashed: for throughput.
    ///
    /// # Errors
    /// If the transfer fails.
    pub fn throughput(&self, server: SocketAddr, bytes: u64) -> Result<Bulk> {
        self.bulk(server, bytes, "up", 0)
    }

    fn bulk(&self, server: SocketAddr, bytes: u64, way: &str, seed: u64) -> Result<Bulk> {
        let time = Duration::from_secs(90);
        self.tool("tcp-bulk")
            .arg(server)
            .args([bytes.to_string(), way.to_owned(), seed.to_string(), time.as_millis().to_string()])
            .deadline(time)
            .try_json()
    }

    /// One TCP connection that echoes 8 bytes every 10 ms until [`Running::stop`]. It waits up to 30 s for an echo.
    ///
    /// # Panics
    /// If it cannot connect.
    #[track_caller]
    pub fn tcp_stream(&self, server: SocketAddr) -> Running {
        self.stream("tcp-stream", server, Duration::from_secs(30))
    }

    /// Datagrams that echo every 10 ms until [`Running::stop`]. One that is not back after 1 s is lost.
    ///
    /// # Panics
    /// If it cannot start.
    #[track_caller]
    pub fn udp_stream(&self, server: SocketAddr) -> Running {
        self.stream("udp-stream", server, Duration::from_secs(1))
    }

    #[track_caller]
    fn stream(&self, tool: &str, server: SocketAddr, patience: Duration) -> Running {
        let process = self.tool(tool).arg(server).arg(10).arg(patience.as_millis()).spawn();
        process.wait_stdout(|line| line == "streaming");
        Running { process }
    }

    /// One UDP echo of this payload size, fragments allowed.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn udp(&self, server: SocketAddr, size: usize) -> UdpProbe {
        must(self.udp_probe(server, "allowed", size, 1))
    }

    /// UDP echoes of this payload size with don't-fragment set, and the ICMP errors that came.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn udp_df(&self, server: SocketAddr, size: usize) -> UdpProbe {
        must(self.udp_probe(server, "forbidden", size, 1))
    }

    fn udp_probe(&self, server: SocketAddr, fragments: &str, size: usize, count: u32) -> Result<UdpProbe> {
        let time = Duration::from_millis(1500);
        self.tool("udp-probe")
            .arg(server)
            .arg(fragments)
            .arg(size)
            .arg(count)
            .arg(time.as_millis())
            .try_json()
    }

    /// The address that a UDP server sees, for a small datagram.
    ///
    /// # Panics
    /// If no answer comes.
    #[must_use]
    #[track_caller]
    pub fn udp_source(&self, server: SocketAddr) -> IpAddr {
        let mut unanswered = Vec::new();
        for _ in 0..SOURCE_PROBES {
            let probe = self.udp(server, 128);
            match probe.seen {
                Some(seen) => return seen.ip(),
                None => unanswered.push(probe),
            }
        }
        panic!("{} gets no UDP answer from {server}: {unanswered:?}", self.label)
    }

    /// Datagrams one way, counted by the server; `per_second` 0 means as fast as it goes.
    ///
    /// # Errors
    /// If the tool cannot run or the server's count cannot be read.
    pub fn udp_flood(&self, server: SocketAddr, size: usize, packets: u64, per_second: u64) -> Result<Flood> {
        let flood = self.tool("udp-flood").arg(server).args([size as u64, packets, per_second]);
        flood.deadline(Duration::from_secs(60)).try_json()
    }

    /// UDP ping-pong.
    ///
    /// # Errors
    /// If nothing comes back.
    pub fn rtt(&self, server: SocketAddr, count: u32) -> Result<Rtt> {
        self.tool("rtt").arg(server).arg(count).try_json()
    }

    /// ICMP echo with this payload size in bytes, ICMP header included.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn ping(&self, target: IpAddr, size: usize, count: u32) -> Ping {
        must(self.tool("ping").arg(target).arg(size).arg(count).arg(1000).try_json())
    }

    /// Sends an IP packet as it is (see [`crate::packet`]), from whatever source it names.
    ///
    /// # Panics
    /// If the kernel does not take it.
    #[track_caller]
    pub fn inject(&self, ip_packet: &[u8]) {
        self.inject_all(&[ip_packet.to_vec()]);
    }

    /// Sends IP packets as they are, one after the other in this order.
    ///
    /// # Panics
    /// If the kernel does not take one.
    #[track_caller]
    pub fn inject_all(&self, ip_packets: &[Vec<u8>]) {
        let lines = ip_packets.iter().map(|packet| packet::hex(packet) + "\n");
        self.tool("inject").stdin(lines.collect::<String>()).run();
    }

    /// Sends a UDP datagram from any source address and port.
    ///
    /// # Panics
    /// If the kernel does not take it.
    #[track_caller]
    pub fn inject_udp(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        self.inject(&packet::udp(source, destination, payload));
    }

    /// Watches an interface until [`Sniffer::stop`]; it already listens when this returns.
    ///
    /// # Panics
    /// If there is no such interface.
    #[must_use]
    #[track_caller]
    pub fn sniff(&self, interface: &str) -> Sniffer {
        let process = self.tool("sniff").arg(interface).spawn();
        process.wait_stdout(|line| line == "sniffing");
        Sniffer { process }
    }

    /// HTTP GET.
    ///
    /// # Errors
    /// If no answer comes.
    pub fn http(&self, server: SocketAddr, path: &str) -> Result<Http> {
        self.tool("http-get").arg(server).arg(path).arg(PROBE_TIME.as_millis()).try_json()
    }

    pub(crate) fn http_await(&self, server: SocketAddr, path: &str, time: Duration) -> Result<Process> {
        self.tool("http-await").arg(server).arg(path).arg(time.as_millis()).try_spawn()
    }

    pub(crate) fn start_relay(&self, left: &str, right: &str, harm: Harm) -> Result<Relay> {
        let process = self
            .tool("relay")
            .arg(left)
            .arg(right)
            .args([harm.drop_percent, harm.duplicate_percent, harm.reorder_percent])
            .arg(harm.seed)
            .try_spawn()?;
        process.wait_stdout(|line| line == "relaying");
        Ok(Relay { process })
    }
}

/// A stream that runs until told to stop.
#[derive(Debug)]
pub struct Running {
    process: Process,
}

impl Running {
    /// How many echoes have come back so far.
    #[must_use]
    pub fn echoes(&self) -> usize {
        self.process.stdout().lines().filter(|line| line.starts_with("echo ")).count()
    }

    /// Waits until so many more echoes have come back.
    ///
    /// # Panics
    /// If they have not within 20 s.
    #[track_caller]
    pub fn wait_echoes(&self, more: usize) {
        let line = format!("echo {}", self.echoes() + more);
        self.process.wait_stdout(|said| said == line);
    }

    /// Stops it; what came of it.
    ///
    /// # Panics
    /// If it does not report.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> Stream {
        self.process.close_stdin();
        let _ = must(self.process.try_wait(PATIENCE * 2));
        self.process.finish_json()
    }
}

/// A sniffer.
#[derive(Debug)]
pub struct Sniffer {
    process: Process,
}

impl Sniffer {
    /// Stops it; the packets it saw, oldest first, at most 4,096.
    ///
    /// # Panics
    /// If it does not report.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> Vec<Packet> {
        self.process.finish_json()
    }
}

/// How a relay treats frames; shares in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Harm {
    /// Thrown away.
    pub drop_percent: f64,
    /// Sent twice.
    pub duplicate_percent: f64,
    /// Held back behind the next frame.
    pub reorder_percent: f64,
    /// Of the die.
    pub seed: u64,
}

/// A relay between a node and the bridge.
#[derive(Debug)]
pub struct Relay {
    process: Process,
}

impl Relay {
    /// Stops it (the node is cut off from then on); what it did.
    ///
    /// # Panics
    /// If it does not report.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> RelayCounters {
        self.process.finish_json()
    }
}
