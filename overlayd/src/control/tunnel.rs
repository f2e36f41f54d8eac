//! Keeps the datapath running: started when our own node is known, started anew when its addresses change or a worker
//! ends, given another table when the peers change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Control, PATH_MTU_EXPIRY};
use crate::core::backoff::Backoff;
use crate::core::cluster::{Change, Own, PeerChange};
use crate::core::config::{Config, TunnelGso};
use crate::core::desired::uplink;
use crate::core::forward::DropReason;
use crate::core::status::TableStatus;
use crate::core::table::{CounterBook, Direct, Table};
use crate::datapath::{self, Datapath, DatapathConfig, Event, StartError, TUNNEL_GSO};

/// Path MTU reports that may wait; more are lost, and the next packet reports again.
const PATH_MTU_QUEUE: usize = 256;

/// A run that lasted this long was a success: the next failure starts with the shortest delay.
const LASTED: Duration = Duration::from_secs(60);

/// The wait that a kernel change leaves of a longer one.
const HURRY: Duration = Duration::from_secs(1);

/// News of the workers. What must not be lost has an unbounded channel: each worker ends once.
#[derive(Debug)]
pub(super) struct News {
    pub(super) path_mtus: mpsc::Receiver<Tagged>,
    pub(super) rare: mpsc::UnboundedReceiver<Tagged>,
}

/// An event and the generation of the datapath that it comes from.
#[derive(Debug)]
pub(super) struct Tagged {
    generation: u64,
    event: Event,
}

/// The datapath and what it needs to come back.
pub(super) struct Tunnel {
    running: Option<Running>,
    generation: u64,
    backoff: Backoff,
    retry_at: Option<Instant>,
    failure: Option<String>,
    counters: CounterBook,
    numbers: TableStatus,
    news: TableNews,
    /// Where super-packets leave whole.
    direct: Direct,
    path_mtus: mpsc::Sender<Tagged>,
    rare: mpsc::UnboundedSender<Tagged>,
    /// Drops of the datapaths that ended: counters never go back.
    drops_before: BTreeMap<DropReason, u64>,
}

/// What the workers' table does not show yet.
#[derive(Debug, Default)]
struct TableNews {
    /// Whether our own node is another.
    own: bool,
    /// Changes of peers, in order.
    peers: Vec<PeerChange>,
}

struct Running {
    config: DatapathConfig,
    datapath: Datapath,
    table: Arc<Table>,
    since: Instant,
}

impl Running {
    /// Gives the workers another table.
    fn swap(&mut self, table: Table) {
        self.table = Arc::new(table);
        self.datapath.swap(Arc::clone(&self.table));
    }
}

impl Tunnel {
    pub(super) fn new() -> (Self, News) {
        let (path_mtus, path_mtu_news) = mpsc::channel(PATH_MTU_QUEUE);
        let (rare, rare_news) = mpsc::unbounded_channel();
        let tunnel = Self {
            running: None,
            generation: 0,
            backoff: Backoff::default(),
            retry_at: None,
            failure: None,
            counters: CounterBook::default(),
            numbers: TableStatus::default(),
            news: TableNews::default(),
            direct: Direct::default(),
            path_mtus,
            rare,
            drops_before: BTreeMap::new(),
        };
        (tunnel, News { path_mtus: path_mtu_news, rare: rare_news })
    }

    /// The workers' table is out of date.
    pub(super) fn cluster_changed(&mut self, change: Change) {
        // One that starts is given a new table in any case.
        if self.running.is_some() {
            self.news.own |= change.own;
            self.news.peers.extend(change.peers);
        }
    }

    /// When to try again to start.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Why no packet moves, if so.
    pub(super) fn problem(&self) -> Option<String> {
        if self.running.is_some() {
            return None;
        }
        Some(match &self.failure {
            Some(failure) => format!("the datapath does not run: {failure}"),
            None => "the datapath has not been started yet".to_owned(),
        })
    }

    /// Whether the datapath was tried and does not run.
    pub(super) fn has_failed(&self) -> bool {
        self.running.is_none() && self.failure.is_some()
    }

    /// Counters by peer name.
    pub(super) fn counters(&self) -> &CounterBook {
        &self.counters
    }

    /// Drops by reason since the daemon's start.
    pub(super) fn drops(&self) -> BTreeMap<DropReason, u64> {
        let now = self.running.as_ref().map(|running| running.datapath.drops()).unwrap_or_default();
        let count = |reason| {
            now.get(&reason).copied().unwrap_or(0) + self.drops_before.get(&reason).copied().unwrap_or(0)
        };
        DropReason::ALL.iter().map(|&reason| (reason, count(reason))).collect()
    }

    /// How often and how quickly the table changed.
    pub(super) fn numbers(&self) -> &TableStatus {
        &self.numbers
    }

    /// Offloads by name.
    pub(super) fn offloads(&self) -> BTreeMap<String, String> {
        self.running.as_ref().map(|running| running.datapath.offloads()).unwrap_or_default()
    }

    /// Whether super-packets can leave whole as far as the workers know, and no uplink is there for them.
    pub(super) fn lacks_uplink(&self, offloads: &BTreeMap<String, String>) -> bool {
        offloads.get(TUNNEL_GSO).is_some_and(|state| state == "on") && self.direct.on_link.is_empty()
    }

    /// The kernel changed: what kept the datapath from starting may be gone.
    pub(super) fn kernel_changed(&mut self) {
        let soon = Instant::now() + HURRY;
        self.retry_at = self.retry_at.map(|at| at.min(soon));
    }

    fn stop(&mut self) {
        self.drops_before = self.drops();
        self.running = None;
    }

    fn failed(&mut self, failure: String) {
        let wait = self.backoff.failed(fastrand::f64());
        self.retry_at = Some(Instant::now() + wait);
        self.failure = Some(failure);
    }

    fn start(&mut self, config: &DatapathConfig, table: Arc<Table>) -> Result<(), StartError> {
        self.generation += 1;
        let (generation, path_mtus, rare) = (self.generation, self.path_mtus.clone(), self.rare.clone());
        let notify = move |event: Event| {
            let is_path_mtu = matches!(event, Event::PathMtu { .. });
            let tagged = Tagged { generation, event };
            if is_path_mtu {
                let _ = path_mtus.try_send(tagged);
            } else {
                let _ = rare.send(tagged);
            }
        };
        let datapath = datapath::start(config, Arc::clone(&table), Arc::new(notify))?;
        self.running = Some(Running { config: config.clone(), datapath, table, since: Instant::now() });
        self.retry_at = None;
        self.failure = None;
        Ok(())
    }
}

impl Control {
    /// Starts, restarts or re-tables the datapath, whichever is due.
    pub(super) fn drive_tunnel(&mut self) {
        let Some(own) = &self.book.cluster().own else { return };
        let wished = datapath_config(&self.config, own, self.epoch);
        if let Some(running) = &self.tunnel.running
            && running.config != wished
        {
            tracing::info!("our own underlay address changed: the datapath starts anew");
            self.tunnel.stop();
            self.tunnel.retry_at = None;
        }
        if self.tunnel.running.is_none() && self.tunnel.retry_at.is_none_or(|at| at <= Instant::now()) {
            self.start_tunnel(&wished);
        } else {
            self.swap_table();
        }
    }

    fn start_tunnel(&mut self, wished: &DatapathConfig) {
        // The device is a new one, to which no way leads yet.
        self.tunnel.direct = Direct::default();
        let Some(table) = self.build_table() else { return };
        self.publish_due = true;
        match self.tunnel.start(wished, Arc::new(table)) {
            Ok(()) => {
                tracing::info!(device = %wished.device, workers = wished.workers, port = wished.port, "the datapath runs");
                // It made or opened the device.
                self.reconciler.observation_is_stale();
                self.reconciler.mark("the datapath was started");
                self.time_news();
            }
            Err(error) => {
                let failure = self.explain(&error);
                if self.tunnel.failure.as_ref() != Some(&failure) {
                    tracing::error!(error = %failure, "cannot start the datapath, trying again");
                }
                self.tunnel.failed(failure.clone());
                self.note_error(format!("start the datapath: {failure}"));
            }
        }
    }

    fn build_table(&mut self) -> Option<Table> {
        self.tunnel.news = TableNews::default();
        let own = self.book.cluster().own.as_ref()?;
        let (vni, workers) = (self.config.vni, self.config.workers);
        let table = Table::build(own, &self.book.cluster().peers, vni, workers, &mut self.tunnel.counters);
        Some(table.with_direct(self.tunnel.direct.clone()))
    }

    /// Tells the workers where super-packets leave whole now.
    pub(super) fn open_uplinks(&mut self, direct: Direct) {
        if self.tunnel.direct == direct {
            return;
        }
        self.tunnel.direct = direct;
        if let Some(running) = &mut self.tunnel.running {
            running.swap((*running.table).clone().with_direct(self.tunnel.direct.clone()));
            self.publish_due = true;
        }
    }

    fn swap_table(&mut self) {
        let news = &self.tunnel.news;
        if self.tunnel.running.is_none() || (!news.own && news.peers.is_empty()) {
            return;
        }
        let table = if news.own { self.build_table() } else { self.revise_table() };
        if let (Some(table), Some(running)) = (table, &mut self.tunnel.running) {
            running.swap(table);
            self.tunnel.numbers.swaps += 1;
            self.time_news();
            self.publish_due = true;
        }
    }

    fn revise_table(&mut self) -> Option<Table> {
        let news = std::mem::take(&mut self.tunnel.news);
        let running = self.tunnel.running.as_ref()?;
        Some(running.table.revised(&news.peers, self.config.workers, &mut self.tunnel.counters))
    }

    /// How long the news took that the workers have just been told.
    fn time_news(&mut self) {
        let Some(since) = self.news_since.take() else { return };
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let numbers = &mut self.tunnel.numbers;
        numbers.last_us = micros;
        numbers.slowest_us = numbers.slowest_us.max(micros);
        numbers.news += 1;
        numbers.sum_us += micros;
    }

    /// The error in words, with what stands in the way and the command that removes it.
    fn explain(&mut self, error: &StartError) -> String {
        let StartError::PortTaken { port, .. } = error else { return error.to_string() };
        match self.reconciler.vxlan_links_on(*port) {
            links if links.is_empty() => {
                format!("{error}: find its owner with `ss -ulpn 'sport = :{port}'`")
            }
            links => {
                let commands: Vec<String> = links.iter().map(|link| format!("ip link del {link}")).collect();
                format!(
                    "{error} by the kernel link {}: remove it with `{}`",
                    links.join(", "),
                    commands.join(" && ")
                )
            }
        }
    }

    /// Takes in what a worker tells.
    pub(super) fn on_datapath(&mut self, tagged: Tagged) {
        if tagged.generation != self.tunnel.generation {
            return;
        }
        match tagged.event {
            Event::PathMtu { underlay, mtu } => {
                let known = self.path_mtus.insert(underlay, (mtu, Instant::now() + PATH_MTU_EXPIRY));
                if known.is_none_or(|(known, _)| known != mtu) {
                    tracing::info!(%underlay, mtu, "the path to a peer carries less");
                    self.reconciler.mark("a path MTU changed");
                }
            }
            Event::Failed(reason) => {
                let Some(running) = &self.tunnel.running else { return };
                tracing::warn!(%reason, "the datapath ended, starting it anew");
                if running.since.elapsed() > LASTED {
                    self.tunnel.backoff.succeeded();
                }
                // The first restart is at once (someone deleted the device), a failing one waits.
                let at_once = self.tunnel.backoff.failures() == 0;
                self.tunnel.stop();
                self.tunnel.failed(reason.clone());
                if at_once {
                    self.tunnel.retry_at = None;
                }
                self.note_error(format!("the datapath ended: {reason}"));
            }
            Event::SteppedDown { offload, reason } => {
                tracing::info!(%offload, %reason, "an offload is off from now on");
                self.publish_due = true;
            }
        }
    }
}

fn datapath_config(config: &Config, own: &Own, epoch: Instant) -> DatapathConfig {
    DatapathConfig {
        device: config.device.clone(),
        tap: (config.tunnel_gso != TunnelGso::Never).then(|| uplink::tap_name(&config.device)),
        workers: config.workers,
        port: config.port,
        underlay_v4: own.underlay_v4,
        underlay_v6: own.underlay_v6,
        spin: config.spin,
        epoch,
    }
}
