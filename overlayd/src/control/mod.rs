//! The one loop that owns all mutable state.
//!
//! Everything that happens outside arrives here as an event: Nodes changed, a pod wants an address, the kernel
//! changed, a worker has news, a second passed, a signal came. An event only changes what is believed and marks what
//! must be looked at again; then one `turn` does whatever is due, in a fixed order: derive the
//! cluster, keep the datapath running with the right table, bring the kernel to the wished state, publish a snapshot.
//! So a start, a change and a repair are the same code, and a lost event costs a delay and nothing else.
//!
//! Kernel calls are made right here: they take milliseconds, and the sockets that answer others run on other threads.

mod conflicts;
mod conflist;
mod lock;
mod publish;
mod reconcile;
mod requests;
mod source;
mod standby;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::core::cluster::Book;
use crate::core::config::Config;
use crate::core::conflist::ConflistStatus;
use crate::core::leases::Leases;
use crate::core::plan::Conflict;
use crate::core::status::Status;
use crate::edge::{self, Told, admin, board::Board, cni, kube, node_file};
use crate::kernel;

pub use lock::{Holder, LOCK_FILE, LOCK_WAIT, Lock, acquire, holder, run_files};
use reconcile::Reconciler;
pub use standby::stand_by;
use tunnel::Tunnel;

/// How often the loop turns without an event: the heartbeat, the snapshot, the silence watch.
const TICK: Duration = Duration::from_secs(1);

/// How long a smaller path MTU is believed: routes change, and nobody tells when a path grew again.
const PATH_MTU_EXPIRY: Duration = Duration::from_secs(600);

/// Node events and CNI calls that may wait.
const QUEUE: usize = 256;

/// uid whose requests the CNI socket serves.
const ROOT: u32 = 0;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By SIGTERM or SIGINT.
    Signal,
    /// Another daemon asked for this node.
    HandOver,
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on. Needs a tokio runtime.
    pub(crate) fn listen() -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Returns with the first of them.
    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs the daemon until a signal comes or another daemon takes over. The device, routes, rules and veths stay when it ends.
/// `_lock` proves that no other daemon runs on this node.
///
/// # Errors
/// If the sockets to the kernel or in the run directory cannot be opened. Later trouble is status, not an end.
pub async fn run(config: Config, _lock: &Lock) -> Result<End> {
    let mut signals = Signals::listen()?;

    let changed = Arc::new(Notify::new());
    let notify = Arc::clone(&changed);
    let (gone, mut veths_gone) = mpsc::unbounded_channel();
    let gone = move |name| {
        // Nobody to tell any more: the loop has ended.
        let _ = gone.send(name);
    };
    let (mut control, mut news) = Control::new(config)?;
    let own = control.reconciler.kernel_ports();
    let _watch =
        kernel::watch(own, move || notify.notify_one(), gone).context("subscribe to kernel changes")?;
    let known = control.load_cache();
    let (mut edge, _tasks) = open_edge(&mut control, known)?;
    let mut node_events = Vec::with_capacity(QUEUE);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let end = loop {
        control.turn();
        let due = control.next_due();
        tokio::select! {
            () = signals.any() => break End::Signal,
            () = control.board.asked_to_hand_over() => break End::HandOver,
            // All that wait at once: a hundred Nodes that join together are one change.
            1.. = edge.nodes.recv_many(&mut node_events, QUEUE) => control.on_nodes(std::mem::take(&mut node_events)),
            Some(result) = edge.written.recv() => control.on_written(result),
            Some(call) = edge.calls.recv() => control.answer(call),
            () = changed.notified() => control.on_kernel(),
            Ok(()) = edge.conflist.changed() => {
                let status = edge.conflist.borrow_and_update().clone();
                control.on_conflist(status);
            }
            Some(name) = veths_gone.recv() => control.on_veth_gone(&name),
            Some(event) = news.rare.recv() => control.on_datapath(event),
            Some(event) = news.path_mtus.recv() => control.on_datapath(event),
            () = control.board.asked() => control.asked = true,
            _ = tick.tick() => control.on_tick(),
            () = wait_until(due) => {}
        }
    };
    let why = match end {
        End::Signal => "on a signal",
        End::HandOver => "because another daemon takes over",
    };
    tracing::info!("ending {why}; device, routes, rules and pods stay as they are");
    control.flush_cache();
    for name in [cni::SOCKET_FILE, admin::SOCKET_FILE] {
        let _ = std::fs::remove_file(control.config.run_dir.join(name));
    }
    Ok(end)
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What arrives from the edge.
struct Edge {
    nodes: mpsc::Receiver<Told>,
    calls: mpsc::Receiver<cni::Call>,
    conflist: watch::Receiver<Option<ConflistStatus>>,
    /// What came of writes to our own Node; closed where there is no API server.
    written: kube::Results,
}

/// Tasks that end with the loop.
struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn open_edge(control: &mut Control, known: BTreeSet<String>) -> Result<(Edge, Tasks)> {
    let config = &control.config;
    let bind = |name: &str| {
        let path = config.run_dir.join(name);
        edge::bind_private(&path).with_context(|| format!("listen on {}", path.display()))
    };
    let (node_sender, nodes) = mpsc::channel(QUEUE);
    let (call_sender, calls) = mpsc::channel(QUEUE);
    let mut tasks = Tasks(vec![
        tokio::spawn(admin::serve_unix(bind(admin::SOCKET_FILE)?, Arc::clone(&control.board))),
        tokio::spawn(cni::serve(bind(cni::SOCKET_FILE)?, ROOT, call_sender)),
    ]);
    if let Some(address) = config.admin_listen {
        tasks.0.push(tokio::spawn(admin::serve_tcp(address, Arc::clone(&control.board))));
    }
    let written = match &config.nodes_file {
        Some(path) => {
            tasks.0.push(tokio::spawn(node_file::watch(path.clone(), node_sender)));
            mpsc::channel(1).1
        }
        None => {
            let (writer, written, running) = kube::start(config, known, node_sender);
            tasks.0.extend(running);
            control.open_outbox(writer);
            written
        }
    };
    let (reports, conflist) = watch::channel(None);
    if let Some(wish) = control.conflist.wish.clone() {
        let serving = control.conflist.serving.subscribe();
        tasks.0.push(tokio::spawn(edge::conflist::keep(wish, serving, reports)));
    }
    Ok((Edge { nodes, calls, conflist, written }, tasks))
}

/// All mutable state of the daemon.
struct Control {
    config: Config,
    board: Arc<Board>,
    /// Zero of every time that `core` is given.
    epoch: Instant,
    source: source::Source,
    outbox: source::Outbox,
    book: Book,
    told_conflicts: Vec<Conflict>,
    leases: Option<Leases>,
    /// When the first news came that the datapath does not know yet.
    news_since: Option<Instant>,
    /// What `leases` was made for.
    leased_cidrs: Vec<IpNet>,
    tunnel: Tunnel,
    path_mtus: BTreeMap<IpAddr, (u32, Instant)>,
    reconciler: Reconciler,
    conflist: conflist::Attendance,
    last_error: Option<(Instant, String)>,
    silence: publish::Silence,
    /// Whether there is news that no snapshot shows.
    publish_due: bool,
    /// Whether somebody waits for a snapshot.
    asked: bool,
    published: Option<Instant>,
}

impl Control {
    fn new(config: Config) -> Result<(Self, tunnel::News)> {
        let epoch = Instant::now();
        let (tunnel, news) = Tunnel::new();
        let control = Self {
            reconciler: Reconciler::open(&config)?,
            conflist: conflist::Attendance::new(&config),
            board: Arc::new(Board::new(Status::default())),
            source: source::Source::new(&config),
            outbox: source::Outbox::default(),
            config,
            epoch,
            book: Book::default(),
            told_conflicts: Vec::new(),
            leases: None,
            news_since: None,
            leased_cidrs: Vec::new(),
            tunnel,
            path_mtus: BTreeMap::new(),
            last_error: None,
            silence: publish::Silence::default(),
            publish_due: true,
            asked: false,
            published: None,
        };
        Ok((control, news))
    }

    /// Does everything that is due.
    fn turn(&mut self) {
        self.drive_tunnel();
        self.news_since = None;
        self.reconcile_if_due();
        self.write_cache_if_due();
        self.judge();
        self.publish_if_due();
        self.board.beat();
    }

    /// When the next turn is due without an event.
    fn next_due(&self) -> Option<Instant> {
        let serving =
            self.book.cluster().own.as_ref().map(|_| [self.tunnel.retry_at(), self.reconciler.due()]);
        let serving = serving.into_iter().flatten().flatten();
        serving.chain(self.source.cache_due()).min()
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        let known = self.path_mtus.len();
        self.path_mtus.retain(|_, (_, expiry)| *expiry > now);
        if self.path_mtus.len() != known {
            self.reconciler.mark("a path MTU expired");
        }
        self.listen();
        self.tell_strays();
        if let Some(leases) = &mut self.leases {
            leases.expire(self.epoch.elapsed());
        }
        self.publish_due = true;
    }

    fn on_kernel(&mut self) {
        self.reconciler.kernel_changed();
        self.tunnel.kernel_changed();
    }

    fn on_veth_gone(&mut self, name: &str) {
        if let Some(leases) = &mut self.leases {
            leases.veth_gone(name, self.epoch.elapsed());
            self.publish_due = true;
        }
    }

    /// Brings what is believed in step with the Nodes.
    fn derive_cluster(&mut self) {
        let change = self.book.derive(&self.config);
        self.tell_refusals(&change.refused);
        let cluster = self.book.cluster();
        if let Some(problem) = cluster.own_problem.as_ref().filter(|_| change.own) {
            tracing::warn!(%problem, "our own node cannot serve");
        }
        if let Some(own) = &cluster.own
            && self.leased_cidrs != own.pod_cidrs
        {
            tracing::info!(node = %own.name, pod_cidrs = ?own.pod_cidrs, "our own pod CIDRs are known");
            self.leases = Some(Leases::new(&own.pod_cidrs, fastrand::u64(..)));
            self.leased_cidrs.clone_from(&own.pod_cidrs);
            self.reconciler.observation_is_stale();
        }
        if change.own || !change.peers.is_empty() {
            tracing::info!(peers = cluster.peers.len(), changed = change.peers.len(), "nodes changed");
            self.tunnel.cluster_changed(change);
            self.reconciler.mark("nodes changed");
        }
    }

    fn note_error(&mut self, error: String) {
        self.last_error = Some((Instant::now(), error));
        self.publish_due = true;
    }

    /// Why pods cannot be served, one sentence each.
    fn not_ready_reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.book.cluster().own.is_none() {
            reasons.push(self.why_no_own());
        } else {
            reasons.extend(self.tunnel.problem());
            reasons.extend(self.reconciler.problem());
        }
        reasons
    }

    fn why_no_own(&self) -> String {
        if let Some(problem) = &self.book.cluster().own_problem {
            return problem.clone();
        }
        self.source.why_unknown()
    }
}
