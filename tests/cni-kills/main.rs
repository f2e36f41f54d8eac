//! Kills plugins and daemons at random moments and says what came of it.
//!
//! `cargo run -p tests --bin cni-kills` makes ten thousand kills; `-- --kills N --seed S` others.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use tests::Lab;
use tests::kills::{Plan, run};

#[derive(Parser)]
struct Arguments {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    kills: u32,
    /// Where chance begins; the time if none is given.
    #[arg(long)]
    seed: Option<u64>,
}

/// How often progress is told, in kills.
const STEP: u32 = 500;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    // Several seconds for each kill would be a machine on which nothing can be said.
    let deadline = Duration::from_secs(300) + Duration::from_secs(2) * arguments.kills;
    let lab = Lab::builder().nodes(1).deadline(deadline).try_start()?;
    lab.start_daemons();
    let (begin, told) = (Instant::now(), AtomicU32::new(0));
    let progress = |kills: u32| {
        if kills >= told.load(Ordering::Relaxed) + STEP {
            told.store(kills, Ordering::Relaxed);
            eprintln!("{kills} kills, {:.0} s", begin.elapsed().as_secs_f64());
        }
    };
    eprintln!("seed {seed}");
    match run(&lab.node(1), Plan { kills: arguments.kills, seed, runtime_returns: false }, progress) {
        Ok(figures) => {
            println!("seed {seed}, {:.0} s: {figures}; no law was broken", begin.elapsed().as_secs_f64());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            println!("{error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}
