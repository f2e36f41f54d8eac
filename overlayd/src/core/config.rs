//! Configuration: file < environment < flags; every fault is reported at once, with key and source.
//!
//! A layer is text by key. The layers are laid over one another, and only the value that wins is read,
//! so a fault names the source that an operator has to mend. A key or a variable of ours that does not
//! exist is a fault in every layer: a misspelt setting never passes in silence.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

mod keys;
mod layers;
mod values;

pub use keys::{CONFIG_VARIABLE, ENVIRONMENT_PREFIX, KEYS, Key};
use layers::Layers;

/// One layer of settings as written: every key optional, every value text or list of text.
/// Keys are snake_case in the file (YAML), `OVERLAYD_<UPPER>` in the environment, `--kebab-case` as flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawConfig {
    /// Key (as in the file) to value; a list is joined with commas.
    pub values: BTreeMap<String, String>,
}

/// Validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `node_name`: which Node object is ours. Default: the host name (an argument of [`Config::resolve`]).
    pub node_name: String,
    /// `nodes_file`: file of Node objects, watched. Without it they come from Kubernetes.
    pub nodes_file: Option<PathBuf>,
    /// `kubeconfig`: where the API server is and who we are; without it, the service account of our pod.
    pub kubeconfig: Option<PathBuf>,
    /// `api_server`: URL of the API server, instead of what the kubeconfig or the pod's environment says.
    pub api_server: Option<String>,
    /// `annotation_prefix`, default `overlayd.io`.
    pub annotation_prefix: String,
    /// `mode`: only island.
    pub mode: Mode,
    /// `device`: name of the TUN device, default `ovl0`.
    pub device: String,
    /// `vni`, default 1, 24 bits.
    pub vni: u32,
    /// `port`: UDP port of the tunnel, default 8472.
    pub port: u16,
    /// `mtu`: inner MTU in bytes; default: MTU of the underlay link less 50 (IPv4 underlay) or 70 (IPv6).
    pub mtu: Option<u32>,
    /// `cluster_cidrs`: widen what is derived from the Nodes.
    pub cluster_cidrs: Vec<IpNet>,
    /// `no_masquerade_cidrs`: outside destinations that see pod addresses.
    pub no_masquerade_cidrs: Vec<IpNet>,
    /// `masquerade_fully_random`, default true.
    pub masquerade_fully_random: bool,
    /// `masquerade_mark`: kube-proxy's mark bit, default 0x4000; 0 turns the check off.
    pub masquerade_mark: u32,
    /// `forward_accept`: insert tagged accept rules into a foreign FORWARD chain whose policy drops, default false.
    pub forward_accept: bool,
    /// `workers`: threads, TUN queues and sockets; default: CPUs, at most 4 (an argument of [`Config::resolve`]).
    pub workers: usize,
    /// `queue_length` of the TUN device in packets, default 2000.
    pub queue_length: u32,
    /// `spin`: how long an idle worker polls before it sleeps, in microseconds, default 50, at most 1000.
    pub spin: Duration,
    /// `tunnel_gso`: which uplinks super-packets are left whole for, default auto.
    pub tunnel_gso: TunnelGso,
    /// `take_over`: ask a daemon that runs already to hand over, default false.
    pub take_over: bool,
    /// `run_dir`: lock, sockets, cache; default `/run/overlayd`.
    pub run_dir: PathBuf,
    /// `cni_conf_dir`: the runtime's directory of network configurations; without it ours is nobody's business.
    pub cni_conf_dir: Option<PathBuf>,
    /// `cni_bin_dir`: the runtime's directory of plugins, default `/opt/cni/bin`.
    pub cni_bin_dir: PathBuf,
    /// `cni_version` of the network configuration, default 1.0.0.
    pub cni_version: String,
    /// `sysctl_dir`: where kernel settings are written, default `/proc/sys`.
    pub sysctl_dir: PathBuf,
    /// `admin_listen`: address of health, readiness and metrics, default `127.0.0.1:9472`; `off` turns it off.
    pub admin_listen: Option<SocketAddr>,
    /// `log`: tracing filter directives, default `info`.
    pub log: String,
    /// `log_format`: text or json, default text.
    pub log_format: LogFormat,
}

/// Which addresses pods show to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Overlay between pods, masquerade to everything outside.
    Island,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which uplinks super-packets are left whole for, of those that offer to cut them up below a tunnel's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelGso {
    /// Veths, as nodes that are containers have. Behind them is the same kernel, while the tunnel offloads of network cards have a
    /// history of faults that lose such packets silently.
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

/// One fault of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} (from {source_name}): {problem}")]
pub struct ConfigFault {
    /// Key as written in that source: `port`, `OVERLAYD_PORT` or `--port`.
    pub key: String,
    /// "file /etc/overlayd.yaml", "environment" or "command line".
    pub source_name: String,
    /// What is wrong, and what is right.
    pub problem: String,
}

/// What the machine tells, for defaults.
#[derive(Clone, Debug)]
pub struct MachineFacts {
    /// Host name, lower case.
    pub hostname: String,
    /// Usable CPUs.
    pub cpus: usize,
    /// RAM in bytes; queues x length x 64 KiB over a quarter of it is refused.
    pub memory: u64,
}

/// Most bytes that one packet in the TUN's queue holds: a super-packet.
const SUPER_PACKET: u64 = 64 * 1024;

/// Length of the TUN's queue where RAM allows it: measured, see the design's section on speed.
const QUEUE_LENGTH: u32 = 2000;

impl Config {
    /// Lays flags over environment over file, validates, fills defaults. `file` is its name and its text.
    /// Of the environment only variables that begin with [`ENVIRONMENT_PREFIX`] count; an empty one is
    /// as good as none, and [`CONFIG_VARIABLE`] is not a setting.
    ///
    /// # Errors
    /// Every fault found, not only the first.
    pub fn resolve(
        file: Option<(&str, &str)>,
        environment: &BTreeMap<String, String>,
        flags: &RawConfig,
        machine: &MachineFacts,
    ) -> Result<Self, Vec<ConfigFault>> {
        let mut layers = Layers::read(file, environment, flags);
        let default_node = values::node_name(&machine.hostname);
        if let (Err(problem), false) = (&default_node, layers.has("node_name")) {
            layers.fault("node_name", format!("the host name {problem}; set node_name"));
        }
        let workers = layers
            .value("workers", |t| values::number(t, 1..=64_u32))
            .map_or_else(|| machine.cpus.clamp(1, 4), |count| count as usize);
        let config = Self {
            node_name: layers.value("node_name", values::node_name).or(default_node.ok()).unwrap_or_default(),
            nodes_file: layers.value("nodes_file", values::text).map(PathBuf::from),
            kubeconfig: layers.value("kubeconfig", values::text).map(PathBuf::from),
            api_server: layers.value("api_server", values::api_server),
            annotation_prefix: layers
                .value("annotation_prefix", values::annotation_prefix)
                .unwrap_or_else(|| "overlayd.io".into()),
            mode: layers.value("mode", values::mode).unwrap_or(Mode::Island),
            device: layers.value("device", values::device).unwrap_or_else(|| "ovl0".into()),
            // RFC 7348, section 5: 24 bits. 0 is left out: Linux and flannel take it for "none given".
            vni: layers.value("vni", |t| values::number(t, 1..=0x00ff_ffff)).unwrap_or(1),
            // Linux' own default port of vxlan, and so flannel's.
            port: layers.value("port", |t| values::number(t, 1..=u16::MAX)).unwrap_or(8472),
            // RFC 791, section 3.2: every host takes 576 bytes. Above, 50 bytes of headers must fit in 64 KiB.
            mtu: layers.value("mtu", |t| values::number(t, 576..=65_485)),
            cluster_cidrs: layers.value("cluster_cidrs", values::cluster_cidrs).unwrap_or_default(),
            no_masquerade_cidrs: layers.value("no_masquerade_cidrs", values::cidrs).unwrap_or_default(),
            masquerade_fully_random: layers.value("masquerade_fully_random", values::boolean).unwrap_or(true),
            // kube-proxy's --iptables-masquerade-bit is 14 by default.
            masquerade_mark: layers.value("masquerade_mark", values::mark).unwrap_or(1 << 14),
            forward_accept: layers.value("forward_accept", values::boolean).unwrap_or(false),
            take_over: layers.value("take_over", values::boolean).unwrap_or(false),
            workers,
            queue_length: layers
                .value("queue_length", |t| values::number(t, 1..=1_000_000))
                .unwrap_or_else(|| default_queue_length(workers, machine)),
            spin: Duration::from_micros(
                layers.value("spin", |t| values::number(t, 0..=1000_u32)).unwrap_or(50).into(),
            ),
            tunnel_gso: layers.value("tunnel_gso", values::tunnel_gso).unwrap_or(TunnelGso::Auto),
            run_dir: layers.value("run_dir", values::run_dir).unwrap_or_else(|| "/run/overlayd".into()),
            cni_conf_dir: layers.value("cni_conf_dir", values::directory),
            cni_bin_dir: layers
                .value("cni_bin_dir", values::directory)
                .unwrap_or_else(|| "/opt/cni/bin".into()),
            cni_version: layers.value("cni_version", values::cni_version).unwrap_or_else(|| "1.0.0".into()),
            sysctl_dir: layers.value("sysctl_dir", values::directory).unwrap_or_else(|| "/proc/sys".into()),
            admin_listen: layers
                .value("admin_listen", values::listen)
                .unwrap_or(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), values::ADMIN_PORT))),
            log: layers.value("log", values::text).unwrap_or_else(|| "info".into()),
            log_format: layers.value("log_format", values::log_format).unwrap_or(LogFormat::Text),
        };
        config.check_queue_memory(machine, &mut layers);
        check_source(&mut layers);
        let faults = layers.into_faults();
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// Most bytes of kernel memory that the TUN's queues can hold while no worker reads.
    #[must_use]
    pub fn queue_memory(&self) -> u64 {
        (self.workers as u64).saturating_mul(u64::from(self.queue_length)).saturating_mul(SUPER_PACKET)
    }

    fn check_queue_memory(&self, machine: &MachineFacts, layers: &mut Layers<'_>) {
        let limit = machine.memory / 4;
        if machine.memory == 0 || self.queue_memory() <= limit {
            return;
        }
        let key = if layers.has("queue_length") { "queue_length" } else { "workers" };
        let mib = |bytes: u64| bytes >> 20;
        layers.fault(
            key,
            format!(
                "{} workers with queues of {} packets of 64 KiB may hold {} MiB of kernel memory, \
                 more than a quarter ({} MiB) of this machine's {} MiB",
                self.workers,
                self.queue_length,
                mib(self.queue_memory()),
                mib(limit),
                mib(machine.memory),
            ),
        );
    }
}

/// Nodes come from one place: a file, or Kubernetes.
fn check_source(layers: &mut Layers<'_>) {
    if !layers.has("nodes_file") {
        return;
    }
    for key in ["kubeconfig", "api_server"] {
        if layers.has(key) {
            let problem = "contradicts nodes_file: Nodes come either from that file or from Kubernetes";
            layers.fault(key, problem.to_owned());
        }
    }
}

/// [`QUEUE_LENGTH`], or what a quarter of the RAM holds: a small machine starts without any setting.
fn default_queue_length(workers: usize, machine: &MachineFacts) -> u32 {
    if machine.memory == 0 {
        return QUEUE_LENGTH;
    }
    let fits = machine.memory / 4 / SUPER_PACKET / (workers as u64).max(1);
    u32::try_from(fits).unwrap_or(u32::MAX).clamp(1, QUEUE_LENGTH)
}

#[cfg(test)]
mod tests;
