//! Load for measurements: generators that run for a given time, and what the machine spent meanwhile.
//!
//! The tools in [`crate::traffic`] answer whether something arrives; these answer how fast, and at whose cost. Everything
//! is counted within one window of the machine's monotonic clock, which both ends of the lab share: begin and
//! end of a transfer, warm-up and draining are outside of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::process::Process;

/// Points of a distribution that [`Outcome::RoundTrips`] reports: each half percent from 0 to 100.
pub const QUANTILES: usize = 201;

/// Which way TCP moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// As many bytes as go through.
    Tcp {
        /// Connections, each with a thread of its own at both ends.
        streams: usize,
        /// Which way.
        direction: Direction,
    },
    /// Datagrams.
    Udp {
        /// Payload in bytes.
        size: usize,
        /// Datagrams per second, in bursts a quarter of a millisecond apart; 0 means as fast as it goes.
        per_second: u64,
    },
    /// One small datagram to and fro at a time.
    RoundTrips,
    /// One TCP connection after the other: connect, one byte back, close.
    Connections,
    /// Nothing: what the watched processes cost when nobody wants anything.
    Idle,
}

/// A piece of load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// Where to.
    pub server: SocketAddr,
    /// What.
    pub work: Work,
    /// How long to run before counting starts.
    pub warm_up: Duration,
    /// How long to count.
    pub window: Duration,
    /// Processes inside the lab whose cost is to be reported.
    pub watch: Vec<i32>,
    /// Whether to count the watched processes' system calls too, if the kernel lets us.
    pub count_syscalls: bool,
    /// Runs the client on this CPU only.
    pub cpu: Option<usize>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// What went through.
    pub outcome: Outcome,
    /// What it cost.
    pub usage: Usage,
}

/// What went through within the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// TCP payload that the receiver has read.
    Bytes(u64),
    /// Datagrams.
    Datagrams(Datagrams),
    /// Round trips.
    RoundTrips {
        /// How many.
        count: u64,
        /// [`QUANTILES`] points of their distribution, in microseconds.
        quantiles_us: Vec<f64>,
        /// The 99.9th percentile.
        p999_us: f64,
    },
    /// Connections opened, answered and closed.
    Connections(u64),
    /// Nothing was asked for.
    Idle,
}

/// A stream of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagrams {
    /// Sent, warm-up included.
    pub sent: u64,
    /// Of these, received.
    pub received: u64,
    /// Received within the window.
    pub in_window: u64,
    /// Came after a later one.
    pub reordered: u64,
}

impl Datagrams {
    /// Share of the datagrams that did not arrive, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { 1.0 - self.received as f64 / self.sent as f64 }
    }
}

/// What the machine spent within the window. Times in seconds of one CPU.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Length of the window.
    pub seconds: f64,
    /// All of the machine that was not idle.
    pub busy: f64,
    /// Of this, in soft interrupts.
    pub softirq: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
    /// The load's own process.
    pub client: ProcessUsage,
    /// The watched processes, in the order asked for.
    pub processes: Vec<ProcessUsage>,
}

/// What one process spent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessUsage {
    /// Seconds of CPU, user and system.
    pub cpu: f64,
    /// Context switches, voluntary and not.
    pub switches: u64,
    /// System calls, if they could be counted.
    pub syscalls: Option<u64>,
    /// Resident memory at the end, in bytes.
    pub rss: u64,
}

/// The other end of a load; stops when dropped.
#[derive(Debug)]
pub struct LoadServer {
    /// Its port, TCP and UDP, on all addresses.
    pub port: u16,
    /// The process.
    pub process: Process,
}

impl Host {
    /// Starts the other end here, on a free port.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn serve_load(&self) -> Result<LoadServer> {
        let process = self.command("lab-agent").arg("load-serve").try_spawn()?;
        let line = process.wait_stdout(|line| line.starts_with("listening "));
        let port = line["listening ".len()..].parse().context("the server's port")?;
        Ok(LoadServer { port, process })
    }

    /// Runs a load from here.
    ///
    /// # Errors
    /// If it cannot run or nothing goes through.
    pub fn load(&self, load: &Load) -> Result<Measured> {
        let patience = load.warm_up + load.window + Duration::from_secs(30);
        let output = self.start_load(load)?.try_finish(patience)?;
        ensure!(output.success(), "load from {} failed: {output}", self.label());
        serde_json::from_str(&output.stdout).with_context(|| format!("report of a load: {}", output.stdout))
    }

    /// Starts a load from here and leaves it running.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_load(&self, load: &Load) -> Result<Process> {
        self.command("lab-agent").arg("load").arg(serde_json::to_string(load)?).try_spawn()
    }

    /// Lets these processes of the lab run on one CPU only, or anywhere.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn pin(&self, cpu: Option<usize>, processes: &[i32]) -> Result<()> {
        let cpu = cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
        self.command("lab-agent").arg("pin").arg(cpu).args(processes).try_run().map(drop)
    }
}
