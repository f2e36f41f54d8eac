//! The main job, shown: nodes on this machine, pods by the real plugin, and what holds between them.

mod checks;
mod draw;
mod kubernetes;
mod matrix;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use report::Report;
use serde_json::json;
use tests::{Families, Lab};

/// Starts nodes and pods on this machine, in namespaces of their own, and shows that the overlay works.
#[derive(Debug, Parser)]
#[command(name = "cargo demo", version)]
struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    nodes: u8,
    /// How many pods on each node.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pods: u8,
    /// IPv6 too: dual-stack pods and underlay.
    #[arg(long)]
    ipv6: bool,
    /// On real Kubernetes: every node with containerd, kubelet and kube-proxy, overlayd installed by its manifest.
    #[arg(long, conflicts_with_all = ["ipv6", "pods"])]
    kubernetes: bool,
    /// One JSON document on standard output; progress goes to standard error.
    #[arg(long)]
    json: bool,
    /// Stay: a shell on node-1 when the checks are done.
    #[arg(long)]
    shell: bool,
    /// Writes the daemons' logs and a description of every node into this directory.
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

/// What is said before a shell.
const SHELL: &str = "A shell on node-1 (leave with exit; everything then goes away)";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic of the lab is a cross with its message, not a backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let begin = Instant::now();
    let mut report = Report::new(arguments.json);
    let result = run(&arguments, &mut report);
    if let Err(error) = &result {
        report.check("the demo runs to its end", false, format!("{error:#}"));
    }
    let (failures, all) = (report.failures(), report.checks.len());
    let seconds = begin.elapsed().as_secs_f64();
    if arguments.json {
        let document = json!({
            "ok": failures == 0,
            "version": env!("CARGO_PKG_VERSION"),
            "nodes": arguments.nodes,
            "pods_per_node": arguments.pods,
            "seconds": (seconds * 10.0).round() / 10.0,
            "checks": report.checks,
        });
        println!("{document:#}");
    }
    if failures == 0 {
        report.line(&format!("\n{} all {all} checks passed in {seconds:.1} s", report.mark(true)));
        ExitCode::SUCCESS
    } else {
        report.line(&format!("\n{} {failures} of {all} checks failed, {seconds:.1} s", report.mark(false)));
        for check in report.checks.iter().filter(|check| !check.ok) {
            report.line(&format!("    {}: {}", check.name, check.detail));
        }
        ExitCode::FAILURE
    }
}

fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    report.heading("Build");
    tests::binaries::Binaries::build()?;
    if arguments.kubernetes {
        return kubernetes::run(arguments, report);
    }
    let families = if arguments.ipv6 { Families::Dual } else { Families::V4 };
    report.heading(&format!("Start {} nodes with {} pods each", arguments.nodes, arguments.pods));
    // Long enough for somebody who looks around in the shell.
    let deadline = Duration::from_secs(if arguments.shell { 7 * 24 * 3600 } else { 300 });
    let begin = Instant::now();
    let lab = Lab::builder()
        .nodes(arguments.nodes.into())
        .pods(families)
        .underlay(families)
        .deadline(deadline)
        .try_start()?;
    report.check("lab", true, format!("namespaces, bridge, router: {} ms", begin.elapsed().as_millis()));
    let world = checks::World::start(&lab, arguments.pods.into(), report);
    if let Some(world) = &world {
        report.heading("Topology");
        for line in draw::topology(&lab, &world.statuses, &world.pods) {
            report.line(&line);
        }
        matrix::show(&world.matrix(), report);
        checks::path_mtu(world, report);
        checks::speed(world, report);
        checks::restart(world, report);
    }
    if let Some(directory) = &arguments.keep_logs {
        keep_logs(&lab, directory)?;
        report.line(&format!("\nlogs are in {}", directory.display()));
    } else if report.failures() > 0 {
        for (node, log) in lab.logs() {
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            eprintln!("\n--- end of the log of {node} (--keep-logs DIR keeps all)\n{}", tail.join("\n"));
        }
    }
    if arguments.shell {
        shell(&lab, world.as_ref(), report)?;
    }
    Ok(())
}

fn keep_logs(lab: &Lab, directory: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    for (node, log) in lab.logs() {
        std::fs::write(directory.join(format!("{node}.log")), log).context("write a log")?;
    }
    std::fs::write(directory.join("lab.txt"), lab.dump()).context("write the lab's description")
}

fn shell(lab: &Lab, world: Option<&checks::World>, report: &Report) -> Result<()> {
    report.heading(SHELL);
    report.line("  overlayd status              what the daemon says");
    report.line("  ip addr; ip route            the node's links and routes, if iproute2 is installed");
    for (_, pod) in world.iter().flat_map(|world| &world.pods).filter(|(node, _)| *node == 0) {
        let path = pod.result()["interfaces"][1]["sandbox"].as_str().unwrap_or_default().to_owned();
        report.line(&format!("  nsenter --net={path} ip addr      inside {}", pod.label()));
    }
    let binaries = tests::binaries::Binaries::build()?;
    let directory = binaries.overlayd().parent().context("binaries")?.to_owned();
    interact(&lab.node(1), &[&directory], &[("OVERLAYD_RUN_DIR", tests::node::RUN_DIR)])
}

/// A shell on a node, with these directories of programs first.
fn interact(node: &tests::Host, directories: &[&std::path::Path], variables: &[(&str, &str)]) -> Result<()> {
    // The terminal's interrupt key is for the shell, not for the demo.
    // SAFETY: ignoring a signal installs no handler code.
    unsafe { nix::sys::signal::signal(nix::sys::signal::SIGINT, nix::sys::signal::SigHandler::SigIgn) }
        .context("ignore SIGINT")?;
    let program = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
    let mut path: String = directories.iter().map(|directory| format!("{}:", directory.display())).collect();
    path += &std::env::var("PATH").unwrap_or_default();
    let mut command = node.command(&program).env("PATH", path);
    for (name, value) in variables {
        command = command.env(name, value);
    }
    command.interact()?;
    Ok(())
}
