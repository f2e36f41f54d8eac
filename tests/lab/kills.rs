//! Lease laws under fire: plugins and daemons that are killed at random moments, and what must hold all the same.
//!
//! Several hands work at once as a runtime does. Each adds and deletes containers and kills the plugin inside; one kills
//! the daemon. What follows a kill is chance too: a DEL, a DEL and another ADD of the same container, or a namespace
//! that goes without a word, as when the machine's power fails or the runtime's state is wiped.
//!
//! At every moment: no address that a living container holds is given to another. At the end, without any call
//! of GC: links, routes and leases are those of the living containers, all of which answer and pass CHECK.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use serde_json::Value;

use crate::{Cni, Node, Output};

/// Work at a time, besides the hand that kills the daemon.
const HANDS: u64 = 4;

/// One kill in so many is of the daemon.
const DAEMON_SHARE: u32 = 20;

/// Containers that one hand lets live, as witnesses.
const WITNESSES: usize = 4;

/// How long the last leases may take to end: allocations in flight are held for 60 s, so that a plugin that is slow
/// does not lose its address.
const SETTLING: Duration = Duration::from_secs(90);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kills in all.
    pub kills: u32,
    /// Where chance begins. The order of events also depends on the machine.
    pub seed: u64,
    /// Whether the runtime comes back at the end and deletes what it never deleted; otherwise the leases must end by
    /// themselves.
    pub runtime_returns: bool,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Figures {
    /// Plugins killed inside ADD.
    pub in_add: AtomicU32,
    /// Plugins killed inside DEL.
    pub in_del: AtomicU32,
    /// Daemons killed.
    pub daemons: AtomicU32,
    /// Kills that came after the plugin's end; not counted as kills.
    pub late: AtomicU32,
    /// ADDs that succeeded.
    pub added: AtomicU32,
    /// ADDs refused because the daemon was away (code 11).
    pub refused: AtomicU32,
    /// DELs that succeeded.
    pub deleted: AtomicU32,
    /// Namespaces that went without DEL.
    pub abandoned: AtomicU32,
}

impl Figures {
    /// Kills of all kinds.
    #[must_use]
    pub fn kills(&self) -> u32 {
        [&self.in_add, &self.in_del, &self.daemons].map(read).iter().sum()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { in_add, in_del, daemons, late, added, refused, deleted, abandoned } = self;
        let [in_add, in_del, daemons, late] = [in_add, in_del, daemons, late].map(read);
        let [added, refused, deleted, abandoned] = [added, refused, deleted, abandoned].map(read);
        write!(
            f,
            "{} kills: {in_add} inside ADD, {in_del} inside DEL, {daemons} of the daemon ({late} more came too late); \
             {added} ADDs succeeded, {refused} were refused with code 11; {deleted} DELs succeeded; \
             {abandoned} namespaces went without DEL",
            self.kills()
        )
    }
}

fn read(counter: &AtomicU32) -> u32 {
    counter.load(Ordering::Relaxed)
}

fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Carries out a plan on a node whose daemon runs. `progress` hears the number of kills now and then.
///
/// # Errors
/// Says which law was broken, and by whom.
pub fn run(node: &Node, plan: Plan, progress: impl Fn(u32) + Sync) -> Result<Figures> {
    let figures = Figures::default();
    let field = Field { node, plan, figures: &figures, living: Mutex::default(), broken: Mutex::default() };
    let crews: Vec<Crew> = std::thread::scope(|scope| {
        let daemon = scope.spawn(|| field.kill_daemons());
        let hands: Vec<_> = (0..HANDS)
            .map(|number| {
                let (field, progress) = (&field, &progress);
                scope.spawn(move || field.work(number, progress))
            })
            .collect();
        let crews = hands.into_iter().map(|hand| joined(hand.join())).collect();
        joined(daemon.join());
        crews
    });
    if let Some(law) = field.broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
        bail!("seed {}: {law} ({figures})", plan.seed);
    }
    let witnesses: Vec<Witness> = crews.into_iter().flat_map(|crew| deal(crew, plan)).collect();
    settle(node, &witnesses).with_context(|| format!("seed {}: at the end ({figures})", plan.seed))?;
    Ok(figures)
}

/// What the runtime does at the end about those that it never deleted.
fn deal(crew: Crew, plan: Plan) -> Vec<Witness> {
    if plan.runtime_returns {
        for mut cni in crew.abandoned {
            cni.netns = String::new();
            // Judged by what is left afterwards.
            let _ = cni.try_call("DEL");
        }
    }
    crew.witnesses
}

fn joined<T>(outcome: std::thread::Result<T>) -> T {
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A container that lives, with its address.
struct Witness {
    cni: Cni,
    address: IpAddr,
}

/// What one hand leaves.
#[derive(Default)]
struct Crew {
    witnesses: Vec<Witness>,
    abandoned: Vec<Cni>,
}

struct Field<'a> {
    node: &'a Node,
    plan: Plan,
    figures: &'a Figures,
    /// Who was told to have which address and was not told otherwise.
    living: Mutex<BTreeMap<IpAddr, String>>,
    /// The first law that was broken.
    broken: Mutex<Option<String>>,
}

impl Field<'_> {
    fn goes_on(&self) -> bool {
        self.figures.kills() < self.plan.kills && self.locked_broken().is_none()
    }

    fn locked_broken(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_off(&self, error: &anyhow::Error) {
        self.locked_broken().get_or_insert_with(|| format!("{error:#}"));
    }

    /// Kills the daemon again and again, from before its first line to well in service.
    fn kill_daemons(&self) {
        let mut dice = Rng::with_seed(self.plan.seed ^ u64::MAX);
        let daemons = self.plan.kills / DAEMON_SHARE;
        while self.goes_on() && read(&self.figures.daemons) < daemons {
            // In step with the others, so that it is killed to the end.
            if read(&self.figures.daemons) * DAEMON_SHARE > self.figures.kills() {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let life = if dice.bool() { 100 } else { 1500 };
            std::thread::sleep(Duration::from_millis(dice.u64(0..life)));
            self.node.kill_daemon();
            count(&self.figures.daemons);
            self.node.launch_daemon(&[]);
        }
        self.node.wait_ready();
    }

    fn work(&self, number: u64, progress: &(impl Fn(u32) + Sync)) -> Crew {
        let mut hand = Hand {
            field: self,
            dice: Rng::with_seed(self.plan.seed.wrapping_mul(HANDS).wrapping_add(number)),
            reach_add: Duration::from_millis(20),
            reach_del: Duration::from_millis(10),
            crew: Crew::default(),
        };
        while self.goes_on() {
            if let Err(error) = hand.round() {
                self.break_off(&error);
            }
            if number == 0 {
                progress(self.figures.kills());
            }
        }
        hand.crew
    }

    /// Notes what an ADD gave.
    fn born(&self, cni: &Cni, result: &Value) -> Result<IpAddr> {
        let text = result["ips"][0]["address"].as_str().and_then(|net| net.split('/').next());
        let address: IpAddr = text.and_then(|text| text.parse().ok()).context("a result without address")?;
        ensure!(
            self.node.pod_cidrs().iter().all(|cidr| {
                !cidr.contains(&address) || (address != cidr.network() && address != cidr.broadcast())
            }),
            "{address} was given, which is the network's or broadcast"
        );
        let mut living = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = living.insert(address, cni.container.clone()) {
            bail!("{address} of {owner}, which lives, was given to {}", cni.container);
        }
        count(&self.figures.added);
        Ok(address)
    }

    /// From here on the address may be another's.
    fn dying(&self, cni: &Cni) {
        let mut living = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        living.retain(|_, owner| *owner != cni.container);
    }
}

struct Hand<'a> {
    field: &'a Field<'a>,
    dice: Rng,
    /// Within this time of their start most ADDs and DELs are still at work: it follows the machine's load.
    reach_add: Duration,
    reach_del: Duration,
    crew: Crew,
}

impl Hand<'_> {
    fn round(&mut self) -> Result<()> {
        let mut cni = Cni::prepare(self.field.node, "container")?;
        match self.dice.u32(0..10) {
            0 => {
                if let Some(address) = self.add(&mut cni)? {
                    self.let_live(cni, address)?;
                }
                Ok(())
            }
            1 | 2 => {
                if self.add(&mut cni)?.is_some() {
                    self.kill_inside_del(&cni)?;
                }
                self.delete(&cni)
            }
            _ => self.kill_inside_add(cni),
        }
    }

    fn add(&mut self, cni: &mut Cni) -> Result<Option<IpAddr>> {
        let output = cni.try_call("ADD")?;
        if output.success() {
            let result = serde_json::from_str(&output.stdout).context("the result of ADD")?;
            let address = self.field.born(cni, &result)?;
            cni.previous = Some(result);
            return Ok(Some(address));
        }
        let error: Value = serde_json::from_str(&output.stdout).with_context(|| format!("ADD: {output}"))?;
        ensure!(error["code"] == 11, "ADD was refused for another cause than an absent daemon: {output}");
        ensure!(self.field.node.observe().link(&cni.host_link()).is_none(), "a refused ADD leaves its link");
        count(&self.field.figures.refused);
        Ok(None)
    }

    /// Keeps a container, or takes leave of an earlier one.
    fn let_live(&mut self, cni: Cni, address: IpAddr) -> Result<()> {
        let ping = self.field.node.ping(address, 56, 1);
        ensure!(ping.answered == 1, "{address} does not answer right after ADD");
        self.crew.witnesses.push(Witness { cni, address });
        if self.crew.witnesses.len() > WITNESSES {
            let one = self.dice.usize(0..self.crew.witnesses.len());
            let Witness { cni, address } = self.crew.witnesses.swap_remove(one);
            let ping = self.field.node.ping(address, 56, 1);
            ensure!(ping.answered == 1, "{address} does not answer after the kills of others");
            self.delete(&cni)?;
        }
        Ok(())
    }

    /// DEL, which must succeed and leave no link, then the namespace goes.
    fn delete(&mut self, cni: &Cni) -> Result<()> {
        self.field.dying(cni);
        let output = cni.try_call("DEL")?;
        ensure!(output.success() && output.stdout.is_empty(), "DEL failed: {output}");
        ensure!(self.field.node.observe().link(&cni.host_link()).is_none(), "DEL leaves {}", cni.host_link());
        count(&self.field.figures.deleted);
        cni.remove_netns();
        Ok(())
    }

    fn kill_inside_del(&mut self, cni: &Cni) -> Result<()> {
        self.field.dying(cni);
        let (inside, _) = self.kill(cni, "DEL", self.reach_del)?;
        self.reach_del = adapted(self.reach_del, inside);
        count(if inside { &self.field.figures.in_del } else { &self.field.figures.late });
        Ok(())
    }

    fn kill_inside_add(&mut self, mut cni: Cni) -> Result<()> {
        let (inside, output) = self.kill(&cni, "ADD", self.reach_add)?;
        self.reach_add = adapted(self.reach_add, inside);
        count(if inside { &self.field.figures.in_add } else { &self.field.figures.late });
        // A result may have been written before the kill: the runtime that reads it has a container.
        if let Ok(result) = serde_json::from_str::<Value>(&output.stdout)
            && result["code"].is_null()
            && !inside
        {
            self.field.born(&cni, &result)?;
        }
        match self.dice.u32(0..4) {
            0 => {
                self.field.dying(&cni);
                cni.remove_netns();
                count(&self.field.figures.abandoned);
                self.crew.abandoned.push(cni);
                Ok(())
            }
            1 => {
                self.field.dying(&cni);
                let output = cni.try_call("DEL")?;
                ensure!(output.success(), "DEL failed: {output}");
                self.add(&mut cni)?;
                self.delete(&cni)
            }
            _ => self.delete(&cni),
        }
    }

    /// Starts a verb and kills it within `reach`; whether it was still at work.
    fn kill(&mut self, cni: &Cni, verb: &str, reach: Duration) -> Result<(bool, Output)> {
        let process = cni.spawn(verb);
        std::thread::sleep(reach.mul_f64(self.dice.f64()));
        process.signal(libc::SIGKILL);
        let output = process.try_finish(Duration::from_secs(20))?;
        Ok((output.exit.signal == Some(libc::SIGKILL), output))
    }
}

fn adapted(reach: Duration, inside: bool) -> Duration {
    reach.mul_f64(if inside { 1.05 } else { 0.9 }).clamp(Duration::from_millis(1), Duration::from_secs(2))
}

/// That exactly the witnesses are left.
fn settle(node: &Node, witnesses: &[Witness]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let outcome = is_settled(node, witnesses);
        if outcome.is_ok() || begin.elapsed() > SETTLING {
            outcome?;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for Witness { cni, address } in witnesses {
        ensure!(node.ping(*address, 56, 1).answered == 1, "{address} does not answer");
        let output = cni.try_call("CHECK")?;
        ensure!(output.success(), "CHECK of {address}: {output}");
    }
    Ok(())
}

fn is_settled(node: &Node, witnesses: &[Witness]) -> Result<()> {
    let seen = node.observe();
    let mut links = seen.links_named("ovp");
    let mut expected: Vec<String> = witnesses.iter().map(|witness| witness.cni.host_link()).collect();
    links.sort_unstable();
    expected.sort_unstable();
    ensure!(links == expected, "links {links:?}, of witnesses {expected:?}");
    let mut held: Vec<String> = witnesses.iter().map(|witness| witness.address.to_string()).collect();
    held.sort_unstable();
    let routed = seen.routes.iter().filter(|route| {
        let is_pods = node.pod_cidrs().iter().any(|cidr| cidr.contains(&route.destination.addr()));
        is_pods && route.link.as_deref().is_some_and(|link| link.starts_with("ovp"))
    });
    let mut routed: Vec<String> = routed.map(|route| route.destination.addr().to_string()).collect();
    routed.sort_unstable();
    ensure!(routed == held, "routes {routed:?}, of witnesses {held:?}");
    let status = node.try_status()?;
    ensure!(status.ready && status.conflicts.is_empty(), "{:?}", status.conflicts);
    let mut leased: Vec<String> = status.leases.into_iter().flat_map(|lease| lease.addresses).collect();
    leased.sort_unstable();
    ensure!(leased == held, "leases {leased:?}, of witnesses {held:?}");
    Ok(())
}
