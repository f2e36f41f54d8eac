//! Builds other people's programs that tests run, from their pinned Go modules, and says how long each took: what CI does before
//! the tests, whose deadlines do not wait for compilers.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tests::{go, runtime};

/// Builds the programs of other people that tests run, from their Go modules.
#[derive(Debug, Parser)]
#[command(name = "components", version)]
struct Arguments {
    /// Which ones; all that `cargo test` and `cargo demo --kubernetes` use if none is named.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(go::names()))]
    names: Vec<String>,
}

/// Built only where the conformance suite runs: they take longest.
const ON_DEMAND: [&str; 3] = ["coredns", "e2e.test", "ginkgo"];

fn main() -> ExitCode {
    match run(Arguments::parse().names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("components: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut names: Vec<String>) -> Result<()> {
    if names.is_empty() {
        println!(
            "{:24} from Debian's packages       {}",
            "containerd 1.6",
            runtime::debian_programs()?.display()
        );
        names.extend(go::names().filter(|name| !ON_DEMAND.contains(name)).map(str::to_owned));
    }
    for name in names {
        let (path, seconds) = go::fetch(&name)?;
        let size = std::fs::metadata(&path)?.len() / 1_000_000;
        let how = seconds.map_or("was there".to_owned(), |seconds| format!("built in {seconds:.0} s"));
        println!("{name:24} {how:16} {size:4} MB  {}", path.display());
    }
    Ok(())
}
