//! Kubernetes' own conformance specs of the network, all of them, against overlayd as the only network of a cluster.

mod images;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use tests::go;
use tests::kubernetes::{Cluster, Proxy};

/// How many specs of `[sig-network]` are part of conformance in the version of Kubernetes that is built here. A run that finds another
/// number has not run what it should.
const SPECS: usize = 47;

/// Runs Kubernetes' conformance specs of the network against overlayd.
#[derive(Debug, Parser)]
#[command(name = "conformance", version)]
struct Arguments {
    /// How kube-proxy makes Services.
    #[arg(long, value_enum, default_value_t = Mode::Nftables)]
    proxy: Mode,
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=8))]
    nodes: u8,
    /// How many specs at a time.
    #[arg(long, default_value_t = 4)]
    procs: u8,
    /// Only specs whose names match this regular expression; the result is then no conformance.
    #[arg(long)]
    focus: Option<String>,
    /// Where the suite's own reports go.
    #[arg(long, value_name = "DIR")]
    keep_reports: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Nftables,
    Iptables,
}

/// What came of one spec.
struct Spec {
    name: String,
    state: String,
    seconds: f64,
    why: String,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let suite = go::program("e2e.test")?;
    let ginkgo = go::program("ginkgo")?;
    let kubectl = go::program("kubectl")?;
    let proxy = match arguments.proxy {
        Mode::Nftables => Proxy::Nftables,
        Mode::Iptables => Proxy::Iptables,
    };
    let begin = Instant::now();
    let mut cluster =
        Cluster::builder().nodes(arguments.nodes.into()).proxy(proxy).deadline(Duration::from_secs(3600));
    for image in images::all()? {
        cluster = cluster.image(image);
    }
    let cluster = cluster.try_start()?;
    cluster.try_install()?;
    cluster.try_wait_nodes_ready()?;
    cluster.install_dns()?;
    eprintln!(
        "cluster of {} nodes, kube-proxy with {}: {:.0} s",
        arguments.nodes,
        proxy.name(),
        begin.elapsed().as_secs_f64()
    );

    let directory = match &arguments.keep_reports {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("overlayd-conformance-{}", std::process::id())),
    };
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let directory = directory.canonicalize()?;
    let focus = arguments.focus.as_deref().unwrap_or(r"\[sig-network\].*\[Conformance\]");
    let begin = Instant::now();
    let output = cluster
        .plane()
        .host()
        .command(&ginkgo.to_string_lossy())
        .args([
            format!("--procs={}", arguments.procs),
            format!("--focus={focus}"),
            "--timeout=50m".into(),
            "--no-color".into(),
            "--silence-skips".into(),
            format!("--output-dir={}", directory.display()),
            "--json-report=report.json".into(),
        ])
        .arg(suite.display())
        .arg("--")
        .args([
            "--provider=local".to_owned(),
            "--kubeconfig=/run/kubernetes/admin.kubeconfig".into(),
            format!("--kubectl-path={}", kubectl.display()),
            format!("--num-nodes={}", arguments.nodes),
            "--minStartupPods=0".into(),
            "--allowed-not-ready-nodes=0".into(),
        ])
        .env("HOME", "/run/kubernetes")
        .deadline(Duration::from_secs(3500))
        .try_output()?;
    let seconds = begin.elapsed().as_secs_f64();
    std::fs::write(directory.join("output.txt"), format!("{output}"))?;
    let report = directory.join("report.json");
    let text = std::fs::read_to_string(&report).with_context(|| {
        format!("the suite left no report: {}", tests::process::tail(&format!("{output}"), 40))
    })?;
    let specs = specs(&serde_json::from_str(&text).context("the suite's report")?);
    print(&specs);
    let passed = specs.iter().filter(|spec| spec.state == "passed").count();
    println!("\n{passed} of {} passed in {seconds:.0} s, kube-proxy with {}", specs.len(), proxy.name());
    if passed < specs.len() {
        eprintln!("{}", cluster.describe());
    }
    if arguments.keep_reports.is_none() {
        std::fs::remove_dir_all(&directory).context("remove the reports")?;
    }
    if arguments.focus.is_none() && specs.len() != SPECS {
        bail!("{} specs ran, not {SPECS}", specs.len());
    }
    Ok(passed == specs.len() && !specs.is_empty())
}

/// Those that were to run.
fn specs(report: &Value) -> Vec<Spec> {
    let all = report
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten());
    let ran = all.filter(|spec| spec["LeafNodeType"] == "It" && spec["State"] != "skipped");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut specs: Vec<Spec> = ran
        .map(|spec| {
            let parents = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(text);
            let words: Vec<String> = parents.chain([text(&spec["LeafNodeText"])]).collect();
            Spec {
                name: words.join(" "),
                state: text(&spec["State"]),
                seconds: spec["RunTime"].as_f64().unwrap_or_default() / 1e9,
                why: text(&spec["Failure"]["Message"]),
            }
        })
        .collect();
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    specs
}

fn print(specs: &[Spec]) {
    for Spec { name, state, seconds, why } in specs {
        let name = name.replace("[sig-network] ", "").replace(" [Conformance]", "");
        println!("{} {seconds:5.1} s  {name}", if state == "passed" { "passed" } else { "FAILED" });
        for line in why.lines().take(6) {
            println!("                  {line}");
        }
    }
}
