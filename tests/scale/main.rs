//! What thousands of Nodes cost one daemon: `cargo run --release -p tests --bin scale -- --nodes 5000`.
//!
//! A real API server holds the Nodes; one daemon in the lab follows them. Printed are the time until all are peers, the time from
//! the news of a change to the datapath's new table, memory, CPU at rest and under changes, and requests to the server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use overlayd::core::status::Status;
use tests::kubernetes::ControlPlane;
use tests::{Families, Lab, Node, eventually};

#[derive(Debug, Parser)]
struct Arguments {
    /// How many other nodes there are.
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// Changes per second.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// How long each part lasts.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
}

/// The whole of it.
const DEADLINE: Duration = Duration::from_secs(900);

/// Until so many objects are made and read on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let Arguments { nodes, rate, seconds } = Arguments::parse();
    let lab =
        Lab::builder().nodes(1).pods(Families::Dual).underlay(Families::Dual).deadline(DEADLINE).start();
    let plane = ControlPlane::builder(&lab).without_controllers().start();
    let node = lab.node(1);
    plane.create_node(&node.manifest());
    let door = plane.host().api_proxy(&plane.kubeconfig("admin"));
    let begin = Instant::now();
    door.fill(nodes);
    println!("{nodes} Nodes made in {:.1} s", begin.elapsed().as_secs_f64());

    node.use_kubeconfig(&plane.kubeconfig("admin"));
    let begin = Instant::now();
    node.launch_daemon(&[]);
    eventually("all Nodes are peers", PATIENCE, || peers(&node) == nodes);
    println!(
        "from the daemon's start to {nodes} peers: {:.2} s, the list of {} pages included",
        begin.elapsed().as_secs_f64(),
        nodes.div_ceil(250)
    );
    let first = node.status().table;
    println!("from the end of the list to the datapath's table: {:.0} ms", first.slowest_us as f64 / 1000.0);
    let routes = nodes * 2;
    eventually("all routes are there", PATIENCE, || node.status().reconcile.changes as usize >= routes);
    println!("and to {routes} routes to peers: {:.2} s", begin.elapsed().as_secs_f64());
    println!("memory: {} (most: {})", memory(&node, "VmRSS:")?, memory(&node, "VmHWM:")?);

    std::thread::sleep(Duration::from_secs(10));
    let pause = Duration::from_secs(seconds.into());
    let idle = cpu(&node, || std::thread::sleep(pause))?;
    println!("CPU at rest: {:.2} %", idle * 100.0);
    let before = node.status();
    let noise = cpu(&node, || door.churn(nodes, rate, seconds, false))?;
    let after = node.status();
    println!(
        "CPU under {rate} changes/s that do not matter: {:.2} %, new tables: {}, kernel changes: {}",
        noise * 100.0,
        after.table.swaps - before.table.swaps,
        after.reconcile.changes - before.reconcile.changes
    );
    let before = node.status();
    let busy = cpu(&node, || door.churn(nodes, rate, seconds, true))?;
    std::thread::sleep(Duration::from_secs(2));
    let after = node.status();
    println!(
        "CPU under {rate} changes/s that matter: {:.2} %; news to table: {}",
        busy * 100.0,
        news(&before, &after)
    );
    println!("memory: {} (most: {})", memory(&node, "VmRSS:")?, memory(&node, "VmHWM:")?);
    Ok(())
}

fn peers(node: &Node) -> usize {
    node.try_status().map_or(0, |status| status.peers.len())
}

fn news(before: &Status, after: &Status) -> String {
    let count = after.table.news - before.table.news;
    let mean = (after.table.sum_us - before.table.sum_us) as f64 / count.max(1) as f64 / 1000.0;
    format!("{count} times, mean {mean:.2} ms, last {:.2} ms", after.table.last_us as f64 / 1000.0)
}

fn memory(node: &Node, field: &str) -> Result<String> {
    let text = node.read_file(&format!("/proc/{}/status", node.status().pid));
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(format!("{:.1} MiB", kib / 1024.0))
}

/// The share of one CPU that the daemon takes meanwhile.
fn cpu(node: &Node, work: impl FnOnce()) -> Result<f64> {
    let path = format!("/proc/{}/stat", node.status().pid);
    let ticks = || -> Result<f64> {
        let text = node.read_file(&path);
        let (_, fields) = text.rsplit_once(") ").context("no end of the name")?;
        let field = |at: usize| {
            fields.split(' ').nth(at).and_then(|text| text.parse::<f64>().ok()).context("a number")
        };
        // Fields 14 and 15 of proc(5), counted from 1; the first two are cut off.
        Ok(field(11)? + field(12)?)
    };
    let (before, begin) = (ticks()?, Instant::now());
    work();
    // USER_HZ is 100 on Linux.
    Ok((ticks()? - before) / 100.0 / begin.elapsed().as_secs_f64())
}
