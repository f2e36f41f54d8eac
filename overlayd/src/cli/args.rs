//! The command line, and from it the configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::core::config::{CONFIG_VARIABLE, Config, ConfigFault, KEYS, Key, MachineFacts, RawConfig};

/// Read when it exists and no other file is named.
const DEFAULT_FILE: &str = "/etc/overlayd/config.yaml";

/// The settings that `status` and `cleanup` need too.
const PLACE_KEYS: &[&str] = &["device", "run_dir"];

/// The settings that say where the container runtime keeps its things.
const RUNTIME_KEYS: &[&str] = &["cni_conf_dir", "cni_bin_dir"];

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong command line or configuration; \
3 `status`: the daemon does not answer.";

/// The grammar.
pub(super) fn command() -> Command {
    let run = Command::new("run")
        .about("Run the daemon of this node until SIGTERM")
        .after_help("Each setting can stand in the file, in the environment (OVERLAYD_<NAME>) and as a flag; the later wins.")
        .arg(config_arg())
        .args(KEYS.iter().map(key_arg));
    let status = Command::new("status")
        .about("Print what the daemon of this node does and what is wrong; answers within a second")
        .arg(config_arg())
        .args(key_args(PLACE_KEYS))
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_parser(["text", "json"])
                .default_value("text")
                .help("For people or for machines"),
        );
    let install = Command::new("install")
        .about("Put the CNI plugin into the container runtime's directory of plugins, as `overlayd`")
        .arg(config_arg())
        .args(key_args(&["cni_bin_dir"]))
        .arg(
            Arg::new("plugin")
                .long("plugin")
                .value_name("PATH")
                .value_parser(clap::value_parser!(PathBuf))
                .help("The plugin [default: cni-shim beside this program]"),
        );
    let uninstall = Command::new("uninstall")
        .about("Remove network configuration and plugin from the container runtime, and what cleanup removes")
        .arg(config_arg())
        .args(key_args(PLACE_KEYS))
        .args(key_args(RUNTIME_KEYS))
        .arg(with_pods_arg())
        .arg(
            Arg::new("stay")
                .long("stay")
                .action(ArgAction::SetTrue)
                .help("Do not end when done, but wait for SIGTERM: for a DaemonSet"),
        );
    let cleanup = Command::new("cleanup")
        .about("Remove everything that overlayd made on this node, and nothing else")
        .arg(config_arg())
        .args(key_args(PLACE_KEYS))
        .arg(with_pods_arg());
    Command::new("overlayd")
        .about("The node daemon of a user-space VXLAN overlay network")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(EXIT_CODES)
        .subcommand(run)
        .subcommand(status)
        .subcommand(install)
        .subcommand(uninstall)
        .subcommand(cleanup)
        .subcommand(Command::new("version").about("Print the version"))
}

fn config_arg() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("PATH")
        .env(CONFIG_VARIABLE)
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!("Configuration file [default: {DEFAULT_FILE} if it exists]"))
}

fn key_args(names: &'static [&str]) -> impl Iterator<Item = Arg> {
    KEYS.iter().filter(|key| names.contains(&key.name)).map(key_arg)
}

fn with_pods_arg() -> Arg {
    Arg::new("with-pods")
        .long("with-pods")
        .action(ArgAction::SetTrue)
        .help("Also cut off pods that are still attached")
}

fn key_arg(key: &Key) -> Arg {
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    // A flag given twice is a list: CIDRs may be given one by one.
    Arg::new(key.name)
        .long(key.flag())
        .value_name(key.value)
        .action(ArgAction::Append)
        .help(format!("{}{default}", key.help))
}

/// Why there is no configuration, one line per fault.
#[derive(Debug)]
pub(super) struct Faults(pub(super) Vec<String>);

impl From<Vec<ConfigFault>> for Faults {
    fn from(faults: Vec<ConfigFault>) -> Self {
        Self(faults.iter().map(ToString::to_string).collect())
    }
}

/// Reads file, environment, flags and machine.
pub(super) fn config(matches: &ArgMatches) -> Result<Config, Faults> {
    let machine = machine().map_err(|error| Faults(vec![error]))?;
    let environment = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (file, unread) = match read_file(matches.get_one::<PathBuf>("config")) {
        Ok(file) => (file, None),
        Err(fault) => (None, Some(fault)),
    };
    let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    match (Config::resolve(file, &environment, &flags(matches), &machine), unread) {
        (Ok(config), None) => Ok(config),
        (Ok(_), Some(unread)) => Err(Faults(vec![unread])),
        (Err(faults), unread) => {
            let mut all = Faults::from(faults);
            all.0.extend(unread);
            Err(all)
        }
    }
}

/// The configuration of the flags alone, for a look around when file or environment are wrong.
pub(super) fn config_of_flags(matches: &ArgMatches) -> Result<Config, Faults> {
    let machine = machine().map_err(|error| Faults(vec![error]))?;
    Ok(Config::resolve(None, &BTreeMap::new(), &flags(matches), &machine)?)
}

fn read_file(named: Option<&PathBuf>) -> Result<Option<(String, String)>, String> {
    let path = named.map_or(Path::new(DEFAULT_FILE), PathBuf::as_path);
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.display().to_string(), text))),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("read the configuration file {}: {error}", path.display())),
    }
}

fn flags(matches: &ArgMatches) -> RawConfig {
    let given = |key: &Key| {
        let values = matches.try_get_many::<String>(key.name).ok().flatten()?;
        let values: Vec<&str> = values.map(String::as_str).collect();
        Some((key.name.to_owned(), values.join(",")))
    };
    RawConfig { values: KEYS.iter().filter_map(given).collect::<BTreeMap<_, _>>() }
}

fn machine() -> Result<MachineFacts, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"));
    let memory = memory(&read("/proc/meminfo")?).ok_or("find MemTotal in /proc/meminfo")?;
    Ok(MachineFacts {
        hostname: read("/proc/sys/kernel/hostname")?.trim().to_lowercase(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory,
    })
}

/// RAM in bytes from the text of `/proc/meminfo`, which counts in KiB.
fn memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_run() {
        for key in KEYS {
            let flag = format!("--{}", key.flag());
            let matches = command().try_get_matches_from(["overlayd", "run", &flag, "x"]).unwrap();
            let (_, run) = matches.subcommand().unwrap();
            assert_eq!(flags(run).values, [(key.name.to_owned(), "x".to_owned())].into());
        }
    }

    #[test]
    fn a_flag_given_twice_is_a_list() {
        let line = ["overlayd", "run", "--cluster-cidrs", "10.0.0.0/8", "--cluster-cidrs", "fd00::/8"];
        let matches = command().try_get_matches_from(line).unwrap();
        let (_, run) = matches.subcommand().unwrap();
        assert_eq!(flags(run).values["cluster_cidrs"], "10.0.0.0/8,fd00::/8");
    }

    #[test]
    fn status_and_cleanup_take_the_place_only() {
        assert!(command().try_get_matches_from(["overlayd", "status", "--run-dir", "/x"]).is_ok());
        assert!(command().try_get_matches_from(["overlayd", "cleanup", "--device", "x"]).is_ok());
        assert!(command().try_get_matches_from(["overlayd", "status", "--port", "1"]).is_err());
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(memory("Foo: 1 kB\nMemTotal:       16384 kB\n"), Some(16384 * 1024));
        assert_eq!(memory(""), None);
    }
}
