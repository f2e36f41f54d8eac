//! What is measured, and what figures come of it.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::load::{Direction, Load, Measured, Outcome, Work};

use crate::report::Better;
use crate::world::Route;

/// One measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// TCP, so many streams.
    Tcp(usize, Direction),
    /// Datagrams of this payload as fast as they go.
    Flood(usize),
    /// Datagrams of 64 bytes, so many thousand a second.
    Paced(u64),
    /// Round trips with nothing else going on.
    RoundTrips,
    /// The same with client, server and carriers on one CPU.
    RoundTripsPinned,
    /// The same with the client on one CPU and the server on another, as on two machines; carriers where they like.
    RoundTripsApart,
    /// The same while one TCP stream fills the way.
    RoundTripsLoaded,
    /// TCP connections.
    Connections,
    /// What carriers cost when nothing is carried.
    Idle,
}

/// Rates of the loss curve, in thousand packets a second.
pub(crate) const CURVE: [u64; 6] = [50, 100, 150, 200, 250, 300];

/// All of them, in the order of importance.
pub(crate) fn all() -> Vec<Measure> {
    let mut all = vec![
        Measure::Tcp(1, Direction::Up),
        Measure::Tcp(4, Direction::Up),
        Measure::Tcp(16, Direction::Up),
        Measure::Tcp(1, Direction::Down),
        Measure::Flood(64),
        Measure::Flood(1200),
    ];
    all.extend(CURVE.map(Measure::Paced));
    all.extend([
        Measure::RoundTrips,
        Measure::RoundTripsPinned,
        Measure::RoundTripsApart,
        Measure::RoundTripsLoaded,
        Measure::Connections,
        Measure::Idle,
    ]);
    all
}

/// Those that are taken in every world.
pub(crate) fn short() -> Vec<Measure> {
    let keep = |measure: &Measure| {
        !matches!(
            measure,
            Measure::Paced(_)
                | Measure::RoundTripsPinned
                | Measure::RoundTripsLoaded
                | Measure::Connections
                | Measure::Idle
        )
    };
    all().into_iter().filter(keep).collect()
}

/// Those that say in a minute whether something is wrong.
pub(crate) fn quick() -> Vec<Measure> {
    vec![
        Measure::Tcp(1, Direction::Up),
        Measure::Tcp(4, Direction::Up),
        Measure::Flood(64),
        Measure::Paced(100),
        Measure::Paced(200),
        Measure::RoundTrips,
    ]
}

/// How the ids of figures of system calls end.
const SYSCALLS: &str = "syscalls";

/// One number.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) value: f64,
}

/// What one measurement brought.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) figures: Vec<Figure>,
    pub(crate) quantiles_us: Option<Vec<f64>>,
    pub(crate) steal: f64,
}

impl Measure {
    pub(crate) fn id(self) -> String {
        match self {
            Self::Tcp(streams, Direction::Up) => format!("tcp_{streams}"),
            Self::Tcp(streams, Direction::Down) => format!("tcp_{streams}_reverse"),
            Self::Flood(size) => format!("udp_{size}"),
            Self::Paced(rate) => format!("paced_{rate}k"),
            Self::RoundTrips => "rtt".into(),
            Self::RoundTripsPinned => "rtt_pinned".into(),
            Self::RoundTripsApart => "rtt_apart".into(),
            Self::RoundTripsLoaded => "rtt_loaded".into(),
            Self::Connections => "connections".into(),
            Self::Idle => "idle".into(),
        }
    }

    fn title(self) -> String {
        match self {
            Self::Tcp(1, Direction::Up) => "TCP, 1 stream".into(),
            Self::Tcp(streams, Direction::Up) => format!("TCP, {streams} streams"),
            Self::Tcp(streams, Direction::Down) => format!("TCP, {streams} stream, reverse"),
            Self::Flood(size) => format!("UDP flood, {size} bytes"),
            Self::Paced(rate) => format!("UDP 64 bytes at {rate},000/s"),
            Self::RoundTrips => "Round trip, idle".into(),
            Self::RoundTripsPinned => "Round trip, all on one CPU".into(),
            Self::RoundTripsApart => "Round trip, ends on two CPUs".into(),
            Self::RoundTripsLoaded => "Round trip beside a TCP stream".into(),
            Self::Connections => "TCP connections".into(),
            Self::Idle => "Idle".into(),
        }
    }

    fn work(self) -> Work {
        match self {
            Self::Tcp(streams, direction) => Work::Tcp { streams, direction },
            Self::Flood(size) => Work::Udp { size, per_second: 0 },
            Self::Paced(rate) => Work::Udp { size: 64, per_second: rate * 1000 },
            Self::RoundTrips | Self::RoundTripsPinned | Self::RoundTripsApart | Self::RoundTripsLoaded => {
                Work::RoundTrips
            }
            Self::Connections => Work::Connections,
            Self::Idle => Work::Idle,
        }
    }

    /// Whether the daemons' system calls are of interest.
    pub(crate) fn counts_syscalls(self) -> bool {
        matches!(self, Self::Tcp(1 | 4, Direction::Up) | Self::Flood(_))
    }

    /// Counts the daemons' system calls: for itself, because every system call of the machine is slower meanwhile.
    pub(crate) fn count_syscalls(self, way: &Route, window: Duration) -> Result<Vec<Figure>> {
        let measured = way.client.load(&self.load(way, window, true))?;
        let figures = self.figures(way, measured)?.figures;
        Ok(figures.into_iter().filter(|figure| figure.id.ends_with(SYSCALLS)).collect())
    }

    fn load(self, way: &Route, window: Duration, count_syscalls: bool) -> Load {
        let mut watch = way.carriers.clone();
        watch.push(way.server.process.pid());
        Load {
            server: way.to,
            work: self.work(),
            warm_up: window / 5,
            window,
            watch,
            count_syscalls,
            cpu: None,
        }
    }

    /// Takes it once.
    pub(crate) fn take(self, way: &Route, window: Duration) -> Result<Taken> {
        let mut load = self.load(way, window, false);
        let watch = load.watch.clone();
        let measured = match self {
            Self::RoundTripsPinned => {
                load.cpu = Some(0);
                way.client.pin(Some(0), &watch)?;
                let measured = way.client.load(&load);
                way.client.pin(None, &watch)?;
                measured?
            }
            Self::RoundTripsApart => {
                load.cpu = Some(0);
                let server = [way.server.process.pid()];
                way.client.pin(Some(1), &server)?;
                let measured = way.client.load(&load);
                way.client.pin(None, &server)?;
                measured?
            }
            Self::RoundTripsLoaded => {
                let work = Work::Tcp { streams: 1, direction: Direction::Up };
                let longer = Load {
                    work,
                    window: window * 2 + Duration::from_secs(1),
                    watch: Vec::new(),
                    ..load.clone()
                };
                let filling = way.client.start_load(&longer)?;
                std::thread::sleep(window / 4);
                let measured = way.client.load(&load);
                drop(filling);
                measured?
            }
            _ => way.client.load(&load)?,
        };
        self.figures(way, measured)
    }

    fn figures(self, way: &Route, measured: Measured) -> Result<Taken> {
        let Measured { outcome, usage } = measured;
        let mut figures = Figures { measure: self, list: Vec::new() };
        let mut quantiles = None;
        // CPU and the like are told per GB where bytes are the point, per million packets where packets are.
        let mut unit = None;
        match outcome {
            Outcome::Bytes(bytes) => {
                let gigabytes = bytes as f64 / 1e9;
                figures.add("", "", "Gbit/s", Better::Higher, gigabytes * 8.0 / usage.seconds);
                unit = Some((gigabytes, "GB"));
            }
            Outcome::Datagrams(datagrams) => {
                let rate = datagrams.in_window as f64 / usage.seconds;
                figures.add("", "received", "packets/s", Better::Higher, rate);
                figures.add("loss", "lost", "%", Better::Lower, datagrams.loss() * 100.0);
                figures.add("reordered", "reordered", "packets", Better::Lower, datagrams.reordered as f64);
                unit = Some((datagrams.in_window as f64 / 1e6, "million packets"));
            }
            Outcome::RoundTrips { quantiles_us, p999_us, .. } => {
                let at = |share: f64| {
                    quantiles_us.get(((quantiles_us.len() - 1) as f64 * share) as usize).copied()
                };
                figures.add("", "p50", "us", Better::Lower, at(0.5).context("no distribution")?);
                figures.add("p99", "p99", "us", Better::Lower, at(0.99).context("no distribution")?);
                figures.add("p999", "p99.9", "us", Better::Lower, p999_us);
                quantiles = Some(quantiles_us);
            }
            Outcome::Connections(count) => {
                figures.add("", "", "connections/s", Better::Higher, count as f64 / usage.seconds);
            }
            Outcome::Idle if way.carriers.is_empty() => {}
            Outcome::Idle => {
                let carriers = &usage.processes[..way.carriers.len()];
                let cpu: f64 = carriers.iter().map(|process| process.cpu).sum();
                let each = cpu / usage.seconds / way.carriers.len().max(1) as f64;
                figures.add("", "CPU of a daemon", "% of one CPU", Better::Lower, each * 100.0);
            }
        }
        let (carriers, server) = usage.processes.split_at(way.carriers.len());
        if let Some((amount, of)) = unit.filter(|(amount, _)| *amount > 0.0) {
            let seconds = |of: &str| match of {
                "GB" => "s/GB",
                _ => "s/million",
            };
            let per = |value: f64| value / amount;
            figures.add("cpu", "CPU of the machine", seconds(of), Better::Lower, per(usage.busy));
            figures.add("softirq", "CPU in soft interrupts", seconds(of), Better::Lower, per(usage.softirq));
            figures.add("client_cpu", "CPU of the client", seconds(of), Better::Lower, per(usage.client.cpu));
            let cpu: f64 = server.iter().map(|process| process.cpu).sum();
            figures.add("server_cpu", "CPU of the server", seconds(of), Better::Lower, per(cpu));
            if !carriers.is_empty() {
                let cpu: f64 = carriers.iter().map(|process| process.cpu).sum();
                figures.add("carrier_cpu", "CPU of the daemons", seconds(of), Better::Lower, per(cpu));
                let count = if of == "GB" { "per GB" } else { "per million" };
                let switches: u64 = carriers.iter().map(|process| process.switches).sum();
                let title = "context switches of the daemons";
                figures.add("switches", title, count, Better::Lower, per(switches as f64));
                let syscalls: Option<u64> = carriers.iter().map(|process| process.syscalls).sum();
                if let Some(syscalls) = syscalls {
                    let title = "system calls of the daemons";
                    figures.add(SYSCALLS, title, count, Better::Lower, per(syscalls as f64));
                }
            }
        }
        if let Some(rss) = carriers.iter().map(|process| process.rss).max() {
            figures.add(
                "rss",
                "memory of a daemon (RSS)",
                "MiB",
                Better::Lower,
                rss as f64 / (1 << 20) as f64,
            );
        }
        Ok(Taken { figures: figures.list, quantiles_us: quantiles, steal: usage.steal })
    }
}

struct Figures {
    measure: Measure,
    list: Vec<Figure>,
}

impl Figures {
    fn add(&mut self, of: &str, title: &str, unit: &'static str, better: Better, value: f64) {
        let (measure, name) = (self.measure.id(), self.measure.title());
        let id = if of.is_empty() { measure } else { format!("{measure}.{of}") };
        let title = if title.is_empty() { name } else { format!("{name}: {title}") };
        self.list.push(Figure { id, title, unit, better, value });
    }
}
