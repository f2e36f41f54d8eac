//! What the machine and single processes have spent.

use std::fs;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use rustix::param::clock_ticks_per_second;
use tests::load::{ProcessUsage, Usage};

use super::now;

/// `PERF_TYPE_TRACEPOINT`, include/uapi/linux/perf_event.h.
const TRACEPOINT: u64 = 2;
/// `PERF_ATTR_SIZE_VER0`: the first version of `struct perf_event_attr` has all that is needed here.
const ATTRIBUTES: u64 = 64;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: u64 = 1 << 3;

/// Reads what has been spent so far.
#[derive(Debug)]
pub(super) struct Meter {
    processes: Vec<(i32, Option<Vec<fs::File>>)>,
}

/// What had been spent at one time.
#[derive(Debug)]
pub(super) struct Sample {
    at: u64,
    machine: Vec<f64>,
    processes: Vec<ProcessUsage>,
}

impl Meter {
    pub(super) fn open(processes: &[i32], count_syscalls: bool) -> Result<Self> {
        let syscall_event = if count_syscalls { syscall_event() } else { None };
        let mut opened = vec![(std::process::id().cast_signed(), None)];
        for &process in processes {
            let counters = match syscall_event {
                Some(event) => syscall_counters(process, event)?,
                None => None,
            };
            opened.push((process, counters));
        }
        Ok(Self { processes: opened })
    }

    pub(super) fn sample(&self) -> Result<Sample> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let line = text.lines().next().unwrap_or_default();
        let ticks = clock_ticks_per_second() as f64;
        let machine = line.split_whitespace().skip(1).map(|word| number::<f64>(word) / ticks).collect();
        let processes = self.processes.iter().map(|(id, counters)| process(*id, counters.as_deref()));
        Ok(Sample { at: now(), machine, processes: processes.collect::<Result<_>>()? })
    }
}

impl Sample {
    pub(super) fn since(&self, before: &Self) -> Usage {
        // user, nice, system, idle, iowait, irq, softirq, steal: see proc_stat(5).
        let spent = |at: usize| {
            let value = |sample: &Self| sample.machine.get(at).copied().unwrap_or_default();
            value(self) - value(before)
        };
        let processes = self.processes.iter().zip(&before.processes).map(|(now, then)| ProcessUsage {
            cpu: now.cpu - then.cpu,
            switches: now.switches.saturating_sub(then.switches),
            syscalls: now.syscalls.zip(then.syscalls).map(|(now, then)| now - then),
            rss: now.rss,
        });
        let mut processes: Vec<ProcessUsage> = processes.collect();
        let client = processes.remove(0);
        Usage {
            seconds: (self.at - before.at) as f64 / 1e9,
            busy: [0, 1, 2, 5, 6].map(spent).iter().sum(),
            softirq: spent(6),
            steal: spent(7),
            client,
            processes,
        }
    }
}

fn number<T: FromStr + Default>(word: &str) -> T {
    word.parse().unwrap_or_default()
}

fn tasks(process: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{process}/task");
    let entries = fs::read_dir(&path).with_context(|| format!("read {path}"))?;
    Ok(entries.flatten().map(|entry| number(&entry.file_name().to_string_lossy())).collect())
}

fn process(id: i32, counters: Option<&[fs::File]>) -> Result<ProcessUsage> {
    let (mut switches, mut rss) = (0, 0);
    for task in tasks(id)? {
        // A thread may end meanwhile.
        let status = fs::read_to_string(format!("/proc/{id}/task/{task}/status")).unwrap_or_default();
        for (key, value) in status.lines().filter_map(|line| line.split_once(':')) {
            let value = number::<u64>(value.split_whitespace().next().unwrap_or_default());
            match key {
                "voluntary_ctxt_switches" | "nonvoluntary_ctxt_switches" => switches += value,
                "VmRSS" => rss = value << 10,
                _ => {}
            }
        }
    }
    let syscalls = counters.map(|counters| counters.iter().map(read_counter).sum());
    Ok(ProcessUsage { cpu: processor_time(id)?, switches, syscalls, rss })
}

/// The id of the tracepoint that every system call passes. Only this mount namespace sees the file system that tells it.
fn syscall_event() -> Option<u64> {
    const DIRECTORY: &str = "/sys/kernel/tracing";
    let path = format!("{DIRECTORY}/events/raw_syscalls/sys_enter/id");
    if !fs::exists(&path).unwrap_or(false) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tracefs"), DIRECTORY, Some("tracefs"), flags, None::<&str>).ok()?;
    }
    fs::read_to_string(&path).ok()?.trim().parse().ok()
}

fn read_counter(mut counter: &fs::File) -> u64 {
    let mut value = [0; 8];
    counter.read_exact(&mut value).map_or(0, |()| u64::from_ne_bytes(value))
}

/// Seconds of CPU, exactly, threads that are over included.
fn processor_time(process: i32) -> Result<f64> {
    let mut clock = 0;
    // SAFETY: all zeroes is a valid value of this plain data.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the places to write to outlive the calls, each of the type that its call expects.
    let done = unsafe {
        libc::clock_getcpuclockid(process, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    ensure!(done, "process {process} is gone");
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// One counter of a tracepoint for each thread; `None` if the kernel does not let us.
fn syscall_counters(process: i32, event: u64) -> Result<Option<Vec<fs::File>>> {
    let mut counters = Vec::new();
    for task in tasks(process)? {
        // type and size, config, sample_period, sample_type, read_format, flags, wakeup_events and bp_type, config1.
        let attributes = [TRACEPOINT | ATTRIBUTES << 32, event, 0, 0, 0, 0, 0, 0];
        // SAFETY: the attributes are as long as they say and outlive the call.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), task, -1, -1, CLOSE_ON_EXEC)
        };
        if fd < 0 {
            return Ok(None);
        }
        // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
        counters.push(fs::File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) }));
    }
    Ok(Some(counters))
}

/// Lets all threads of these processes run on one CPU, or anywhere.
pub(crate) fn pin(cpu: &str, processes: &[i32]) -> Result<()> {
    let cpu = (cpu != "any").then(|| cpu.parse()).transpose().context("a CPU's number, or any")?;
    for process in processes {
        for task in tasks(*process)? {
            pin_thread(cpu, rustix::process::Pid::from_raw(task))?;
        }
    }
    Ok(())
}

/// Lets one thread (the calling one, if none is named) and what it starts run on one CPU, or anywhere.
pub(super) fn pin_thread(cpu: Option<usize>, thread: Option<rustix::process::Pid>) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    match cpu {
        Some(cpu) => set.set(cpu),
        None => (0..rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu)),
    }
    rustix::thread::sched_setaffinity(thread, &set).context("choose CPUs")
}
