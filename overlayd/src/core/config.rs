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
mod tests {
    use super::*;

    fn machine() -> MachineFacts {
        MachineFacts { hostname: "node-a".into(), cpus: 8, memory: 8 << 30 }
    }

    fn layer(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn flags(pairs: &[(&str, &str)]) -> RawConfig {
        RawConfig { values: layer(pairs) }
    }

    fn from_file(text: &str) -> Result<Config, Vec<String>> {
        Config::resolve(Some(("overlayd.yaml", text)), &layer(&[]), &flags(&[]), &machine()).map_err(words)
    }

    fn words(faults: Vec<ConfigFault>) -> Vec<String> {
        faults.iter().map(ToString::to_string).collect()
    }

    /// The only fault of this file.
    fn fault(text: &str) -> String {
        let faults = from_file(text).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults.concat()
    }

    #[test]
    fn nothing_set_works() {
        let config = Config::resolve(None, &layer(&[]), &flags(&[]), &machine()).unwrap();
        assert_eq!(
            config,
            Config {
                node_name: "node-a".into(),
                nodes_file: None,
                kubeconfig: None,
                api_server: None,
                annotation_prefix: "overlayd.io".into(),
                mode: Mode::Island,
                device: "ovl0".into(),
                vni: 1,
                port: 8472,
                mtu: None,
                cluster_cidrs: vec![],
                no_masquerade_cidrs: vec![],
                masquerade_fully_random: true,
                masquerade_mark: 0x4000,
                forward_accept: false,
                take_over: false,
                workers: 4,
                queue_length: 2000,
                spin: Duration::from_micros(50),
                run_dir: "/run/overlayd".into(),
                cni_conf_dir: None,
                cni_bin_dir: "/opt/cni/bin".into(),
                cni_version: "1.0.0".into(),
                sysctl_dir: "/proc/sys".into(),
                admin_listen: Some("127.0.0.1:9472".parse().unwrap()),
                log: "info".into(),
                log_format: LogFormat::Text,
            }
        );
    }

    #[test]
    fn an_empty_file_and_comments_alone_set_nothing() {
        assert_eq!(from_file("").unwrap(), from_file("# port: 1\n").unwrap());
        assert_eq!(from_file("---\n").unwrap(), from_file("{}").unwrap());
    }

    #[test]
    fn the_defaults_in_the_table_are_the_defaults() {
        let bare = from_file("").unwrap();
        for key in KEYS {
            // Those that depend on the machine are described, not written.
            let depends =
                ["node_name", "kubeconfig", "api_server", "mtu", "cluster_cidrs", "workers", "queue_length"]
                    .contains(&key.name);
            if depends || key.default.is_empty() {
                continue;
            }
            let set = Config::resolve(None, &layer(&[]), &flags(&[(key.name, key.default)]), &machine());
            assert_eq!(set.as_ref(), Ok(&bare), "{}", key.name);
        }
    }

    #[test]
    fn every_key_is_read() {
        let values = [
            ("node_name", "other"),
            ("nodes_file", "/etc/nodes.yaml"),
            ("kubeconfig", "/etc/kubernetes/kubelet.conf"),
            ("api_server", "https://192.0.2.10:6443"),
            ("annotation_prefix", "flannel.alpha.coreos.com"),
            ("device", "tun7"),
            ("vni", "77"),
            ("port", "4789"),
            ("mtu", "1400"),
            ("cluster_cidrs", "10.0.0.0/8,fd00::/32"),
            ("no_masquerade_cidrs", "192.0.2.0/24"),
            ("masquerade_fully_random", "false"),
            ("masquerade_mark", "0x8000"),
            ("forward_accept", "true"),
            ("workers", "3"),
            ("queue_length", "500"),
            ("spin", "0"),
            ("take_over", "true"),
            ("run_dir", "/tmp/x"),
            ("cni_conf_dir", "/etc/cni/net.d"),
            ("cni_bin_dir", "/usr/libexec/cni"),
            ("cni_version", "1.1.0"),
            ("sysctl_dir", "/host/sys"),
            ("admin_listen", "off"),
            ("log", "debug"),
            ("log_format", "json"),
        ];
        let bare = from_file("").unwrap();
        for (key, value) in values {
            let by_flag = Config::resolve(None, &layer(&[]), &flags(&[(key, value)]), &machine()).unwrap();
            assert_ne!(by_flag, bare, "{key}");
            let variable = format!("OVERLAYD_{}", key.to_uppercase());
            let by_variable =
                Config::resolve(None, &layer(&[(&variable, value)]), &flags(&[]), &machine()).unwrap();
            assert_eq!(by_variable, by_flag, "{key}");
            assert_eq!(from_file(&format!("{key}: {value}")).unwrap(), by_flag, "{key}");
        }
        // Each key but the mode, which has one value.
        assert_eq!(values.len() + 1, KEYS.len());
    }

    #[test]
    fn flags_beat_environment_beats_file() {
        let file = Some(("f", "port: 1\nvni: 1\nmtu: 1300\n"));
        let environment = layer(&[("OVERLAYD_PORT", "2"), ("OVERLAYD_VNI", "2"), ("PATH", "/bin")]);
        let config = Config::resolve(file, &environment, &flags(&[("port", "3")]), &machine()).unwrap();
        assert_eq!((config.port, config.vni, config.mtu), (3, 2, Some(1300)));
    }

    #[test]
    fn an_overridden_value_is_not_read() {
        let file = Some(("f", "port: x\n"));
        assert!(Config::resolve(file, &layer(&[]), &flags(&[("port", "3")]), &machine()).is_ok());
    }

    #[test]
    fn lists_may_be_lists() {
        let config = from_file("cluster_cidrs:\n- 10.0.0.0/8\n- fd00::/32\n").unwrap();
        assert_eq!(config, from_file("cluster_cidrs: 10.0.0.0/8, fd00::/32").unwrap());
        assert_eq!(config.cluster_cidrs.len(), 2);
    }

    #[test]
    fn scalars_mean_what_stands_there() {
        assert_eq!(from_file("masquerade_mark: 0x4000").unwrap().masquerade_mark, 0x4000);
        assert_eq!(from_file("admin_listen: off").unwrap().admin_listen, None);
        let listens = |text: &str| from_file(text).unwrap().admin_listen.unwrap().to_string();
        assert_eq!(listens("admin_listen: 192.0.2.7"), "192.0.2.7:9472");
        assert_eq!(listens("admin_listen: '2001:db8::7'"), "[2001:db8::7]:9472");
        assert_eq!(listens("admin_listen: '[::1]:80'"), "[::1]:80");
        assert_eq!(from_file("node_name: 007").unwrap().node_name, "007");
        assert_eq!(from_file("port: '8473'").unwrap().port, 8473);
    }

    #[test]
    fn all_faults_are_told_at_once_each_with_its_source() {
        let faults = Config::resolve(
            Some(("/etc/overlayd.yaml", "prot: 8472\nport: 0\nmode: flat\n")),
            &layer(&[("OVERLAYD_VNI", "16777216"), ("OVERLAYD_COLOUR", "red")]),
            &flags(&[("spin", "1001")]),
            &machine(),
        );
        assert_eq!(
            words(faults.unwrap_err()),
            [
                "prot (from file /etc/overlayd.yaml): there is no such key; did you mean port?",
                "OVERLAYD_COLOUR (from environment): there is no such variable",
                "mode (from file /etc/overlayd.yaml): flat mode is not available yet; only island is",
                "OVERLAYD_VNI (from environment): \"16777216\" is not a whole number from 1 to 16777215",
                "port (from file /etc/overlayd.yaml): \"0\" is not a whole number from 1 to 65535",
                "--spin (from command line): \"1001\" is not a whole number from 0 to 1000",
            ]
        );
    }

    #[test]
    fn misspelt_variables_are_told_with_the_right_spelling() {
        let faults = Config::resolve(None, &layer(&[("OVERLAYD_PRT", "1")]), &flags(&[]), &machine());
        assert_eq!(
            words(faults.unwrap_err()),
            ["OVERLAYD_PRT (from environment): there is no such variable; did you mean OVERLAYD_PORT?"]
        );
    }

    #[test]
    fn service_links_of_kubernetes_are_recognised() {
        let environment = layer(&[
            ("OVERLAYD_PORT", "tcp://10.96.0.9:80"),
            ("OVERLAYD_SERVICE_HOST", "10.96.0.9"),
            ("OVERLAYD_PORT_80_TCP_PROTO", "tcp"),
        ]);
        let faults = words(Config::resolve(None, &environment, &flags(&[]), &machine()).unwrap_err());
        assert_eq!(faults.len(), 3);
        assert!(faults.iter().all(|fault| fault.contains("enableServiceLinks: false")), "{faults:?}");
    }

    #[test]
    fn empty_variables_and_the_file_variable_set_nothing() {
        let environment = layer(&[("OVERLAYD_MTU", ""), ("OVERLAYD_CONFIG", "/etc/overlayd.yaml")]);
        assert!(Config::resolve(None, &environment, &flags(&[]), &machine()).is_ok());
    }

    #[test]
    fn a_file_that_is_not_yaml_is_one_fault_with_its_line() {
        let fault = fault("port: 1\nvni: [\n");
        assert!(fault.starts_with("line ") && fault.contains("(from file overlayd.yaml)"), "{fault}");
        assert!(from_file("- port\n").is_err());
        assert!(from_file("port: 1\nport: 2\n").is_err());
        assert!(fault_of("port: {a: 1}").contains("neither a value nor a list"));
        assert!(fault_of("port:").contains("has no value"));
    }

    fn fault_of(text: &str) -> String {
        fault(text)
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in [
            "port: 65536",
            "vni: 0",
            "vni: -1",
            "mtu: 575",
            "workers: 0",
            "workers: 65",
            "spin: 1.5",
            "device: ovp0",
            "device: ovl%d",
            "device: sixteen-bytes-16",
            "device: all",
            "run_dir: run/overlayd",
            "run_dir: /run/../etc",
            "admin_listen: localhost:9472",
            "admin_listen: 127.0.0.1:0",
            "admin_listen: ::1:x",
            "cni_conf_dir: net.d",
            "cni_bin_dir: /opt/../bin",
            "cni_version: 0.3.1",
            "sysctl_dir: ''",
            "cluster_cidrs: 10.0.0.0/33",
            "cluster_cidrs: 0.0.0.0/0",
            "masquerade_fully_random: yes",
            "masquerade_mark: 0x1ffffffff",
            "log_format: xml",
            "log: ''",
            "node_name: Node_A",
            "annotation_prefix: a/b/c",
            "api_server: 192.0.2.10:6443",
            "api_server: http://192.0.2.10:8080",
            "api_server: https://",
            "api_server: https://192.0.2.10:0",
            "api_server: https://user@192.0.2.10",
            "api_server: https://2001:db8::1:6443",
        ] {
            let key = bad.split(':').next().unwrap();
            assert!(fault(bad).starts_with(&format!("{key} (from file")), "{bad}");
        }
    }

    #[test]
    fn urls_of_api_servers_are_read() {
        for good in [
            "https://192.0.2.10",
            "https://192.0.2.10:6443",
            "https://[2001:db8::1]:6443",
            "https://api.example.com:6443/k8s/clusters/c-1",
            "http://127.0.0.1:8001",
            "http://[::1]:8001",
        ] {
            assert_eq!(
                from_file(&format!("api_server: '{good}'")).unwrap().api_server.as_deref(),
                Some(good)
            );
        }
    }

    #[test]
    fn two_sources_of_nodes_contradict_each_other() {
        let faults =
            from_file("nodes_file: /a\nkubeconfig: /b\napi_server: https://192.0.2.1\n").unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults.iter().all(|fault| fault.contains("contradicts nodes_file")), "{faults:?}");
    }

    #[test]
    fn host_bits_are_a_fault_that_names_the_network() {
        assert!(fault("cluster_cidrs: 10.1.2.3/16").contains("10.1.0.0/16 is the network"));
        assert!(fault("no_masquerade_cidrs: 10.1.2.3").contains("10.1.2.3/32"));
    }

    #[test]
    fn queues_over_a_quarter_of_the_memory_are_refused_with_the_numbers() {
        let fault = fault("workers: 4\nqueue_length: 10000");
        assert!(
            fault.contains("2500 MiB") && fault.contains("2048 MiB") && fault.contains("8192 MiB"),
            "{fault}"
        );
    }

    #[test]
    fn a_small_machine_gets_a_shorter_queue_by_itself() {
        let small = MachineFacts { memory: 512 << 20, ..machine() };
        let config = Config::resolve(None, &layer(&[]), &flags(&[]), &small).unwrap();
        assert_eq!(config.queue_length, 512);
        assert!(config.queue_memory() <= small.memory / 4);
    }

    #[test]
    fn a_host_name_that_no_node_can_have_must_be_replaced() {
        let odd = MachineFacts { hostname: "Odd_Host".into(), ..machine() };
        let faults = words(Config::resolve(None, &layer(&[]), &flags(&[]), &odd).unwrap_err());
        assert!(faults.concat().contains("set node_name"), "{faults:?}");
        assert!(Config::resolve(None, &layer(&[]), &flags(&[("node_name", "a")]), &odd).is_ok());
    }
}
