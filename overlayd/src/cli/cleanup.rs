//! `overlayd cleanup`: removes all that is ours on this node. Repeating it is harmless.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{complain, print};
use crate::control::{self, Lock};
use crate::core::config::Config;
use crate::core::leases::ObservedVeth;
use crate::core::plan::{Actual, Op, cleanup_plan, cleanup_veths_plan};
use crate::kernel::Kernel;

/// What to do about pods that are still attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pods {
    /// Refuse to clean up.
    Refuse,
    /// Delete their veths too.
    CutOff,
}

/// Removes everything that carries our tag, then the files in the run directory.
pub(super) fn cleanup(config: &Config, pods: Pods) -> Result<()> {
    let count = Remains::find(config, pods)?.remove(config)?;
    print(&format!("removed {count} kernel objects\n"));
    Ok(())
}

/// What is on the node while no daemon runs, held still by the daemon's lock.
#[derive(Debug)]
pub(super) struct Remains {
    lock: Lock,
    kernel: Kernel,
    have: Actual,
}

impl Remains {
    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// If the daemon runs, or if pods are attached that must not be cut off.
    pub(super) fn find(config: &Config, pods: Pods) -> Result<Self> {
        let lock =
            control::acquire(&config.run_dir, Duration::ZERO).context("this needs the daemon stopped")?;
        let mut kernel = Kernel::open(&config.device).context("open the sockets to the kernel")?;
        let have = kernel.read().context("read the kernel state")?;
        let attached: Vec<&ObservedVeth> = have.veths.iter().filter(|veth| veth.alias.is_some()).collect();
        if pods == Pods::Refuse && !attached.is_empty() {
            bail!(
                "{} pods are attached; stop them first or give --with-pods:\n{}",
                attached.len(),
                names(&attached)
            );
        }
        Ok(Self { lock, kernel, have })
    }

    /// Removes it; how many kernel objects those were.
    ///
    /// # Errors
    /// If something stays.
    pub(super) fn remove(mut self, config: &Config) -> Result<usize> {
        let mut ops = cleanup_veths_plan(&self.have);
        ops.extend(cleanup_plan(&self.have));
        apply(&mut self.kernel, &ops)?;
        for path in control::run_files(&config.run_dir) {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        // Not ours if somebody keeps other files there, or made by the service manager: left then.
        let _ = std::fs::remove_dir(&config.run_dir);
        drop(self.lock);
        Ok(ops.len())
    }
}

/// Goes on after a failure: what can be removed is.
fn apply(kernel: &mut Kernel, ops: &[Op]) -> Result<()> {
    let mut failed = 0;
    for op in ops {
        if let Err(error) = kernel.apply(op) {
            complain(&error.to_string());
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} kernel objects could not be removed", ops.len());
    }
    Ok(())
}

fn names(attached: &[&ObservedVeth]) -> String {
    let line = |veth: &&ObservedVeth| {
        let alias = veth.alias.as_ref()?;
        let addresses: Vec<String> = alias.addresses.iter().map(ToString::to_string).collect();
        Some(format!("  {} {} container {}", addresses.join(","), veth.name, alias.container))
    };
    attached.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}
