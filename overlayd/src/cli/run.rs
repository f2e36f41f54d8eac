//! `overlayd run`.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tracing_subscriber::EnvFilter;

use super::client;
use crate::control::{self, End, Holder};
use crate::core::config::{Config, LogFormat};

/// Threads for the sockets that answer others. The control loop has a thread of its own: the main one.
const EDGE_THREADS: usize = 2;

/// How long tasks may take to end after the loop: the whole must end within 2 s of SIGTERM.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(500);

/// How long a daemon that runs may take to answer that it hands over.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(1);

/// Runs the daemon.
pub(super) fn run(config: Config) -> Result<()> {
    start_log(&config)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %config.node_name,
        queue_memory_mib = config.queue_memory() >> 20,
        "overlayd starts; its queues may hold that much kernel memory"
    );
    if config.take_over && matches!(control::holder(&config.run_dir), Holder::Process(_)) {
        tracing::info!("asking the daemon that runs on this node to hand over");
        if let Err(error) = client::ask_to_hand_over(&config.run_dir, HAND_OVER_LIMIT) {
            tracing::warn!(error = format!("{error:#}"), "it cannot be asked, so its end is waited for");
        }
    }
    let mut lock = control::acquire(&config.run_dir, control::LOCK_WAIT)?;
    loop {
        let end = in_runtime(EDGE_THREADS, lock, async |lock| control::run(config.clone(), lock).await)?;
        if end == End::Signal {
            return Ok(());
        }
        match in_runtime(1, (), async |()| control::stand_by(&config.run_dir).await)? {
            Some(taken) => lock = taken,
            None => return Ok(()),
        }
    }
}

/// Runs this in a runtime of its own. What it holds is dropped as soon as it is done: tasks may take a moment longer to end.
fn in_runtime<H, T>(threads: usize, held: H, main: impl AsyncFnOnce(&H) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("edge")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(main(&held));
    drop(held);
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    result
}

fn start_log(config: &Config) -> Result<()> {
    // What the library says of each failed request we say in our own words, once; a directive of its own brings it back.
    let directives = format!("kube_client=off,{}", config.log);
    let filter = EnvFilter::try_new(directives).with_context(|| format!("log filter {:?}", config.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!("start the log: {error}"))
}
