//! Threads that move packets between the TUN device and the UDP sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::forward::DropReason;
use crate::core::table::Table;

/// What the datapath is started with; a change of any of it is a new datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathConfig {
    /// TUN device name.
    pub device: String,
    /// Threads, queues and sockets.
    pub workers: usize,
    /// UDP port.
    pub port: u16,
    /// Own IPv4 underlay address.
    pub underlay_v4: Option<Ipv4Addr>,
    /// Own IPv6 underlay address.
    pub underlay_v6: Option<Ipv6Addr>,
    /// How long an idle worker polls before it sleeps.
    pub spin: Duration,
    /// Zero of the counters' time stamps.
    pub epoch: Instant,
}

/// What a worker tells control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The path to this underlay address carries only this outer MTU (bytes).
    PathMtu {
        /// The peer.
        underlay: IpAddr,
        /// Outer MTU in bytes.
        mtu: u32,
    },
    /// A worker ended: the whole datapath must be started anew.
    Failed(String),
    /// An offload was refused and is off from now on.
    SteppedDown {
        /// Which.
        offload: String,
        /// Why.
        reason: String,
    },
}

/// Why the datapath cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The UDP port is taken on this address.
    #[error("UDP port {port} on {address} is in use")]
    PortTaken {
        /// Own underlay address.
        address: IpAddr,
        /// Port.
        port: u16,
    },
    /// The underlay address is not on this machine.
    #[error("{0} is not an address of this machine")]
    AddressMissing(IpAddr),
    /// Anything else, in words with the cause.
    #[error("{what}: {cause}")]
    Os {
        /// What was being done.
        what: String,
        /// The cause.
        cause: std::io::Error,
    },
}

/// A running datapath. Dropping it stops and joins all workers; the TUN device stays.
#[derive(Debug)]
pub struct Datapath {}

/// Opens (and if need be creates) the TUN device and the sockets, starts the workers. `notify` is called from
/// worker threads and must not block.
///
/// # Errors
/// See [`StartError`].
pub fn start(
    config: &DatapathConfig,
    table: Arc<Table>,
    notify: Arc<dyn Fn(Event) + Send + Sync>,
) -> Result<Datapath, StartError> {
    let _ = (config, table, notify);
    todo!()
}

impl Datapath {
    /// Gives the workers another table; they take it with their next batch.
    pub fn swap(&self, table: Arc<Table>) {
        let _ = table;
        todo!()
    }

    /// Drops by reason, summed over the workers; every reason is present.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<DropReason, u64> {
        todo!()
    }

    /// Offloads by name, with "on", "off" or why it was stepped down.
    #[must_use]
    pub fn offloads(&self) -> BTreeMap<String, String> {
        todo!()
    }
}
