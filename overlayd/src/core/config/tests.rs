//! Layers, defaults and refusals.

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
            tunnel_gso: TunnelGso::Auto,
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
        ("tunnel_gso", "never"),
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
        "tunnel_gso: sometimes",
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
        assert_eq!(from_file(&format!("api_server: '{good}'")).unwrap().api_server.as_deref(), Some(good));
    }
}

#[test]
fn two_sources_of_nodes_contradict_each_other() {
    let faults = from_file("nodes_file: /a\nkubeconfig: /b\napi_server: https://192.0.2.1\n").unwrap_err();
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
