//! The one loop that owns all mutable state.
//!
//! Everything that happens outside arrives here as an event: Nodes changed, a pod wants an address, the kernel
//! changed, a worker has news, a second passed, a signal came. An event only changes what is believed and marks what
//! must be looked at again; then one `turn` does whatever is due, in a fixed order: derive the
//! cluster, keep the datapath running with the right table, bring the kernel to the wished state, publish a snapshot.
//! So a start, a change and a repair are the same code, and a lost event costs a delay and nothing else.
//!
//! Kernel calls are made right here: they take milliseconds, and the sockets that answer others run on other threads.

mod backoff;
mod conflist;
mod lock;
mod publish;
mod reconcile;
mod requests;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::core::cluster::{Book, Cluster, NodeEvent, Refusal};
use crate::core::config::Config;
use crate::core::conflist::ConflistStatus;
use crate::core::leases::Leases;
use crate::core::status::Status;
use crate::edge::{self, admin, board::Board, cni, node_file};
use crate::kernel;

pub use lock::{Holder, LOCK_FILE, LOCK_WAIT, Lock, acquire, holder, run_files};
use reconcile::Reconciler;
use tunnel::Tunnel;

/// How often the loop turns without an event: the heartbeat, the snapshot, the silence watch.
const TICK: Duration = Duration::from_secs(1);

/// How long a smaller path MTU is believed: routes change, and nobody tells when a path grew again.
const PATH_MTU_EXPIRY: Duration = Duration::from_secs(600);

/// Node events and CNI calls that may wait.
const QUEUE: usize = 256;

/// uid whose requests the CNI socket serves.
const ROOT: u32 = 0;

/// Runs the daemon until SIGTERM or SIGINT. The device, routes, rules and veths stay when it ends. `_lock` proves
/// that no other daemon runs on this node.
///
/// # Errors
/// If the sockets to the kernel or in the run directory cannot be opened. Later trouble is status, not an end.
pub async fn run(config: Config, _lock: &Lock) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;

    let changed = Arc::new(Notify::new());
    let notify = Arc::clone(&changed);
    let _watch = kernel::watch(move || notify.notify_one()).context("subscribe to kernel changes")?;
    let (mut control, mut news) = Control::new(config)?;
    let (mut edge, _tasks) = open_edge(&control)?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        control.turn();
        let due = control.next_due();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(event) = edge.nodes.recv() => control.on_nodes(event),
            Some(call) = edge.calls.recv() => control.answer(call),
            () = changed.notified() => control.on_kernel(),
            Ok(()) = edge.conflist.changed() => {
                let status = edge.conflist.borrow_and_update().clone();
                control.on_conflist(status);
            }
            Some(event) = news.rare.recv() => control.on_datapath(event),
            Some(event) = news.path_mtus.recv() => control.on_datapath(event),
            () = control.board.asked() => control.publish_due = true,
            _ = tick.tick() => control.on_tick(),
            () = wait_until(due) => {}
        }
    }
    tracing::info!("ending on a signal; device, routes, rules and pods stay as they are");
    for name in [cni::SOCKET_FILE, admin::SOCKET_FILE] {
        let _ = std::fs::remove_file(control.config.run_dir.join(name));
    }
    Ok(())
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What arrives from the edge.
struct Edge {
    nodes: mpsc::Receiver<NodeEvent>,
    calls: mpsc::Receiver<cni::Call>,
    conflist: watch::Receiver<Option<ConflistStatus>>,
}

/// Tasks that end with the loop.
struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn open_edge(control: &Control) -> Result<(Edge, Tasks)> {
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
    match &config.nodes_file {
        Some(path) => tasks.0.push(tokio::spawn(node_file::watch(path.clone(), node_sender))),
        None => tracing::warn!("no source of nodes is configured: set nodes_file"),
    }
    let (reports, conflist) = watch::channel(None);
    if let Some(wish) = control.conflist.wish.clone() {
        let serving = control.conflist.serving.subscribe();
        tasks.0.push(tokio::spawn(edge::conflist::keep(wish, serving, reports)));
    }
    Ok((Edge { nodes, calls, conflist }, tasks))
}

/// All mutable state of the daemon.
struct Control {
    config: Config,
    board: Arc<Board>,
    /// Zero of every time that `core` is given.
    epoch: Instant,
    source: Source,
    book: Book,
    cluster: Cluster,
    told_refusals: BTreeSet<Refusal>,
    leases: Option<Leases>,
    /// What `leases` was made for.
    leased_cidrs: Vec<IpNet>,
    tunnel: Tunnel,
    path_mtus: BTreeMap<IpAddr, (u32, Instant)>,
    reconciler: Reconciler,
    conflist: conflist::Attendance,
    last_error: Option<(Instant, String)>,
    silence: publish::Silence,
    publish_due: bool,
}

/// How the source of Nodes does.
#[derive(Debug, Default)]
struct Source {
    listed: Option<Instant>,
    trouble: Option<String>,
}

impl Control {
    fn new(config: Config) -> Result<(Self, tunnel::News)> {
        let epoch = Instant::now();
        let (tunnel, news) = Tunnel::new();
        let control = Self {
            reconciler: Reconciler::open(&config)?,
            conflist: conflist::Attendance::new(&config),
            board: Arc::new(Board::new(Status::default())),
            config,
            epoch,
            source: Source::default(),
            book: Book::default(),
            cluster: Cluster::default(),
            told_refusals: BTreeSet::new(),
            leases: None,
            leased_cidrs: Vec::new(),
            tunnel,
            path_mtus: BTreeMap::new(),
            last_error: None,
            silence: publish::Silence::default(),
            publish_due: true,
        };
        Ok((control, news))
    }

    /// Does everything that is due.
    fn turn(&mut self) {
        self.drive_tunnel();
        self.reconcile_if_due();
        if std::mem::take(&mut self.publish_due) {
            self.publish();
        }
        self.board.beat();
    }

    /// When the next turn is due without an event.
    fn next_due(&self) -> Option<Instant> {
        self.cluster.own.as_ref()?;
        [self.tunnel.retry_at(), self.reconciler.due()].into_iter().flatten().min()
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        let known = self.path_mtus.len();
        self.path_mtus.retain(|_, (_, expiry)| *expiry > now);
        if self.path_mtus.len() != known {
            self.reconciler.mark("a path MTU expired");
        }
        self.publish_due = true;
    }

    fn on_kernel(&mut self) {
        self.reconciler.kernel_changed();
        self.tunnel.kernel_changed();
    }

    fn on_nodes(&mut self, event: NodeEvent) {
        match &event {
            NodeEvent::Trouble(reason) => {
                if self.source.trouble.as_ref() != Some(reason) {
                    tracing::warn!(%reason, "the source of nodes is in trouble; what was known stays");
                }
                self.source.trouble = Some(reason.clone());
            }
            _ => {
                if self.source.trouble.take().is_some() {
                    tracing::info!("the source of nodes is well again");
                }
                self.source.listed = Some(Instant::now());
            }
        }
        self.publish_due = true;
        if self.book.apply(event) {
            self.derive_cluster();
        }
    }

    fn derive_cluster(&mut self) {
        let cluster = self.book.cluster(&self.config);
        let refusals: BTreeSet<Refusal> = cluster.refused.iter().cloned().collect();
        for refusal in refusals.difference(&self.told_refusals) {
            tracing::warn!(node = %refusal.node, reason = %refusal.reason, "node refused");
        }
        self.told_refusals = refusals;
        if let Some(problem) = &cluster.own_problem
            && self.cluster.own_problem.as_ref() != Some(problem)
        {
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
        tracing::info!(peers = cluster.peers.len(), refused = cluster.refused.len(), "nodes changed");
        self.cluster = cluster;
        self.tunnel.table_is_stale();
        self.reconciler.mark("nodes changed");
    }

    fn note_error(&mut self, error: String) {
        self.last_error = Some((Instant::now(), error));
        self.publish_due = true;
    }

    /// Why pods cannot be served, one sentence each.
    fn not_ready_reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.cluster.own.is_none() {
            reasons.push(self.why_no_own());
        } else {
            reasons.extend(self.tunnel.problem());
            reasons.extend(self.reconciler.problem());
        }
        reasons
    }

    fn why_no_own(&self) -> String {
        if let Some(problem) = &self.cluster.own_problem {
            return problem.clone();
        }
        match (&self.source.trouble, &self.config.nodes_file) {
            (Some(trouble), _) => format!("nodes cannot be read: {trouble}"),
            (None, Some(_)) => "the nodes have not been read yet".to_owned(),
            (None, None) => "no source of nodes is configured: set nodes_file".to_owned(),
        }
    }
}
