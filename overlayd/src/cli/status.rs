//! `overlayd status`: the daemon's snapshot, or what can be told without the daemon. Always within a second.

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use serde::Serialize;

use super::{NO_ANSWER, client, complain, print, text};
use crate::control::{self, Holder};
use crate::core::config::Config;
use crate::core::plan::{Actual, Via};
use crate::kernel::Kernel;

/// How long the daemon may take. A healthy one takes a millisecond.
const DAEMON_LIMIT: Duration = Duration::from_millis(500);

/// How long the look at the kernel may take after that: together less than a second.
const KERNEL_LIMIT: Duration = Duration::from_millis(350);

/// For whom.
#[derive(Clone, Copy, Debug)]
pub(super) enum Output {
    Text,
    Json,
}

/// What can be told without the daemon.
#[derive(Debug, Serialize)]
struct Absent {
    error: String,
    /// Process that holds the lock.
    daemon_pid: Option<u32>,
    /// Whether a daemon holds the lock; unknown without the right to look.
    daemon_runs: Option<bool>,
    kernel: Option<Remains>,
    kernel_error: Option<String>,
}

/// What the kernel still holds of ours.
#[derive(Debug, Serialize)]
struct Remains {
    device: Option<String>,
    addresses: Vec<String>,
    routes: Vec<String>,
    masquerade_table: bool,
    pods: Vec<Pod>,
}

#[derive(Debug, Serialize)]
struct Pod {
    veth: String,
    container: String,
    addresses: Vec<String>,
}

/// Prints what is known.
pub(super) fn status(config: &Config, output: Output) -> ExitCode {
    match client::fetch_status(&config.run_dir, DAEMON_LIMIT) {
        Ok(status) => {
            match output {
                Output::Text => print(&text::render(&status)),
                Output::Json => print_json(&status),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let absent = look(config, format!("{error:#}"));
            match output {
                Output::Text => tell(config, &absent),
                Output::Json => print_json(&absent),
            }
            ExitCode::from(NO_ANSWER)
        }
    }
}

fn print_json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => complain(&error.to_string()),
    }
}

fn look(config: &Config, error: String) -> Absent {
    let (daemon_runs, daemon_pid) = match control::holder(&config.run_dir) {
        Holder::Nobody => (Some(false), None),
        Holder::Process(pid) => (Some(true), pid),
        Holder::Unknown(_) => (None, None),
    };
    let (kernel, kernel_error) = match read_kernel(config.device.clone()) {
        Ok(actual) => (Some(remains(&actual)), None),
        Err(error) => (None, Some(error)),
    };
    Absent { error, daemon_pid, daemon_runs, kernel, kernel_error }
}

fn read_kernel(device: String) -> Result<Actual, String> {
    let (done, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let actual = Kernel::open(&device).and_then(|mut kernel| kernel.read());
        let _ = done.send(actual.map_err(|error| error.to_string()));
    });
    answer.recv_timeout(KERNEL_LIMIT).unwrap_or_else(|_| Err("the kernel did not answer in time".to_owned()))
}

fn remains(actual: &Actual) -> Remains {
    let state = |up: bool| if up { "up" } else { "down" };
    let device = actual.device.as_ref();
    let tun = device.map(|device| Via::Link(device.index));
    let routes = actual.routes.iter().filter(|route| Some(route.via) == tun);
    let pods = actual.veths.iter().filter_map(|veth| {
        let alias = veth.alias.as_ref()?;
        let addresses = alias.addresses.iter().map(ToString::to_string).collect();
        Some(Pod { veth: veth.name.clone(), container: alias.container.clone(), addresses })
    });
    Remains {
        device: device.map(|device| format!("{}, MTU {}, {}", device.name, device.mtu, state(device.up))),
        addresses: actual.device_addresses.iter().map(ToString::to_string).collect(),
        routes: routes.map(|route| route.destination.to_string()).collect(),
        masquerade_table: actual.table.is_some(),
        pods: pods.collect(),
    }
}

fn tell(config: &Config, absent: &Absent) {
    let why = match (absent.daemon_runs, absent.daemon_pid) {
        (Some(true), Some(pid)) => {
            format!("overlayd runs as process {pid} but does not answer: {}", absent.error)
        }
        (Some(true), None) => format!("overlayd runs but does not answer: {}", absent.error),
        (Some(false), _) => format!("overlayd does not run here: {}", absent.error),
        (None, _) => format!("overlayd cannot be asked; are you root? {}", absent.error),
    };
    complain(&why);
    let mut out = String::new();
    match (&absent.kernel, &absent.kernel_error) {
        (Some(kernel), _) => tell_remains(&mut out, config, kernel),
        (None, Some(error)) => complain(&format!("what the kernel holds cannot be read: {error}")),
        (None, None) => {}
    }
    print(&out);
}

fn tell_remains(out: &mut String, config: &Config, kernel: &Remains) {
    let missing = || format!("no device {}", config.device);
    let or_none = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let table = if kernel.masquerade_table { "present" } else { "missing" };
    let lines = [
        format!("device     {}", kernel.device.clone().unwrap_or_else(missing)),
        format!("addresses  {}", or_none(&kernel.addresses)),
        format!("routes     {}", or_none(&kernel.routes)),
        format!("nft table  {table}"),
        format!("pods       {}", kernel.pods.len()),
    ];
    text::list(out, "The kernel holds", lines.into_iter());
    let rows =
        kernel.pods.iter().map(|pod| vec![pod.addresses.join(","), pod.veth.clone(), pod.container.clone()]);
    text::section(out, "Pods", &["ADDRESSES", "VETH", "CONTAINER"], rows);
}
