//! The source of Nodes: how it does, what it told, what is kept of it for the next daemon.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Control;
use crate::core::cluster::{Announcement, NodeEvent, Refusal, announcement};
use crate::core::config::Config;
use crate::core::leases::Leases;
use crate::core::notice::{Notice, NoticeGate, Reason, speaks};
use crate::core::status::{SourceStatus, age};
use crate::edge::kube::{Access, Post, Writer};
use crate::edge::{Told, node_cache};

/// How long the cache may be behind.
const CACHE_PERIOD: Duration = Duration::from_secs(10);

/// How long the API server must have been away for an Event to be worth it.
const LONG_AWAY: Duration = Duration::from_secs(60);

/// How the source does.
#[derive(Debug)]
pub(super) struct Source {
    /// What it is, in words.
    name: String,
    /// Last sign of life.
    heard: Option<Instant>,
    trouble: Option<Trouble>,
    /// Age of the cache that serves until the first list, and when that was.
    cached: Option<(Duration, Instant)>,
    cache_trouble: Option<String>,
    keeps_cache: bool,
    cache_due: Option<Instant>,
    cache_written: Option<Instant>,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    since: Instant,
}

/// What goes out to the API server.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    writer: Option<Writer>,
    gate: NoticeGate,
    /// Why our own Node cannot be written.
    trouble: Option<String>,
}

impl Source {
    pub(super) fn new(config: &Config) -> Self {
        let name = match &config.nodes_file {
            Some(path) => format!("file {}", path.display()),
            None => format!("Kubernetes ({})", Access::new(config).identity()),
        };
        Self {
            name,
            heard: None,
            trouble: None,
            cached: None,
            cache_trouble: None,
            keeps_cache: config.nodes_file.is_none(),
            cache_due: None,
            cache_written: None,
        }
    }

    /// Why the Nodes are not known, if they are not.
    pub(super) fn why_unknown(&self) -> String {
        match &self.trouble {
            Some(trouble) => format!("nodes cannot be read: {}", trouble.reason),
            None => "the nodes have not been read yet".to_owned(),
        }
    }

    fn cache_age(&self) -> Option<Duration> {
        self.cached.map(|(age, at)| age + at.elapsed())
    }

    /// When the cache is to be written next.
    pub(super) fn cache_due(&self) -> Option<Instant> {
        self.cache_due
    }

    fn words(&self) -> String {
        let state = match (self.cache_age(), self.heard) {
            (Some(cached), _) => format!("cached, {} old", age(cached)),
            (None, Some(at)) => format!("heard {} ago", age(at.elapsed())),
            (None, None) => "not read yet".to_owned(),
        };
        let trouble = self.trouble.as_ref();
        let trouble = trouble
            .map(|trouble| format!(", in trouble for {}: {}", age(trouble.since.elapsed()), trouble.reason));
        let cache = self.cache_trouble.as_ref().map(|words| format!("; cache not used: {words}"));
        format!("{}, {state}{}{}", self.name, trouble.unwrap_or_default(), cache.unwrap_or_default())
    }
}

impl Control {
    /// Serves what an earlier daemon knew until the source speaks. Returns the names.
    pub(super) fn load_cache(&mut self) -> BTreeSet<String> {
        if !self.source.keeps_cache {
            return BTreeSet::new();
        }
        match node_cache::load(&self.config.run_dir) {
            Ok(None) => {}
            Ok(Some(cached)) => {
                tracing::info!(nodes = cached.nodes.len(), age = %age(cached.age()), "nodes of the cache serve until the first list");
                self.source.cached = Some((cached.age(), Instant::now()));
                self.book.seed(cached.nodes);
                self.derive_cluster();
            }
            Err(problem) => {
                tracing::warn!(%problem, "the cache of nodes is not used");
                self.source.cache_trouble = Some(problem);
            }
        }
        self.book.nodes().into_iter().map(|node| node.name).collect()
    }

    pub(super) fn on_nodes(&mut self, news: Vec<Told>) {
        let first = news.first().map(|told| told.at);
        let mut changed = false;
        for Told { event, .. } in news {
            self.note_source(&event);
            changed |= self.book.apply(event);
        }
        self.publish_due = true;
        if changed {
            self.news_since = self.news_since.or(first);
            self.cache_is_stale();
            self.derive_cluster();
        }
    }

    fn note_source(&mut self, event: &NodeEvent) {
        let NodeEvent::Trouble(reason) = event else {
            self.source.heard = Some(Instant::now());
            if let Some(trouble) = self.source.trouble.take() {
                tracing::info!(after = %age(trouble.since.elapsed()), "the source of nodes is well again");
                if trouble.since.elapsed() >= LONG_AWAY {
                    let away = age(trouble.since.elapsed());
                    let note =
                        format!("no Nodes could be read for {away}, all known stayed: {}", trouble.reason);
                    self.tell(Reason::ApiWasAway, note);
                }
            }
            if matches!(event, NodeEvent::Listed(_)) {
                self.source.cached = None;
                self.source.cache_trouble = None;
            }
            return;
        };
        match &mut self.source.trouble {
            Some(trouble) if trouble.reason == *reason => {}
            trouble => {
                tracing::warn!(%reason, "the source of nodes is in trouble; what was known stays");
                let since = trouble.as_ref().map_or_else(Instant::now, |trouble| trouble.since);
                *trouble = Some(Trouble { reason: reason.clone(), since });
            }
        }
    }

    fn cache_is_stale(&mut self) {
        if self.source.keeps_cache && self.book.synced() {
            let due = self.source.cache_written.map_or_else(Instant::now, |at| at + CACHE_PERIOD);
            self.source.cache_due.get_or_insert(due);
        }
    }

    /// Writes the cache if it is due; off the loop, because thousands of Nodes take their time.
    pub(super) fn write_cache_if_due(&mut self) {
        if self.source.cache_due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.source.cache_due = None;
        self.source.cache_written = Some(Instant::now());
        let (directory, nodes) = (self.config.run_dir.clone(), self.book.nodes());
        tokio::task::spawn_blocking(move || store(&directory, &nodes));
    }

    /// The last words of an ending daemon.
    pub(super) fn flush_cache(&mut self) {
        if self.source.cache_due.take().is_some() {
            store(&self.config.run_dir, &self.book.nodes());
        }
    }

    pub(super) fn source_status(&self) -> SourceStatus {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        SourceStatus {
            in_step: self.book.synced() && self.source.trouble.is_none(),
            nodes: self.book.len(),
            heard_ms: self.source.heard.map(|at| milliseconds(at.elapsed())),
            cached_ms: self.source.cache_age().map(milliseconds),
            trouble: self.source.trouble.as_ref().map(|trouble| trouble.reason.clone()),
            trouble_ms: self.source.trouble.as_ref().map(|trouble| milliseconds(trouble.since.elapsed())),
            announcement_trouble: self.outbox.trouble.clone(),
        }
    }

    pub(super) fn source_words(&self) -> String {
        let unwritten = self.outbox.trouble.as_ref();
        let unwritten = unwritten.map(|words| format!("; our own Node cannot be written: {words}"));
        self.source.words() + &unwritten.unwrap_or_default()
    }

    pub(super) fn open_outbox(&mut self, writer: Writer) {
        self.outbox.writer = Some(writer);
    }

    pub(super) fn on_written(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                tracing::info!("our own Node says what it should");
                self.outbox.trouble = None;
            }
            Err(reason) => {
                if self.outbox.trouble.as_ref() != Some(&reason) {
                    tracing::warn!(%reason, "our own Node cannot be written, trying again");
                }
                self.outbox.trouble = Some(reason);
            }
        }
        self.publish_due = true;
    }

    /// Lets the API server know what our own Node should say. Level-triggered: called with each snapshot.
    pub(super) fn announce(&mut self, ready: bool) {
        let Some(writer) = &self.outbox.writer else { return };
        let wish: Option<Announcement> = announcement(&self.config, &self.book, ready);
        let settled = wish.is_none();
        writer.wishes.send_if_modified(|present| {
            let differs = *present != wish;
            *present = wish;
            differs
        });
        if settled {
            self.outbox.trouble = None;
        }
    }

    /// Tells an operator, if it is worth it.
    pub(super) fn tell(&mut self, reason: Reason, note: String) {
        let Some(writer) = &self.outbox.writer else { return };
        let Some(node) = self.book.node(&self.config.node_name) else { return };
        if let Some(notice) = self.outbox.gate.pass(Notice { reason, note }, self.epoch.elapsed()) {
            let post = Post { node: node.name.clone(), uid: node.uid.clone(), notice };
            let _ = writer.posts.try_send(post);
        }
    }

    /// Pods whose addresses lie outside our pod CIDRs: the Node was deleted and made anew with others.
    pub(super) fn strays(&self) -> Vec<String> {
        let ours = |address: &std::net::IpAddr| self.leased_cidrs.iter().any(|cidr| cidr.contains(address));
        let attached = self.leases.iter().flat_map(Leases::attached);
        let strays = attached.filter(|lease| !lease.alias.addresses.iter().any(ours));
        strays.map(|lease| format!("{} (veth {})", lease.alias.container, lease.veth)).collect()
    }

    /// Tells of strays; the gate lets the same words through once an hour.
    pub(super) fn tell_strays(&mut self) {
        let strays = self.strays().len();
        if strays > 0 {
            let cidrs: Vec<String> = self.leased_cidrs.iter().map(ToString::to_string).collect();
            let note = format!(
                "this Node has pod CIDRs {} now, and {strays} pods still hold addresses of earlier ones: nobody but this \
                 node can reach them; delete them, so that they are made anew (overlayd status lists them)",
                cidrs.join(", ")
            );
            self.tell(Reason::PodCidrsChanged, note);
        }
    }

    /// Tells of refusals that are new.
    pub(super) fn tell_refusals(&mut self, new: &[Refusal]) {
        for Refusal { node, reason, is_conflict } in new {
            tracing::warn!(%node, %reason, "node refused");
            if speaks(&self.config.node_name, node, self.book.len()) {
                let kind = if *is_conflict { Reason::AddressConflict } else { Reason::PeerRefused };
                self.tell(kind, format!("Node {node} {reason}"));
            }
        }
    }
}

fn store(directory: &std::path::Path, nodes: &[crate::core::node::NodeObject]) {
    if let Err(error) = node_cache::store(directory, nodes) {
        tracing::warn!(%error, directory = %directory.display(), "the cache of nodes cannot be written");
    }
}
