//! The table of keys: the one source for the file, the environment, the flags and the reference in the README.

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Name in the file: snake_case.
    pub name: &'static str,
    /// What a value looks like, as a placeholder in the usage text.
    pub value: &'static str,
    /// The default, in words where it depends on the machine; empty if there is none.
    pub default: &'static str,
    /// One sentence for the usage text and the README.
    pub help: &'static str,
}

impl Key {
    /// Name of the environment variable: `OVERLAYD_` and upper case.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// Name of the flag without its two dashes: kebab-case.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
}

/// What the names of our environment variables begin with.
pub const ENVIRONMENT_PREFIX: &str = "OVERLAYD_";

/// The variable that names the configuration file. Not a setting, so not in [`KEYS`].
pub const CONFIG_VARIABLE: &str = "OVERLAYD_CONFIG";

/// Every setting.
pub const KEYS: &[Key] = &[
    Key {
        name: "node_name",
        value: "NAME",
        default: "the host name",
        help: "Name of the Node object that is this machine.",
    },
    Key {
        name: "nodes_file",
        value: "PATH",
        default: "",
        help: "File of Node objects (YAML or JSON, as kubectl prints them), watched for changes, instead of Kubernetes.",
    },
    Key {
        name: "kubeconfig",
        value: "PATH",
        default: "the service account of the pod",
        help: "File that says where the API server of Kubernetes is and who we are.",
    },
    Key {
        name: "api_server",
        value: "URL",
        default: "what the kubeconfig or the pod's environment says",
        help: "Where the API server is, such as https://192.0.2.10:6443; for clusters whose kubernetes Service needs us first.",
    },
    Key {
        name: "annotation_prefix",
        value: "PREFIX",
        default: "overlayd.io",
        help: "Prefix of the Node annotations; flannel.alpha.coreos.com joins a flannel cluster.",
    },
    Key {
        name: "mode",
        value: "MODE",
        default: "island",
        help: "Which addresses pods show outside the cluster; only island so far: the node's.",
    },
    Key { name: "device", value: "NAME", default: "ovl0", help: "Name of the TUN device." },
    Key {
        name: "vni",
        value: "NUMBER",
        default: "1",
        help: "VXLAN network identifier, 1 to 16777215; the same on every node.",
    },
    Key {
        name: "port",
        value: "PORT",
        default: "8472",
        help: "UDP port of the tunnel; the same on every node.",
    },
    Key {
        name: "mtu",
        value: "BYTES",
        default: "that of the underlay link less 50 (IPv4) or 70 (IPv6)",
        help: "Inner MTU; at least 1280 where pods have IPv6 addresses.",
    },
    Key {
        name: "cluster_cidrs",
        value: "CIDR,...",
        default: "derived from the Nodes",
        help: "Pod addresses of the whole cluster; only widens what the Nodes say.",
    },
    Key {
        name: "no_masquerade_cidrs",
        value: "CIDR,...",
        default: "",
        help: "Outside destinations that see pod addresses instead of the node's.",
    },
    Key {
        name: "masquerade_fully_random",
        value: "BOOL",
        default: "true",
        help: "Choose source ports at random when masquerading (avoids collisions of parallel DNS queries).",
    },
    Key {
        name: "masquerade_mark",
        value: "MARK",
        default: "0x4000",
        help: "Packet mark bit by which kube-proxy asks for masquerading, which is then left to it; 0 ignores marks.",
    },
    Key {
        name: "forward_accept",
        value: "BOOL",
        default: "false",
        help: "Insert tagged accept rules into a foreign FORWARD chain whose policy is drop.",
    },
    Key {
        name: "workers",
        value: "COUNT",
        default: "the number of CPUs, at most 4",
        help: "Datapath threads, each with a TUN queue and a socket, 1 to 64.",
    },
    Key {
        name: "queue_length",
        value: "PACKETS",
        default: "2000, less where a quarter of the RAM would not hold it",
        help: "Transmit queue of the TUN device; each packet may be 64 KiB, for each worker.",
    },
    Key {
        name: "spin",
        value: "MICROSECONDS",
        default: "50",
        help: "How long an idle worker polls before it sleeps, 0 to 1000.",
    },
    Key {
        name: "tunnel_gso",
        value: "auto|always|never",
        default: "auto",
        help: "Leave TCP super-packets whole for uplinks that cut them up below the tunnel's headers (Linux 6.17): auto for veths, always for network cards too.",
    },
    Key {
        name: "take_over",
        value: "BOOL",
        default: "false",
        help: "Ask a daemon that runs on this node already to hand over, instead of waiting for its end; for updates that overlap.",
    },
    Key {
        name: "run_dir",
        value: "DIR",
        default: "/run/overlayd",
        help: "Directory of the lock, the sockets and the cache.",
    },
    Key {
        name: "cni_conf_dir",
        value: "DIR",
        default: "",
        help: "The container runtime's directory of network configurations; ours is kept there once pods can be served.",
    },
    Key {
        name: "cni_bin_dir",
        value: "DIR",
        default: "/opt/cni/bin",
        help: "The container runtime's directory of plugins: where install puts ours, and where portmap and bandwidth are found.",
    },
    Key {
        name: "cni_version",
        value: "VERSION",
        default: "1.0.0",
        help: "cniVersion of the network configuration, 0.4.0, 1.0.0 or 1.1.0: every plugin of the chain must know it.",
    },
    Key {
        name: "sysctl_dir",
        value: "DIR",
        default: "/proc/sys",
        help: "Where kernel settings are written: a container can have a writable mount of /proc/sys/net at net below it.",
    },
    Key {
        name: "admin_listen",
        value: "ADDRESS[:PORT]|off",
        default: "127.0.0.1:9472",
        help: "Where health, readiness and metrics are served by HTTP; port 9472 if none is given.",
    },
    Key {
        name: "log",
        value: "FILTER",
        default: "info",
        help: "Log level, or directives such as info,overlayd::control=debug.",
    },
    Key { name: "log_format", value: "text|json", default: "text", help: "How log lines look." },
];

/// The key with this name.
#[must_use]
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The key whose name is nearest to a misspelt one, if one is near enough to be meant.
#[must_use]
pub(super) fn suggest(name: &str) -> Option<&'static Key> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let nearest = KEYS.iter().min_by_key(|key| distance(key.name, &name))?;
    let near_enough = distance(nearest.name, &name) <= 1 + name.len() / 4;
    near_enough.then_some(nearest)
}

/// Levenshtein distance: insertions, deletions and replacements that turn one into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (pair, to) in row.windows(2).zip(&b) {
            let (diagonal, above) = (pair[0], pair[1]);
            let left = next.last().copied().unwrap_or(0);
            next.push((diagonal + usize::from(from != *to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelt_by_rule() {
        let key = find("masquerade_fully_random").unwrap();
        assert_eq!(key.variable(), "OVERLAYD_MASQUERADE_FULLY_RANDOM");
        assert_eq!(key.flag(), "masquerade-fully-random");
    }

    #[test]
    fn no_key_is_called_like_the_variable_of_the_file() {
        assert!(KEYS.iter().all(|key| key.variable() != CONFIG_VARIABLE));
    }

    #[test]
    fn keys_are_unique_and_documented() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(KEYS.iter().skip(index + 1).all(|other| other.name != key.name), "{}", key.name);
            assert!(key.help.ends_with('.') && !key.value.is_empty(), "{}", key.name);
        }
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("port", "port"), 0);
        assert_eq!(distance("port", "prot"), 2);
        assert_eq!(distance("mtu", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_near_names_are_suggested() {
        assert_eq!(suggest("queue_lenght").map(|k| k.name), Some("queue_length"));
        assert_eq!(suggest("cluster-cidr").map(|k| k.name), Some("cluster_cidrs"));
        assert_eq!(suggest("frobnicate"), None);
        assert_eq!(suggest("x"), None);
    }
}
