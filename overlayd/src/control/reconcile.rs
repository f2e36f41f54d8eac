//! Brings the kernel to the wished state, level-triggered: whatever happened, read, compare, apply the difference.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Control;
use crate::core::backoff::{Backoff, RED_AFTER};
use crate::core::config::Config;
use crate::core::desired::uplink::direct;
use crate::core::desired::{Inputs, desired};
use crate::core::notice::Reason;
use crate::core::plan::ruleset::Ruleset;
use crate::core::plan::{Actual, Conflict, ForeignLink, Op, conflicts, plan};
use crate::core::status::ReconcileStatus;
use crate::kernel::{Kernel, KernelError, PLUMBING_LIMIT, Ports};

/// How long kernel changes are gathered before they are looked at: a pod's birth is a burst of them.
const GATHER: Duration = Duration::from_millis(50);

/// The same while rounds fail.
const GATHER_FAILING: Duration = Duration::from_secs(1);

/// How many times its own length a round is followed by rest in a large cluster: thousands of nodes that change all the time must
/// not keep the loop from everything else.
const REST: u32 = 9;

/// From how many peers on a cluster is large: below, a round takes a few milliseconds.
const LARGE: usize = 500;

/// A round without any cause, should a notification ever be lost.
const RESYNC: Duration = Duration::from_secs(30);

/// Such rounds take at most one part in so many of the time: with thousands of nodes a read takes tens of milliseconds.
const RESYNC_SHARE: u32 = 2000;

/// Kernel sockets, the last observation, and when the next round is due.
pub(super) struct Reconciler {
    kernel: Kernel,
    observed: Option<Actual>,
    /// Whether the kernel may hold something else than was observed.
    stale: bool,
    /// Until when the last observation is believed without a cause to doubt it.
    good_until: Option<Instant>,
    due: Option<Instant>,
    /// Until when the last round rests.
    rests_until: Option<Instant>,
    backoff: Backoff,
    failure: Option<String>,
    settled: bool,
    /// Our nftables table as it was last set or found.
    table: Option<Ruleset>,
    conflicts: Vec<Conflict>,
    /// Why the kernel does not take super-packets' way to the uplinks, if so.
    uplink_refusal: Option<String>,
    numbers: ReconcileStatus,
}

impl Reconciler {
    pub(super) fn open(config: &Config) -> Result<Self> {
        Ok(Self {
            kernel: Kernel::open(&config.device)
                .context("open the sockets to the kernel")?
                .with_sysctls_at(&config.sysctl_dir),
            observed: None,
            stale: true,
            good_until: None,
            due: None,
            rests_until: None,
            backoff: Backoff::default(),
            failure: None,
            settled: false,
            table: None,
            conflicts: Vec::new(),
            uplink_refusal: None,
            numbers: ReconcileStatus::default(),
        })
    }

    /// The ports of the sockets by which the kernel is changed.
    pub(super) fn kernel_ports(&self) -> Ports {
        self.kernel.ports()
    }

    /// A round is due now: the wish changed.
    pub(super) fn mark(&mut self, cause: &'static str) {
        tracing::debug!(cause, "the kernel state must be looked at");
        self.due_at(Instant::now());
    }

    /// Others changed the kernel. While rounds fail, those who make them fail must not make us race.
    pub(super) fn kernel_changed(&mut self) {
        self.stale = true;
        let gather = if self.failure.is_some() { GATHER_FAILING } else { GATHER };
        self.due_at(Instant::now() + gather);
    }

    /// The last observation says nothing any more.
    pub(super) fn observation_is_stale(&mut self) {
        self.stale = true;
    }

    fn due_at(&mut self, at: Instant) {
        let at = self.rests_until.map_or(at, |rested| rested.max(at));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Why pods cannot be served, if so.
    pub(super) fn problem(&self) -> Option<String> {
        match &self.failure {
            Some(failure) if self.backoff.failures() >= RED_AFTER => Some(format!(
                "kernel state could not be set {} times in a row: {failure}",
                self.backoff.failures()
            )),
            Some(failure) if !self.settled => Some(format!("kernel state is not set: {failure}")),
            None if !self.settled => Some("kernel state has not been set yet".to_owned()),
            _ => None,
        }
    }

    /// The last observation.
    pub(super) fn observed(&self) -> Option<&Actual> {
        self.observed.as_ref()
    }

    /// Foreign objects in our way.
    pub(super) fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Why the kernel does not take super-packets' way to the uplinks, if so.
    pub(super) fn uplink_refusal(&self) -> Option<&str> {
        self.uplink_refusal.as_deref()
    }

    /// Numbers since the start.
    pub(super) fn numbers(&self) -> &ReconcileStatus {
        &self.numbers
    }

    /// Names of the kernel's vxlan links that hold a UDP port.
    pub(super) fn vxlan_links_on(&mut self, port: u16) -> Vec<String> {
        let Ok(actual) = self.kernel.read() else { return Vec::new() };
        let holds = |link: &&ForeignLink| link.vxlan_port == Some(port);
        actual.foreign_links.iter().filter(holds).map(|link| link.name.clone()).collect()
    }

    /// Whether only another read tells what the kernel holds.
    fn must_read(&self) -> bool {
        self.stale
            || self.good_until.is_none_or(|until| until <= Instant::now())
            || self.observed.as_ref().is_none_or(has_unsettled)
    }

    fn read(&mut self) -> Result<&Actual, KernelError> {
        // Cleared before the read: a change during it makes it stale again.
        self.stale = false;
        let begin = Instant::now();
        let actual = self.kernel.read().inspect_err(|_| self.stale = true)?;
        self.good_until = Some(begin + RESYNC.max(begin.elapsed() * RESYNC_SHARE));
        Ok(self.observed.insert(actual))
    }

    fn failed(&mut self, failure: String) {
        self.numbers.failed += 1;
        self.due = Some(Instant::now() + self.backoff.failed(fastrand::f64()));
        self.failure = Some(failure);
    }

    fn succeeded(&mut self) {
        self.numbers.succeeded += 1;
        self.backoff.succeeded();
        self.failure = None;
        self.settled = true;
        // What an unsettled veth lacks may be lost, or not made yet: nobody will tell which but the time.
        let unsettled = self.observed.as_ref().is_some_and(has_unsettled);
        let now = Instant::now();
        self.due = Some(match self.good_until {
            // Nobody else tells what came of our own changes.
            _ if self.stale => now + GATHER,
            Some(until) if !unsettled => until,
            _ => now + PLUMBING_LIMIT,
        });
    }
}

impl Control {
    /// One round, if it is due. Without our own node there is no wish, so nothing is done.
    pub(super) fn reconcile_if_due(&mut self) {
        if self.book.cluster().own.is_none() || self.reconciler.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.reconciler.due = None;
        self.publish_due = true;
        let begin = Instant::now();
        let result = self.reconcile();
        let is_large = self.book.cluster().peers.len() >= LARGE;
        self.reconciler.rests_until = is_large.then(|| Instant::now() + begin.elapsed() * REST);
        match result {
            Ok(()) => {
                if self.reconciler.failure.is_some() {
                    tracing::info!("kernel state is set again");
                }
                self.reconciler.succeeded();
            }
            Err(error) => {
                let failure = format!("{error:#}");
                if self.reconciler.failure.as_ref() != Some(&failure) {
                    tracing::error!(error = %failure, "cannot set the kernel state, trying again");
                }
                self.reconciler.failed(failure.clone());
                self.note_error(failure);
            }
        }
    }

    fn reconcile(&mut self) -> Result<()> {
        if self.reconciler.must_read() {
            self.observe().context("read the kernel state")?;
        }
        let path_mtus = self.believed_path_mtus();
        let Some(inputs) = self.inputs(&path_mtus) else { return Ok(()) };
        let have = inputs.actual;
        let want = desired(inputs);
        // What is known may be out of date until the first complete list.
        let want = if self.book.synced() { want } else { want.keeping(have) };
        let found = conflicts(&want, have);
        let ops = plan(&want, have);
        let is_as_set = |set: &Ruleset| have.table.as_ref().is_some_and(|table| table.same_shape(set));
        let rewritten = self.reconciler.table.as_ref().is_some_and(|set| !is_as_set(set));
        self.reconciler.conflicts = found;
        let applied = self.reconciler.apply(&ops);
        let ways = self.inputs(&path_mtus).map(direct).unwrap_or_default();
        self.open_uplinks(ways);
        if applied.is_ok() {
            self.reconciler.table = Some(want.table);
        }
        if rewritten {
            let note = "the nftables table inet overlayd was changed or deleted by somebody, and is put back";
            tracing::warn!("{note}");
            self.tell(Reason::EgressRewritten, note.to_owned());
        }
        self.tell_conflicts();
        applied
    }

    /// What the wish depends on, once our own node and the kernel are known.
    pub(super) fn inputs<'a>(&'a self, path_mtus: &'a BTreeMap<IpAddr, u32>) -> Option<Inputs<'a>> {
        Some(Inputs {
            config: &self.config,
            own: self.book.cluster().own.as_ref()?,
            cluster: self.book.cluster(),
            path_mtus,
            actual: self.reconciler.observed()?,
        })
    }

    pub(super) fn believed_path_mtus(&self) -> BTreeMap<IpAddr, u32> {
        self.path_mtus.iter().map(|(underlay, (mtu, _))| (*underlay, *mtu)).collect()
    }

    /// Reads the kernel and lets the lease book know.
    pub(super) fn observe(&mut self) -> Result<(), KernelError> {
        let now = self.epoch.elapsed();
        let actual = self.reconciler.read()?;
        if let Some(leases) = &mut self.leases {
            leases.observe(&actual.veths, &actual.routed_hosts, now);
        }
        Ok(())
    }

    /// Makes sure that the lease book knows the kernel as it is now.
    pub(super) fn observe_if_stale(&mut self) -> Result<(), KernelError> {
        if self.reconciler.stale { self.observe() } else { Ok(()) }
    }
}

impl Reconciler {
    /// Applies all it can: one stubborn object must not keep the others from their place.
    fn apply(&mut self, ops: &[Op]) -> Result<()> {
        let mut failures = Vec::new();
        for op in ops {
            match self.kernel.apply(op) {
                Ok(applied) => {
                    tracing::debug!(?op, "kernel changed");
                    self.stale |= !self.observed.as_mut().is_some_and(|have| have.take_in(op));
                    // What goes with the daemon is made by each.
                    match op {
                        Op::OpenUplinks(_) => self.uplink_refusal = None,
                        _ => self.numbers.changes += 1,
                    }
                    self.numbers.conntrack_deleted += applied.conntrack_deleted;
                }
                // A kernel without `nft_fwd_netdev`, say: super-packets are cut up then, and nothing else is amiss.
                Err(error) if matches!(op, Op::OpenUplinks(_)) => {
                    let refusal = error.to_string();
                    if self.uplink_refusal.as_ref() != Some(&refusal) {
                        tracing::info!(%refusal, "super-packets cannot leave whole");
                    }
                    self.uplink_refusal = Some(refusal);
                }
                Err(error) => {
                    self.stale = true;
                    failures.push(error.to_string());
                }
            }
        }
        anyhow::ensure!(failures.is_empty(), "{}", summary(&failures));
        Ok(())
    }
}

/// Whether there is a veth that the plugin may still be working on.
fn has_unsettled(actual: &Actual) -> bool {
    actual.veths.iter().any(|veth| veth.alias.is_some() && !actual.settled.contains(&veth.index))
}

/// The first failure, and how many more.
fn summary(failures: &[String]) -> String {
    match failures {
        [] => String::new(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}
