//! Where the bench runs, and who else uses it.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::report::Machine;

/// CPU that programs outside the lab may use in a measurement before it counts as disturbed: a twentieth of one CPU.
const OTHERS: f64 = 0.05;
/// The same for what a hypervisor takes away.
const STEAL: f64 = 0.02;

pub(crate) fn describe() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = read("/proc/loadavg");
    let memory = read("/proc/meminfo");
    let kilobytes = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    Machine {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: cpu.map_or_else(|| "unknown".into(), |(_, model)| model.to_owned()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: kilobytes.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) << 10,
        load: load.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
    }
}

pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Watches the programs outside the lab.
#[derive(Debug)]
pub(crate) struct Others {
    before: f64,
}

impl Others {
    pub(crate) fn watch() -> Self {
        Self { before: spent_by_others() }
    }

    /// Whether they, or the hypervisor, took too much of a measurement.
    pub(crate) fn disturbed(&self, window: f64, steal: f64) -> bool {
        spent_by_others() - self.before > OTHERS * window || steal > STEAL * window
    }
}

/// Seconds of CPU that processes of this pid namespace have spent, but for this one and for the kernel's own threads. Those of the
/// lab have a pid namespace of their own.
fn spent_by_others() -> f64 {
    let own_space = fs::read_link("/proc/self/ns/pid").ok();
    let own_id = std::process::id().to_string();
    let mut nanoseconds = 0_u64;
    let Ok(entries) = fs::read_dir("/proc") else { return 0.0 };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == own_id || !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let path = entry.path();
        // The kernel's threads have no program.
        let is_program = fs::read_link(path.join("exe")).is_ok();
        if !is_program || fs::read_link(path.join("ns/pid")).ok() != own_space {
            continue;
        }
        let Ok(tasks) = fs::read_dir(path.join("task")) else { continue };
        for task in tasks.flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanoseconds +=
                text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    nanoseconds as f64 / 1e9
}
