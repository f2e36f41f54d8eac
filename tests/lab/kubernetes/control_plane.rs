//! etcd, API server, controllers and scheduler on a host of their own.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::access::{Authority, Identity, User, kubeconfig, token_file, token_key, token_of};
use crate::go;
use crate::host::Host;
use crate::lab::{Families, Lab};
use crate::must;
use crate::process::{Process, tail};

/// Its name and the number of its address on the lab's bridge.
const NAME: &str = "control-plane";
const NUMBER: u8 = 5;
/// Where everything of it is kept, in its own `/run`.
pub(super) const DIRECTORY: &str = "/run/kubernetes";
/// The user who may do everything.
pub(super) const ADMIN: &str = "admin";
const MASTERS: &str = "system:masters";
/// The port of the API server, that of every kubeadm cluster.
const PORT: u16 = 6443;
/// On a busy machine the API server takes its time.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// What to start. Made by [`ControlPlane::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder<'a> {
    lab: &'a Lab,
    host: Option<Host>,
    allocate: bool,
    controllers: bool,
    scheduler: bool,
    users: Vec<User>,
    flags: Vec<String>,
}

impl Builder<'_> {
    /// Runs it on a node, as on a cluster whose control plane is a node too; else it has a host of its own.
    pub fn on(mut self, node: &Host) -> Self {
        self.host = Some(node.clone());
        self
    }

    /// Nodes get no pod CIDRs from the controllers: a cluster whose administrator forgot the flag.
    pub fn without_pod_cidrs(mut self) -> Self {
        self.allocate = false;
        self
    }

    /// No controllers at all: objects stay as the test writes them.
    pub fn without_controllers(mut self) -> Self {
        self.controllers = false;
        self
    }

    /// A scheduler too: pods are placed.
    pub fn scheduler(mut self) -> Self {
        self.scheduler = true;
        self
    }

    /// One more user, for [`ControlPlane::kubeconfig`]. RBAC decides what it may do; `admin` may do everything.
    pub fn user(mut self, name: &str, groups: &[&str]) -> Self {
        self.users.push(User::new(name, groups));
        self
    }

    /// One more flag of the API server.
    pub fn api_flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Starts everything and waits until the API server is ready.
    ///
    /// # Panics
    /// If that is not possible; the message says what to do.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> ControlPlane {
        must(self.try_start())
    }

    /// Starts everything and waits until the API server is ready.
    ///
    /// # Errors
    /// If that is not possible; the message says what to do.
    pub fn try_start(mut self) -> Result<ControlPlane> {
        // Before anything runs: the first to ask may have to build them, which takes longer than a lab's deadline.
        let mut programs = vec!["etcd", "kube-apiserver", "kubectl"];
        programs.extend(self.controllers.then_some("kube-controller-manager"));
        programs.extend(self.scheduler.then_some("kube-scheduler"));
        for program in programs {
            go::program(program)?;
        }
        let host = match self.host {
            Some(host) => host,
            None => self.lab.add_bridge_host(NAME, "cp", NUMBER)?,
        };
        self.users.push(User::new(ADMIN, &[MASTERS]));
        self.users.push(User::new("system:kube-controller-manager", &[MASTERS]));
        self.users.push(User::new("system:kube-scheduler", &[]));
        self.users.push(User::new("system:kube-proxy", &[]));
        for node in self.lab.nodes() {
            self.users.push(User::new(&format!("system:node:{}", node.name()), &["system:nodes"]));
        }
        let plane = ControlPlane {
            host,
            authority: Authority::new()?,
            families: self.lab.pods(),
            flags: self.flags,
            running: Mutex::default(),
        };
        plane.write_files(&self.users)?;
        plane.start_etcd()?;
        plane.try_start_api()?;
        if self.controllers {
            plane.start_controllers(self.allocate)?;
        }
        if self.scheduler {
            plane.start_scheduler()?;
        }
        Ok(plane)
    }
}

/// A running control plane. Ends when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    host: Host,
    authority: Authority,
    families: Families,
    flags: Vec<String>,
    running: Mutex<Running>,
}

/// Declared in the order in which they end.
#[derive(Debug, Default)]
struct Running {
    others: Vec<(&'static str, Process)>,
    api: Option<Process>,
    etcd: Option<Process>,
}

impl ControlPlane {
    /// Starts the description of a control plane.
    pub fn builder(lab: &Lab) -> Builder<'_> {
        Builder {
            lab,
            host: None,
            allocate: true,
            controllers: true,
            scheduler: false,
            users: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// An ordinary one: API server and controllers that give every Node its pod CIDRs.
    ///
    /// # Panics
    /// If that is not possible; the message says what to do.
    #[must_use]
    #[track_caller]
    pub fn start(lab: &Lab) -> Self {
        Self::builder(lab).start()
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The URL of the API server as nodes reach it.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.host.addresses()[0], PORT)
    }

    /// The API server's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        PORT
    }

    /// Where the controllers take the nodes' pod CIDRs from, as flags have it.
    #[must_use]
    pub fn pod_cidr(&self) -> String {
        let [v4, v6] = ["10.244.0.0/16", "fd00:10:244::/48"];
        [v4].into_iter()
            .filter(|_| self.families.has_v4())
            .chain([v6].into_iter().filter(|_| self.families.has_v6()))
            .collect::<Vec<_>>()
            .join(",")
    }

    fn url_at(&self, address: IpAddr, port: u16) -> String {
        format!("https://{}", std::net::SocketAddr::new(address, port))
    }

    /// Whom clients trust. It can sign certificates for whatever stands before the API server.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The kubeconfig of a user that the builder was told of: the API server's real address and authority, the user's token.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> String {
        self.kubeconfig_with(&self.url(), &token_of(user))
    }

    /// A kubeconfig with another URL or token: of a proxy, of a service account.
    #[must_use]
    pub fn kubeconfig_with(&self, url: &str, token: &str) -> String {
        kubeconfig(url, self.authority.certificate(), token)
    }

    /// A new token of a service account, valid for this time (the API server gives none under 10 minutes).
    ///
    /// # Panics
    /// If there is no such account.
    #[must_use]
    #[track_caller]
    pub fn service_account_token(&self, namespace: &str, name: &str, valid: Duration) -> String {
        let valid = format!("--duration={}s", valid.as_secs());
        self.kubectl(&["-n", namespace, "create", "token", name, &valid]).trim().to_owned()
    }

    /// Kills the API server: an outage.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn kill_api(&self) {
        let process = self.lock().api.take();
        let Some(process) = process else { panic!("the API server does not run") };
        process.kill();
    }

    /// Sends the API server a signal: SIGSTOP makes it stall, SIGCONT go on.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn signal_api(&self, signal: i32) {
        let running = self.lock();
        let Some(process) = &running.api else { panic!("the API server does not run") };
        process.signal(signal);
    }

    /// Starts the API server again and waits until it is ready.
    ///
    /// # Panics
    /// If it does not come up; its log is in the message.
    #[track_caller]
    pub fn start_api(&self) {
        must(self.try_start_api());
    }

    /// The end of the log of each component.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let running = self.lock();
        let api = running.api.iter().map(|process| ("kube-apiserver", process));
        let others = running.others.iter().map(|(name, process)| (*name, process));
        api.chain(others)
            .map(|(name, process)| format!("--- {name}\n{}\n", tail(&process.stderr(), 30)))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, name: &str) -> String {
        format!("{DIRECTORY}/{name}")
    }

    fn write_files(&self, users: &[User]) -> Result<()> {
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let mut addresses = self.host.addresses().to_vec();
        addresses.extend(["127.0.0.1".parse::<IpAddr>()?, "::1".parse()?]);
        addresses.extend(
            self.families
                .pick("10.96.0.1/16".parse()?, "fd00:10:96::1/112".parse()?)
                .iter()
                .map(ipnet::IpNet::addr),
        );
        let Identity { certificate, key } = self.authority.issue(&names, &addresses)?;
        let (secret, public) = token_key()?;
        let files = [
            ("ca.crt", self.authority.certificate().to_owned()),
            ("server.crt", certificate),
            ("server.key", key),
            ("tokens.key", secret),
            ("tokens.pub", public),
            ("tokens.csv", token_file(users)),
            ("admin.kubeconfig", self.kubeconfig(ADMIN)),
            ("controllers.kubeconfig", self.kubeconfig("system:kube-controller-manager")),
            ("scheduler.kubeconfig", self.kubeconfig("system:kube-scheduler")),
        ];
        for (name, text) in files {
            self.host.try_write_file(&self.path(name), text)?;
        }
        Ok(())
    }

    fn spawn(&self, program: &str, flags: Vec<String>) -> Result<Process> {
        self.host.command(&go::program(program)?.to_string_lossy()).args(flags).try_spawn()
    }

    fn start_etcd(&self) -> Result<()> {
        let flags = [
            format!("--data-dir={DIRECTORY}/etcd"),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            // The data is in memory and ends with the lab.
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ];
        self.lock().etcd = Some(self.spawn("etcd", flags.into())?);
        Ok(())
    }

    fn try_start_api(&self) -> Result<()> {
        let services = self.families.pick("10.96.0.0/16".parse()?, "fd00:10:96::/112".parse()?);
        let file = |name: &str| self.path(name);
        let mut flags = vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--advertise-address={}", self.host.addresses()[0]),
            format!("--secure-port={PORT}"),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged=true".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", file("tokens.pub")),
            format!("--service-account-signing-key-file={}", file("tokens.key")),
            format!("--service-cluster-ip-range={}", list(&services)),
            "--endpoint-reconciler-type=lease".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
        ];
        flags.extend(self.flags.iter().cloned());
        let mut running = self.lock();
        if running.api.is_some() {
            bail!("the API server already runs");
        }
        running.api = Some(self.spawn("kube-apiserver", flags)?);
        drop(running);
        self.wait_ready()
    }

    /// Waits until the API server says that it is ready.
    fn wait_ready(&self) -> Result<()> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let answer = self
                .kubectl_command()?
                .args(["get", "--raw=/readyz", "--request-timeout=5s"])
                .try_output()?;
            if answer.success() {
                return Ok(());
            }
            let running = self.lock();
            let api = running.api.as_ref().context("the API server does not run")?;
            if !api.running() || std::time::Instant::now() > end {
                bail!("the API server is not ready: {}\n{}", answer.stderr.trim(), tail(&api.stderr(), 40));
            }
            drop(running);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn start_controllers(&self, allocate: bool) -> Result<()> {
        let kubeconfig = self.path("controllers.kubeconfig");
        let mut flags = vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--root-ca-file={}", self.path("ca.crt")),
            format!("--service-account-private-key-file={}", self.path("tokens.key")),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
        ];
        if allocate {
            flags.push("--allocate-node-cidrs=true".into());
            flags.push(format!("--cluster-cidr={}", self.pod_cidr()));
            flags.extend(self.families.has_v4().then(|| "--node-cidr-mask-size-ipv4=24".into()));
            flags.extend(self.families.has_v6().then(|| "--node-cidr-mask-size-ipv6=64".into()));
        }
        let process = self.spawn("kube-controller-manager", flags)?;
        self.lock().others.push(("kube-controller-manager", process));
        Ok(())
    }

    fn start_scheduler(&self) -> Result<()> {
        let kubeconfig = self.path("scheduler.kubeconfig");
        let flags = vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".into(),
        ];
        let process = self.spawn("kube-scheduler", flags)?;
        self.lock().others.push(("kube-scheduler", process));
        Ok(())
    }
}

fn list(nets: &[ipnet::IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
