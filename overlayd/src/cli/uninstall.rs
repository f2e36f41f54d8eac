//! `overlayd uninstall`: takes this network off the node. Repeating it is harmless.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::cleanup::{Pods, Remains};
use super::print;
use crate::core::config::Config;
use crate::core::conflist::{FILE_NAME, PLUGIN};
use crate::edge::place::displace;

/// Removes the network configuration, then what `cleanup` removes, then the plugin: as long as a runtime may still
/// start or end pods by this network, it finds the plugin.
pub(super) fn uninstall(config: &Config, pods: Pods) -> Result<()> {
    let remains = Remains::find(config, pods)?;
    if let Some(directory) = &config.cni_conf_dir {
        let file = directory.join(FILE_NAME);
        displace(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    let count = remains.remove(config)?;
    let plugin = config.cni_bin_dir.join(PLUGIN);
    displace(&plugin).with_context(|| format!("remove {}", plugin.display()))?;
    print(&format!("removed {count} kernel objects, the network configuration and the plugin\n"));
    Ok(())
}

/// Waits for SIGTERM or SIGINT: a `DaemonSet` knows no pod that is done.
pub(super) fn stay() -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
