//! `overlayd run`.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tracing_subscriber::EnvFilter;

use crate::control;
use crate::core::config::{Config, LogFormat};

/// Threads for the sockets that answer others. The control loop has a thread of its own: the main one.
const EDGE_THREADS: usize = 2;

/// How long tasks may take to end after the loop: the whole must end within 2 s of SIGTERM.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(500);

/// Runs the daemon.
pub(super) fn run(config: Config) -> Result<()> {
    start_log(&config)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %config.node_name,
        queue_memory_mib = config.queue_memory() >> 20,
        "overlayd starts; its queues may hold that much kernel memory"
    );
    let lock = control::acquire(&config.run_dir, control::LOCK_WAIT)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(EDGE_THREADS)
        .thread_name("edge")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(control::run(config, &lock));
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
