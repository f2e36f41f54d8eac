//! Configuration: file < environment < flags; every fault is reported at once, with key and source.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// One layer of settings as written: every key optional, every value text or list of text.
/// Keys are snake_case in the file (YAML), `OVERLAYD_<UPPER>` in the environment, `--kebab-case` as flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawConfig {
    /// Key to value; a list is joined with commas.
    pub values: BTreeMap<String, String>,
}

/// Validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `node_name`: which Node object is ours. Default: the host name (an argument of [`Config::resolve`]).
    pub node_name: String,
    /// `nodes_file`: file of Node objects, watched.
    pub nodes_file: Option<PathBuf>,
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
    /// `forward_accept`: insert two tagged accept rules into a foreign FORWARD chain whose policy drops, default false.
    pub forward_accept: bool,
    /// `workers`: threads, TUN queues and sockets; default: CPUs, at most 4 (an argument of [`Config::resolve`]).
    pub workers: usize,
    /// `queue_length` of the TUN device in packets, default 2000.
    pub queue_length: u32,
    /// `spin`: how long an idle worker polls before it sleeps, in microseconds, default 50, at most 1000.
    pub spin: Duration,
    /// `run_dir`: lock, sockets, cache; default `/run/overlayd`.
    pub run_dir: PathBuf,
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

impl Config {
    /// Lays flags over environment over file, validates, fills defaults.
    ///
    /// # Errors
    /// Every fault found, not only the first.
    pub fn resolve(
        file: Option<(&str, &str)>,
        environment: &BTreeMap<String, String>,
        flags: &RawConfig,
        machine: &MachineFacts,
    ) -> Result<Self, Vec<ConfigFault>> {
        let _ = (file, environment, flags, machine);
        todo!()
    }
}
