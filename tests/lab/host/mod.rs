//! A place in the lab where programs run: a node, a pod, the outside.

mod api_proxy;
mod files;
mod servers;
mod setup;
mod traffic;
mod view;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

pub use self::api_proxy::ApiProxy;
pub use self::servers::Server;
pub use self::setup::{LinkState, VxlanPeer};
pub use self::traffic::{Harm, Relay, Running, Sniffer};
use crate::core::Core;
use crate::must;
use crate::process::{Command, Output, Process};

/// A place in the lab where programs run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    core: Arc<Core>,
    label: String,
    space: String,
    netns: Option<PathBuf>,
    addresses: Vec<IpAddr>,
}

impl Host {
    pub(crate) fn new(core: Arc<Core>, space: &str, addresses: Vec<IpAddr>) -> Self {
        Self { core, label: space.to_owned(), space: space.to_owned(), netns: None, addresses }
    }

    pub(crate) fn in_netns(&self, label: String, netns: PathBuf, addresses: Vec<IpAddr>) -> Self {
        Self { core: Arc::clone(&self.core), label, space: self.space.clone(), netns: Some(netns), addresses }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn space(&self) -> &str {
        &self.space
    }

    pub(crate) fn netns(&self) -> Option<&Path> {
        self.netns.as_deref()
    }

    /// The same place by another name.
    #[must_use]
    pub fn renamed(&self, label: &str) -> Self {
        Self { label: label.to_owned(), ..self.clone() }
    }

    /// Its name, for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its addresses: of a node those on the underlay, of a pod those the plugin gave, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its first IPv4 address.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    #[track_caller]
    pub fn v4(&self) -> IpAddr {
        must(self.address(true))
    }

    /// Its first IPv6 address.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    #[track_caller]
    pub fn v6(&self) -> IpAddr {
        must(self.address(false))
    }

    fn address(&self, v4: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| address.is_ipv4() == v4).copied();
        found.with_context(|| format!("{} has no IPv{} address", self.label, if v4 { 4 } else { 6 }))
    }

    /// A program to run here. `overlayd`, `cni-shim` and `lab-agent` are the ones built from this workspace; other
    /// names are looked up in PATH, and a test must not depend on what is found there.
    pub fn command(&self, program: &str) -> Command {
        let path = match program {
            "overlayd" | "cni-shim" | "lab-agent" => {
                self.core.binaries().directory().join(program).to_string_lossy().into_owned()
            }
            other => other.to_owned(),
        };
        Command::new(self.clone(), path)
    }

    /// Starts `overlayd`, `cni-shim` or any program with these arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn spawn(&self, program: &str, args: &[&str]) -> Process {
        self.command(program).args(args).spawn()
    }

    fn tool(&self, name: &str) -> Command {
        self.command("lab-agent").arg(name)
    }
}

/// Runs a plugin-like program: environment and standard input given, exit and output taken.
pub(crate) fn run_plugin(
    host: &Host,
    program: &str,
    env: &[(&str, String)],
    stdin: String,
) -> Result<Output> {
    let mut command = host.command(program).stdin(stdin).deadline(Duration::from_secs(40));
    for (key, value) in env {
        command = command.env(key, value);
    }
    command.try_output()
}
