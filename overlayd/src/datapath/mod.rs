//! Threads that move packets between the TUN device and the UDP sockets.
//!
//! ```text
//! pod -> kernel -> TUN queue -> worker: encap -> UDP_SEGMENT == peer
//! peer == UDP_GRO -> worker: decap, coalesce -> TUN queue -> kernel -> pod
//! ```
//!
//! Super-packets of up to 64 KiB cross each system call in both directions; what is decided about them, and all byte work,
//! is `core::forward`. There are as many workers as configured, each with its own TUN queue and its own receiving socket per
//! underlay family; they share the sending sockets, the peer table (a snapshot, replaced whole) and one descriptor that
//! stops them. A TCP super-packet leaves whole where the uplink cuts it up: by a queue of a TAP device ([`tap`]). A worker that meets something beyond repair (the device was deleted) reports [`Event::Failed`] and ends: whoever
//! owns the [`Datapath`] drops it and starts another. The device stays, with its addresses and routes.

mod link;
mod spin;
mod sys;
mod tap;
mod tun;
mod udp;
mod worker;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::core::forward::DropReason;
use crate::core::table::Table;

/// What the datapath is started with; a change of any of it is a new datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathConfig {
    /// TUN device name.
    pub device: String,
    /// Name of the TAP device by which super-packets may leave whole; none to cut all of them up.
    pub tap: Option<String>,
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
        cause: io::Error,
    },
}

/// Name of the offload that lets super-packets leave whole.
pub const TUNNEL_GSO: &str = "tunnel_gso";

/// Offloads by name, with "on", "off" or why one was stepped down.
type Offloads = BTreeMap<String, String>;

/// What the workers and the handle share.
struct Shared {
    table: ArcSwap<Table>,
    drops: Vec<DropLine>,
    offloads: Mutex<Offloads>,
    notify: Arc<dyn Fn(Event) + Send + Sync>,
    stop: EventFd,
}

impl Shared {
    /// Whether this offload is on.
    fn has(&self, offload: &str) -> bool {
        let offloads = self.offloads.lock().unwrap_or_else(PoisonError::into_inner);
        offloads.get(offload).is_some_and(|state| state == "on")
    }

    /// Notes that an offload was refused, and tells control the first time.
    fn step_down(&self, offload: &str, what: &str, errno: i32) {
        let reason = format!("{what}: {}", io::Error::from_raw_os_error(errno));
        let state = format!("stepped down: {reason}");
        let before = self
            .offloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(offload.to_owned(), state.clone());
        if before.as_ref() != Some(&state) {
            (self.notify)(Event::SteppedDown { offload: offload.to_owned(), reason });
        }
    }
}

/// One worker's drops, on cache lines of its own (two: processors fetch them in pairs).
#[derive(Debug)]
#[repr(align(128))]
struct DropLine([AtomicU64; DropReason::ALL.len()]);

impl DropLine {
    fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Counts. Only the line's own worker does, so nothing is lost between load and store.
    fn add(&self, reason: DropReason, packets: u64) {
        if let Some(count) = self.0.get(reason as usize) {
            count.store(count.load(Ordering::Relaxed) + packets, Ordering::Relaxed);
        }
    }
}

/// A running datapath. Dropping it stops and joins all workers; the TUN device stays.
pub struct Datapath {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath").field("workers", &self.threads.len()).finish_non_exhaustive()
    }
}

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
    let workers = config.workers.max(1);
    let mut underlays: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    let addresses = [config.underlay_v4.map(IpAddr::V4), config.underlay_v6.map(IpAddr::V6)];
    for address in addresses.into_iter().flatten() {
        let receivers = udp::receivers(SocketAddr::new(address, config.port), workers)?;
        let senders = Arc::new(udp::Senders::open(address, config.port)?);
        for (own, receiver) in underlays.iter_mut().zip(receivers) {
            own.push((address, receiver, Arc::clone(&senders)));
        }
    }
    let mut offloads =
        Offloads::from(["udp_segment", "udp_gro"].map(|name| (name.to_owned(), "on".to_owned())));
    let queues = tun::open(&config.device, workers, &mut offloads)?;
    let taps = match config.tap.as_ref().map(|name| tap::open(name, workers)) {
        Some(Ok(taps)) => {
            offloads.insert(TUNNEL_GSO.to_owned(), "on".to_owned());
            taps
        }
        refused => {
            let why = refused.and_then(Result::err).unwrap_or_else(|| "by configuration".to_owned());
            offloads.insert(TUNNEL_GSO.to_owned(), format!("off: {why}"));
            Vec::new()
        }
    };
    let mut taps = taps.into_iter();
    let os = |what: &str| {
        let what = what.to_owned();
        move |cause: io::Error| StartError::Os { what, cause }
    };
    let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| os("creating the stop descriptor")(errno.into()))?;
    let shared = Arc::new(Shared {
        table: ArcSwap::new(table),
        drops: (0..workers).map(|_| DropLine::new()).collect(),
        offloads: Mutex::new(offloads),
        notify,
        stop,
    });
    // Dropped on an early return, it stops the workers that already run.
    let mut datapath = Datapath { shared: Arc::clone(&shared), threads: Vec::with_capacity(workers) };
    for (index, (queue, underlays)) in queues.into_iter().zip(underlays).enumerate() {
        let shared = Arc::clone(&shared);
        let parts = worker::Parts {
            index,
            queue,
            tap: taps.next(),
            underlays,
            shared,
            port: config.port,
            spin: config.spin,
            epoch: config.epoch,
        };
        let thread = Builder::new()
            .name(format!("datapath-{index}"))
            .spawn(move || supervise(parts))
            .map_err(os("starting a worker thread"))?;
        datapath.threads.push(thread);
    }
    Ok(datapath)
}

/// Runs a worker, and reports how it ended unless it was told to.
fn supervise(parts: worker::Parts) {
    let shared = Arc::clone(&parts.shared);
    let index = parts.index;
    let ended = match catch_unwind(AssertUnwindSafe(|| worker::run(parts))) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panic: {}", panic_text(panic.as_ref())),
    };
    (shared.notify)(Event::Failed(format!("datapath worker {index}: {ended}")));
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

impl Datapath {
    /// Gives the workers another table; they take it with their next batch.
    pub fn swap(&self, table: Arc<Table>) {
        self.shared.table.store(table);
    }

    /// Drops by reason, summed over the workers; every reason is present.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<DropReason, u64> {
        let sum = |reason: DropReason| {
            self.shared
                .drops
                .iter()
                .filter_map(|line| line.0.get(reason as usize))
                .map(|n| n.load(Ordering::Relaxed))
                .sum()
        };
        DropReason::ALL.iter().map(|&reason| (reason, sum(reason))).collect()
    }

    /// Offloads by name, with "on", "off" or why it was stepped down.
    #[must_use]
    pub fn offloads(&self) -> BTreeMap<String, String> {
        self.shared.offloads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        // The counter is far from its limit, the only reason for a refusal.
        let _ = self.shared.stop.write(1);
        for thread in self.threads.drain(..) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_has_a_counter_at_its_own_place() {
        let line = DropLine::new();
        for (place, &reason) in DropReason::ALL.iter().enumerate() {
            line.add(reason, place as u64 + 1);
        }

        let counts: Vec<_> = line.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();

        assert_eq!(counts, (1..=DropReason::ALL.len() as u64).collect::<Vec<_>>());
    }
}
