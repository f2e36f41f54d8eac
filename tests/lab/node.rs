//! A node: its daemon and its pods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ipnet::IpNet;
use overlayd::core::status::Status;

use crate::host::Host;
use crate::manifest::{Manifest, yaml};
use crate::must;
use crate::pod::Pod;
use crate::process::{Command, PATIENCE, Process, tail};
use crate::protocol::Exit;
use crate::refusal::Refusal;

/// Where a node keeps its copy of the Node objects.
pub const NODES_FILE: &str = "/run/lab/nodes.yaml";
/// Where a node keeps the kubeconfig of its daemon.
pub const KUBECONFIG: &str = "/run/lab/kubeconfig";
/// The daemon's run directory.
pub const RUN_DIR: &str = "/run/overlayd";
/// The daemon's admin address.
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9472);

/// A node of the lab. Cheap to clone; dereferences to its [`Host`].
#[derive(Clone, Debug)]
pub struct Node {
    host: Host,
    pod_cidrs: Vec<IpNet>,
    daemon: Arc<Mutex<Daemon>>,
}

#[derive(Debug, Default)]
struct Daemon {
    flags: Vec<String>,
    /// Whether its Nodes come from the API server of a kubeconfig, instead of a file.
    by_kubeconfig: bool,
    process: Option<Process>,
    earlier_logs: String,
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Node {
    pub(crate) fn new(host: Host, pod_cidrs: Vec<IpNet>) -> Self {
        Self { host, pod_cidrs, daemon: Arc::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.host.label()
    }

    /// Its pod CIDRs, IPv4 first.
    #[must_use]
    pub fn pod_cidrs(&self) -> &[IpNet] {
        &self.pod_cidrs
    }

    /// The address of its end of the tunnel: the first of each pod CIDR, IPv4 first.
    #[must_use]
    pub fn tunnel_addresses(&self) -> Vec<IpAddr> {
        self.pod_cidrs.iter().map(IpNet::network).collect()
    }

    /// The Node object of this node as the lab's builder made it.
    #[must_use]
    pub fn manifest(&self) -> Manifest {
        Manifest {
            name: self.name().to_owned(),
            created: "2026-01-01T00:00:00Z".into(),
            annotations: std::collections::BTreeMap::default(),
            pod_cidrs: self.pod_cidrs.clone(),
            internal_ips: self.host.addresses().to_vec(),
        }
    }

    /// Writes this node's file of Node objects.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn write_nodes(&self, nodes: &[Manifest]) {
        self.host.write_file(NODES_FILE, yaml(nodes));
    }

    /// From its next start the daemon takes its Nodes from the API server of this kubeconfig.
    ///
    /// # Panics
    /// If the file cannot be written.
    #[track_caller]
    pub fn use_kubeconfig(&self, kubeconfig: &str) {
        self.host.write_file(KUBECONFIG, kubeconfig);
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner).by_kubeconfig = true;
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Panics
    /// If it ends or is not ready within 20 s; its log is in the message.
    #[track_caller]
    pub fn start_daemon(&self) {
        self.start_daemon_with(&[]);
    }

    /// Starts the daemon with more flags and waits until it is ready.
    ///
    /// # Panics
    /// If it ends or is not ready within 20 s; its log is in the message.
    #[track_caller]
    pub fn start_daemon_with(&self, flags: &[&str]) {
        must(self.try_launch(flags));
        must(self.try_wait_ready());
    }

    /// Starts the daemon with more flags and does not wait.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn launch_daemon(&self, flags: &[&str]) {
        must(self.try_launch(flags));
    }

    /// Starts the daemon with more flags and does not wait.
    ///
    /// # Errors
    /// If it cannot be started, or one already runs that the lab started.
    pub fn try_launch(&self, flags: &[&str]) -> Result<()> {
        self.launch(flags, |command| command)
    }

    /// Starts the daemon with more flags, under a kernel that refuses this offload, and waits until it is ready.
    ///
    /// # Panics
    /// If it ends or is not ready within 20 s; its log is in the message.
    #[track_caller]
    pub fn start_daemon_under(&self, refusal: Refusal, flags: &[&str]) {
        must(self.launch(flags, |command| command.under(refusal)));
        must(self.try_wait_ready());
    }

    fn launch(&self, flags: &[&str], wrap: impl FnOnce(Command) -> Command) -> Result<()> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        if daemon.process.as_ref().is_some_and(Process::running) {
            bail!("the daemon of {} already runs", self.name());
        }
        daemon.flags.clone_from(&flags);
        daemon.bury();
        daemon.process = Some(wrap(self.command_with(daemon.by_kubeconfig).args(flags)).try_spawn()?);
        Ok(())
    }

    /// The daemon's command line, for tests that start it their own way.
    pub fn daemon_command(&self) -> Command {
        let by_kubeconfig = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).by_kubeconfig;
        self.command_with(by_kubeconfig)
    }

    fn command_with(&self, by_kubeconfig: bool) -> Command {
        let source = if by_kubeconfig { ["--kubeconfig", KUBECONFIG] } else { ["--nodes-file", NODES_FILE] };
        let place = ["run", "--node-name", self.name(), "--run-dir", RUN_DIR];
        self.host.command("overlayd").args(place).args(source)
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Panics
    /// If it ends or is not ready within 20 s; its log is in the message.
    #[track_caller]
    pub fn wait_ready(&self) {
        must(self.try_wait_ready());
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// If it ends or is not ready within 20 s; its log is in the message.
    pub fn try_wait_ready(&self) -> Result<()> {
        let question = self.host.http_await(ADMIN, "/readyz", PATIENCE)?;
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(5);
        loop {
            if let Some(exit) = question.try_wait(Duration::from_millis(50))? {
                let answer = question.try_finish(PATIENCE)?;
                let http: crate::traffic::Http = serde_json::from_str(&answer.stdout).with_context(|| {
                    format!("{} is not ready: {}\n{}", self.name(), answer.stderr.trim(), self.log_tail())
                })?;
                if exit.code == Some(0) && http.status == 200 {
                    return Ok(());
                }
                bail!("{} is not ready: {}\n{}", self.name(), http.body.trim(), self.log_tail());
            }
            let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(exit) = daemon.process.as_ref().context("no daemon")?.try_wait(Duration::ZERO)? {
                drop(daemon);
                bail!("the daemon of {} ended: {exit:?}\n{}", self.name(), self.log_tail());
            }
            if Instant::now() > deadline {
                drop(daemon);
                return Err(anyhow!("{} is not ready\n{}", self.name(), self.log_tail()));
            }
        }
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Panics
    /// If none runs.
    #[track_caller]
    pub fn kill_daemon(&self) {
        self.with_daemon(Process::kill);
    }

    /// Ends the daemon with SIGTERM; how it ended, and how long that took.
    ///
    /// # Panics
    /// If none runs or it is not gone within 20 s.
    #[track_caller]
    pub fn stop_daemon(&self) -> (Exit, Duration) {
        let begin = Instant::now();
        (self.with_daemon(|process| process.terminate(PATIENCE)), begin.elapsed())
    }

    /// Sends the daemon a signal, SIGSTOP for example.
    ///
    /// # Panics
    /// If none runs.
    #[track_caller]
    pub fn signal_daemon(&self, signal: i32) {
        self.with_daemon(|process| process.signal(signal));
    }

    /// Whether the daemon runs.
    #[must_use]
    pub fn daemon_runs(&self) -> bool {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        daemon.process.as_ref().is_some_and(Process::running)
    }

    /// Kills the daemon if it runs, starts it with the same flags, waits until it is ready.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn restart_daemon(&self) {
        if self.daemon_runs() {
            self.kill_daemon();
        }
        let flags = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).flags.clone();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.start_daemon_with(&flags);
    }

    #[track_caller]
    fn with_daemon<T>(&self, act: impl FnOnce(&Process) -> T) -> T {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        match &daemon.process {
            Some(process) => act(process),
            None => panic!("the daemon of {} was never started", self.name()),
        }
    }

    /// Everything the daemon has logged, earlier runs included.
    #[must_use]
    pub fn log(&self) -> String {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        let now = daemon.process.as_ref().map(|process| process.stdout() + &process.stderr());
        daemon.earlier_logs.clone() + &now.unwrap_or_default()
    }

    pub(crate) fn log_tail(&self) -> String {
        format!("--- log of {}\n{}", self.name(), tail(&self.log(), 60))
    }

    /// Waits for a line in the log of the daemon now running.
    ///
    /// # Panics
    /// If it does not come within 20 s.
    #[track_caller]
    pub fn wait_log(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "no line with {text:?}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `overlayd status -o json` says.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        must(self.try_status())
    }

    /// What `overlayd status -o json` says.
    ///
    /// # Errors
    /// If it fails, as it does when no daemon runs.
    pub fn try_status(&self) -> Result<Status> {
        self.overlayd(&["status", "-o", "json"]).try_json()
    }

    /// A command of the `overlayd` program that talks to this node's daemon.
    pub fn overlayd(&self, args: &[&str]) -> Command {
        self.host.command("overlayd").args(args).env("OVERLAYD_RUN_DIR", RUN_DIR)
    }

    /// How many packets the daemon has dropped for this reason.
    ///
    /// # Panics
    /// If the status cannot be read or knows no such reason.
    #[must_use]
    #[track_caller]
    pub fn drops(&self, reason: &str) -> u64 {
        let drops = self.status().drops;
        match drops.get(reason) {
            Some(count) => *count,
            None => panic!("no drop reason {reason}; there are {:?}", drops.keys()),
        }
    }

    /// Adds a pod by the real plugin, called as a runtime calls it.
    ///
    /// # Panics
    /// If the plugin fails; its error is in the message.
    #[must_use]
    #[track_caller]
    pub fn add_pod(&self, name: &str) -> Pod {
        must(self.try_add_pod(name))
    }

    /// Adds a pod by the real plugin.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn try_add_pod(&self, name: &str) -> Result<Pod> {
        Pod::add(self, name)
    }
}

impl Daemon {
    /// Keeps the log of a daemon that is over.
    fn bury(&mut self) {
        if let Some(process) = self.process.take() {
            self.earlier_logs += &(process.stdout() + &process.stderr());
        }
    }
}
