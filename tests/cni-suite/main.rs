//! Drives a CNI plugin binary through the contract and prints the table.
//!
//! `cargo run -p tests --bin cni-suite` runs our own; `-- PATH --config '{"type": ...}'` any other.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use tests::suite::{Subject, run, table};
use tests::{Families, Lab};

#[derive(Parser)]
struct Arguments {
    /// The plugin; ours if none is given.
    plugin: Option<std::path::PathBuf>,
    /// A network configuration that works for it (JSON), without cniVersion and name.
    #[arg(long)]
    config: Option<String>,
    /// `CNI_PATH`; the plugin's directory if not given.
    #[arg(long)]
    plugin_path: Option<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let lab = Lab::builder()
        .nodes(1)
        .pods(Families::V4)
        .deadline(std::time::Duration::from_secs(600))
        .try_start()?;
    let node = lab.node(1);
    let config = match &arguments.config {
        Some(text) => serde_json::from_str(text).context("--config")?,
        None => json!({"type": "overlayd", "socket": format!("{}/cni.sock", tests::node::RUN_DIR)}),
    };
    let (program, directory) = match &arguments.plugin {
        None => {
            lab.start_daemons();
            ("cni-shim".to_owned(), "/opt/cni/bin".to_owned())
        }
        Some(path) => {
            let path = path.canonicalize().with_context(|| format!("find {}", path.display()))?;
            let directory =
                path.parent().context("a plugin without a directory")?.to_string_lossy().into_owned();
            (path.to_string_lossy().into_owned(), directory)
        }
    };
    let plugin_path = arguments.plugin_path.unwrap_or(directory);
    let verdicts = run(&Subject { node, program, config, plugin_path });
    print!("{}", table(&verdicts));
    let is_whole = verdicts.iter().all(|verdict| verdict.failure.is_none());
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
