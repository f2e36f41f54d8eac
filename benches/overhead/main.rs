//! `cargo overhead`: what encapsulation costs, beside the alternatives, on this machine.
//!
//! All contenders stand in one lab at the same time and are measured in turns: each measure of each round goes once through all of
//! them, in an order drawn by lot, so that whatever the machine does meanwhile hits them alike. Figures are medians of the rounds with
//! their range; ratios are formed within a round. A round in which programs outside the lab used the processor is marked.

mod adds;
mod compare;
mod flannel;
mod gates;
mod html;
mod machine;
mod measure;
mod one_packet;
mod report;
mod rules;
mod sanity;
mod stats;
mod table;
mod wireguard;
mod world;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum as _};

use measure::{Figure, Measure, Taken};
use report::{Cell, Metric, Missing, Report, World};
use world::{Cast, FLANNEL, Stage, WIREGUARD, WorldKind};

#[derive(Debug, Parser)]
#[command(
    about = "Measures what the overlay costs beside the kernel's vxlan and others, on namespaces of this machine"
)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    tool: Option<Tool>,
    /// A minute instead of half an hour: fewer measures, worlds and rounds
    #[arg(long)]
    quick: bool,
    /// Underlays to measure on (default: all; l1 and l2 with --quick)
    #[arg(long, value_delimiter = ',')]
    worlds: Vec<WorldKind>,
    /// Measures to take, by id or its first words: tcp, tcp_4, udp_64, paced, paced_200k, rtt, connections, idle
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Contenders besides kernel-vxlan: plain, overlayd, overlayd-other, one-packet, flannel-udp, wireguard-go
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
    /// Rounds (default 5; 2 with --quick)
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds that each measurement counts (default 1; 0.3 with --quick)
    #[arg(long)]
    seconds: Option<f64>,
    /// Seed of the order of contenders
    #[arg(long)]
    seed: Option<u64>,
    /// Where report.json and report.html go
    #[arg(long, default_value = "target/overhead")]
    out: PathBuf,
    /// An earlier report.json: prints what became better or worse beyond noise; fails if something became worse
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Leave the egress rules of overlayd and the connection tracking that they bring away from the nodes that it does not run on
    #[arg(long)]
    bare: bool,
    /// Another build of overlayd to measure beside this one
    #[arg(long)]
    against: Option<PathBuf>,
    /// A flag for overlayd, may be repeated
    #[arg(long, allow_hyphen_values = true)]
    flag: Vec<String>,
    /// A flag for the other build
    #[arg(long, allow_hyphen_values = true)]
    against_flag: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// The one-packet tunnel; started by the bench
    #[command(hide = true)]
    OnePacket(one_packet::OnePacket),
    /// Configures wireguard-go; started by the bench
    #[command(hide = true)]
    Wireguard(wireguard::Configure),
    /// Lays the egress rules on a node without overlayd; started by the bench
    #[command(hide = true)]
    Rules(rules::Rules),
    /// Writes what flannel reads; started by the bench
    #[command(hide = true)]
    EtcdPut(flannel::Put),
    /// Prints and draws an earlier report again
    Show {
        /// The report.json
        report: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.tool {
        Some(Tool::OnePacket(options)) => one_packet::run(options).map(|()| true),
        Some(Tool::Wireguard(options)) => wireguard::configure(options).map(|()| true),
        Some(Tool::Rules(options)) => rules::run(options).map(|()| true),
        Some(Tool::EtcdPut(options)) => flannel::put(options).map(|()| true),
        Some(Tool::Show { report }) => show(report).map(|()| true),
        None => run(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("overhead: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(path: &std::path::Path) -> Result<()> {
    let report = Report::load(path)?;
    print!("{}", table::draw(&report));
    let page = path.with_extension("html");
    std::fs::write(&page, html::page(&report)).with_context(|| format!("write {}", page.display()))
}

/// False if something became worse than in the report that was to be compared with, or if a quick run shows that something is broken.
fn run(arguments: &Arguments) -> Result<bool> {
    let earlier = arguments.compare.as_deref().map(Report::load).transpose()?;
    tests::binaries::Binaries::build()?;
    let begin = Instant::now();
    let plan = Plan::of(arguments)?;
    let mut report = Report {
        schema: report::SCHEMA.to_owned(),
        command: std::env::args().skip(1).fold("cargo overhead".to_owned(), |line, word| line + " " + &word),
        started: machine::seconds_since_1970(),
        seconds: 0.0,
        seed: plan.seed,
        rounds: plan.rounds,
        window: plan.window.as_secs_f64(),
        machine: machine::describe(),
        contenders: plan.cast.contenders(),
        missing: Vec::new(),
        worlds: Vec::new(),
    };
    for (at, (kind, measures)) in plan.worlds.iter().enumerate() {
        let progress = Progress::new(format!("{} ({}/{})", kind.id(), at + 1, plan.worlds.len()));
        report.worlds.push(plan.run(*kind, measures, &progress)?);
    }
    report.seconds = begin.elapsed().as_secs_f64();
    report.settle();
    report.missing = missing(&report, &plan.cast);
    print!("{}", table::draw(&report));
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("make {}", arguments.out.display()))?;
    let (document, page) = (arguments.out.join("report.json"), arguments.out.join("report.html"));
    let text = serde_json::to_string_pretty(&report)?;
    std::fs::write(&document, text).with_context(|| format!("write {}", document.display()))?;
    std::fs::write(&page, html::page(&report)).with_context(|| format!("write {}", page.display()))?;
    println!("\n{}\n{}", document.display(), page.display());
    let faults = if arguments.quick { sanity::faults(&report) } else { Vec::new() };
    for fault in &faults {
        println!("broken: {fault}");
    }
    let Some(earlier) = earlier else { return Ok(faults.is_empty()) };
    let comparison = compare::compare(&earlier, &report);
    print!("{}", compare::draw(&comparison));
    Ok(faults.is_empty() && comparison.iter().all(|change| !change.is_worse()))
}

fn missing(report: &Report, cast: &Cast) -> Vec<Missing> {
    let absent = [(FLANNEL, cast.flannel.as_ref().err()), (WIREGUARD, cast.wireguard.as_ref().err())];
    let of = |(name, reason): (&str, Option<&String>)| {
        Some(Missing { name: name.into(), reason: reason?.clone() })
    };
    let mut missing: Vec<Missing> = absent.into_iter().filter_map(of).collect();
    let v6: Vec<&str> = report.worlds.iter().map(|world| world.id.as_str()).filter(|id| !is_v4(id)).collect();
    if cast.flannel.is_ok() && !v6.is_empty() {
        let name = format!("{FLANNEL} in {}", v6.join(" and "));
        missing.push(Missing { name, reason: "it carries IPv4 in IPv4 only".into() });
    }
    let mut metrics = report.worlds.iter().flat_map(|world| &world.metrics);
    let is_timed = |id: &str| report.worlds.iter().any(|world| world.metric(id).is_some());
    if is_timed(adds::OURS)
        && !is_timed(adds::RATIO)
        && let Err(why) = tests::go::cni_plugins()
    {
        missing.push(Missing { name: "CNI ADD of ptp with host-local".into(), reason: format!("{why:#}") });
    }
    if !metrics.any(|metric| metric.id.ends_with(".syscalls")) {
        let reason = "the kernel does not let us count them: no tracefs, no raw_syscalls tracepoint, or no perf events";
        missing.push(Missing { name: "system calls".into(), reason: reason.into() });
    }
    missing
}

fn is_v4(world: &str) -> bool {
    WorldKind::value_variants().iter().any(|kind| kind.id() == world && kind.is_v4())
}

/// What a contender needs that somebody else made, or why it takes no part.
fn of_others<T>(
    arguments: &Arguments,
    contender: &str,
    find: impl FnOnce() -> Result<T>,
) -> Result<T, String> {
    let named = arguments.contenders.iter().any(|name| name == contender);
    if !named && (arguments.quick || !arguments.contenders.is_empty()) {
        return Err("not asked for".to_owned());
    }
    find().map_err(|why| format!("{why:#}"))
}

/// What to do.
#[derive(Debug)]
struct Plan {
    worlds: Vec<(WorldKind, Vec<Measure>)>,
    rounds: usize,
    window: Duration,
    seed: u64,
    cast: Cast,
    /// Pods added to time the plugin.
    adds: usize,
}

impl Plan {
    fn of(arguments: &Arguments) -> Result<Self> {
        use WorldKind::{Inner6, Jumbo, L1, L2, Underlay6};
        let all = if arguments.quick { vec![L1, L2] } else { vec![L1, L2, Jumbo, Inner6, Underlay6] };
        let kinds = if arguments.worlds.is_empty() { &all } else { &arguments.worlds };
        let wanted = |measure: &Measure| {
            arguments.only.is_empty()
                || arguments.only.iter().any(|only| measure.id().starts_with(only.as_str()))
        };
        let measures = |kind: WorldKind| -> Vec<Measure> {
            let all = match kind {
                // What is named is taken everywhere.
                _ if !arguments.only.is_empty() => measure::all(),
                _ if arguments.quick => measure::quick(),
                L1 | L2 => measure::all(),
                _ => measure::short(),
            };
            all.into_iter().filter(wanted).collect()
        };
        let worlds: Vec<_> = kinds.iter().map(|kind| (*kind, measures(*kind))).collect();
        if worlds.iter().all(|(_, measures)| measures.is_empty()) {
            bail!("no measure begins with {}", arguments.only.join(" or "));
        }
        let against = arguments.against.clone();
        let against =
            against.map(|path| path.canonicalize().with_context(|| format!("find {}", path.display())));
        Ok(Self {
            worlds,
            rounds: arguments.rounds.unwrap_or(if arguments.quick { 2 } else { 5 }).max(1),
            window: Duration::from_secs_f64(arguments.seconds.unwrap_or(if arguments.quick {
                0.3
            } else {
                1.0
            })),
            seed: arguments.seed.unwrap_or_else(machine::seconds_since_1970),
            cast: Cast {
                wireguard: of_others(arguments, WIREGUARD, || tests::go::program("wireguard")),
                flannel: of_others(arguments, FLANNEL, flannel::Programs::find),
                only: arguments.contenders.clone(),
                bare: arguments.bare,
                against: against.transpose()?,
                flags: arguments.flag.clone(),
                against_flags: arguments.against_flag.clone(),
            },
            adds: if arguments.quick { 10 } else { 50 },
        })
    }

    fn run(&self, kind: WorldKind, measures: &[Measure], progress: &Progress) -> Result<World> {
        progress.show("building");
        let stage = Stage::build(kind, &self.cast)?;
        let mut gathered = Gathered::default();
        let mut lots = fastrand::Rng::with_seed(self.seed);
        for round in 0..self.rounds {
            for measure in measures {
                let mut order: Vec<_> = stage.ways.iter().collect();
                lots.shuffle(&mut order);
                for way in order {
                    let name =
                        format!("round {}/{}  {:<14} {}", round + 1, self.rounds, measure.id(), way.id);
                    progress.show(&name);
                    let others = machine::Others::watch();
                    let taken = measure.take(way, self.window);
                    let steal = taken.as_ref().map_or(0.0, |taken| taken.steal);
                    let disturbed = others.disturbed(self.window.as_secs_f64(), steal);
                    match taken {
                        Ok(taken) => gathered.keep(&way.id, round, taken, disturbed),
                        // Noted as a hole in the report; the others go on.
                        Err(error) => progress.note(&format!("{} {}: {error:#}", measure.id(), way.id)),
                    }
                }
            }
        }
        for measure in measures.iter().filter(|measure| measure.counts_syscalls()) {
            for way in stage.ways.iter().filter(|way| !way.carriers.is_empty()) {
                progress.show(&format!("system calls  {:<14} {}", measure.id(), way.id));
                for figure in measure.count_syscalls(way, self.window)? {
                    gathered.keep_figure(&way.id, 0, figure, false);
                }
            }
        }
        if self.cast.contenders().iter().any(|contender| contender.id == "overlayd") {
            progress.show("CNI ADD");
            gathered.metrics.extend(adds::time(&stage.lab.node(1), self.adds)?);
            let drops = stage.lab.nodes().iter().take(2).map(|node| node.status().drops);
            let counted = drops.flatten().filter(|(_, count)| *count > 0);
            for (reason, count) in counted {
                progress.note(&format!("overlayd dropped {count}: {reason}"));
            }
        }
        progress.clear();
        let distributions = gathered.distributions();
        Ok(World {
            id: kind.id().to_owned(),
            title: kind.title().to_owned(),
            uplink: kind.offloads().features().into_iter().collect(),
            metrics: gathered.metrics,
            distributions,
        })
    }
}

/// What the rounds of one world have brought so far.
#[derive(Debug, Default)]
struct Gathered {
    metrics: Vec<Metric>,
    quantiles: BTreeMap<String, BTreeMap<String, Vec<Vec<f64>>>>,
}

impl Gathered {
    fn keep(&mut self, contender: &str, round: usize, taken: Taken, disturbed: bool) {
        if let (Some(quantiles), Some(figure)) = (taken.quantiles_us, taken.figures.first()) {
            let of = self.quantiles.entry(figure.id.clone()).or_default();
            of.entry(contender.to_owned()).or_default().push(quantiles);
        }
        for figure in taken.figures {
            self.keep_figure(contender, round, figure, disturbed);
        }
    }

    fn keep_figure(&mut self, contender: &str, round: usize, figure: Figure, disturbed: bool) {
        let at = self.metrics.iter().position(|metric| metric.id == figure.id).unwrap_or_else(|| {
            self.metrics.push(Metric {
                id: figure.id,
                title: figure.title,
                unit: figure.unit.to_owned(),
                better: figure.better,
                cells: BTreeMap::new(),
            });
            self.metrics.len() - 1
        });
        let cell: &mut Cell = self.metrics[at].cells.entry(contender.to_owned()).or_default();
        // Rounds that failed leave holes.
        cell.values.resize(round, None);
        cell.disturbed.resize(round, false);
        cell.values.push(Some(figure.value));
        cell.disturbed.push(disturbed);
    }

    fn distributions(&self) -> BTreeMap<String, BTreeMap<String, Vec<f64>>> {
        let median = |rounds: &Vec<Vec<f64>>| {
            let points = (0..tests::load::QUANTILES).filter_map(|point| {
                let values = rounds.iter().filter_map(|round| round.get(point).copied());
                stats::Spread::of(values).map(|spread| spread.median)
            });
            points.collect::<Vec<f64>>()
        };
        let of_all = |contenders: &BTreeMap<String, Vec<Vec<f64>>>| {
            contenders.iter().map(|(contender, rounds)| (contender.clone(), median(rounds))).collect()
        };
        self.quantiles.iter().map(|(metric, contenders)| (metric.clone(), of_all(contenders))).collect()
    }
}

/// One line on the terminal that says what goes on; lines of their own where there is no terminal.
#[derive(Debug)]
struct Progress {
    world: String,
    terminal: bool,
}

impl Progress {
    fn new(world: String) -> Self {
        Self { world, terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, what: &str) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K{}  {what}", self.world);
        } else {
            eprintln!("{}  {what}", self.world);
        }
    }

    fn note(&self, what: &str) {
        self.clear();
        eprintln!("{}  {what}", self.world);
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
