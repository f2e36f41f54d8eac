//! What the traffic tools of the agent report, and what servers and clients say to each other.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// First bytes of every datagram of the tools.
pub const DATAGRAM_MAGIC: &[u8; 4] = b"LAB1";
/// Bytes of a datagram's header: magic, kind, key, sequence.
pub const DATAGRAM_HEADER: usize = 4 + 1 + 8 + 8;

/// One TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpAnswer {
    /// Whether the server answered.
    pub ok: bool,
    /// The client's address as the server saw it.
    pub seen: Option<SocketAddr>,
    /// The client's own address.
    pub local: Option<SocketAddr>,
    /// Why not, if not.
    pub error: Option<String>,
}

/// A bulk transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bulk {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From connect to the receiver's last byte.
    pub seconds: f64,
    /// 10^9 bits per second.
    pub gbit_per_second: f64,
    /// SHA-256 of what was sent, in hex; empty if hashing was not asked for.
    pub sent_sha256: String,
    /// SHA-256 of what arrived.
    pub received_sha256: String,
}

/// UDP echo with ICMP errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpProbe {
    /// Datagrams that the kernel took.
    pub sent: u32,
    /// Answers that came back whole.
    pub answered: u32,
    /// The client's address as the server saw it.
    pub seen: Option<SocketAddr>,
    /// The path MTU that a local EMSGSIZE named, in bytes.
    pub local_too_big: Option<u32>,
    /// ICMP errors received, in order.
    pub icmp: Vec<IcmpError>,
    /// Any other error.
    pub error: Option<String>,
}

/// An ICMP error as the socket's error queue reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpError {
    /// Who sent it.
    pub from: Option<IpAddr>,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// MTU in bytes, if the type carries one.
    pub mtu: Option<u32>,
}

/// A paced or unpaced one-way stream of datagrams.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flood {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that the server counted.
    pub received: u64,
    /// How many of these had been received before.
    #[serde(default)]
    pub duplicates: u64,
    /// Of these, how many came after a later one.
    pub reordered: u64,
    /// Between the first and the last that arrived, in seconds.
    pub seconds: f64,
    /// Arrived per second.
    pub packets_per_second: f64,
}

impl Flood {
    /// Share of the datagrams that did not arrive, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { 1.0 - self.received as f64 / self.sent as f64 }
    }
}

/// A stream that runs until it is told to stop: one small echo at a time, at a fixed pace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stream {
    /// Echoes asked for.
    pub sent: u64,
    /// Echoes that came back.
    pub answered: u64,
    /// The longest time without any answer, in milliseconds.
    pub longest_gap_ms: u64,
    /// What ended it early, if anything did.
    pub error: Option<String>,
}

/// Round trips, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rtt {
    /// Round trips measured.
    pub count: u32,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

/// ICMP echo.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub answered: u32,
    /// Any error.
    pub error: Option<String>,
}

/// One packet that a sniffer saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Network-layer source.
    pub source: Option<IpAddr>,
    /// Network-layer destination.
    pub destination: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port of TCP or UDP.
    pub source_port: u16,
    /// Destination port of TCP or UDP.
    pub destination_port: u16,
    /// Type-of-service or traffic-class byte (DSCP and ECN).
    pub tos: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Length of the network-layer packet in bytes.
    pub length: usize,
    /// Whether the interface received it (as opposed to sent it).
    pub incoming: bool,
    /// The packet from the network-layer header on, at most 256 bytes.
    pub bytes: Vec<u8>,
}

/// What a relay did to frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayCounters {
    /// Frames that came in.
    pub seen: u64,
    /// Frames thrown away.
    pub dropped: u64,
    /// Frames sent twice.
    pub duplicated: u64,
    /// Frames held back behind a later one.
    pub reordered: u64,
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// What an API proxy does to one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiHarm {
    /// Nothing.
    #[default]
    None,
    /// The connection ends without an answer; running watches end.
    Cut,
    /// The connection stays, and nothing comes; running watches fall silent.
    Stall,
    /// So many milliseconds before each answer, and before each part of a watch.
    Slow(u64),
    /// This status code instead of an answer; running watches end.
    Status(u16),
    /// 410 instead of an answer, also within running watches.
    Gone,
    /// Running watches end with 410; new ones begin as they should.
    GoneOnce,
    /// A list without items.
    Empty,
    /// The first items of a list, as if they were all.
    Short(usize),
    /// The first half of a list's bytes.
    Truncated,
}

/// What an API proxy does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiHarms {
    /// To lists of Nodes.
    pub lists: ApiHarm,
    /// To watches of Nodes.
    pub watches: ApiHarm,
    /// To everything else.
    pub others: ApiHarm,
}

impl ApiHarms {
    /// The same to everything.
    #[must_use]
    pub fn all(harm: &ApiHarm) -> Self {
        Self { lists: harm.clone(), watches: harm.clone(), others: harm.clone() }
    }
}
