//! Processes inside the lab.

mod capture;
mod command;

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;

use self::capture::Capture;
pub use self::capture::tail;
pub use self::command::Command;
use crate::must;
use crate::protocol::{Answer, Exit, Order};
use crate::wire_up::{readable_within, receive, send};

/// How long anything may take unless it says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a process.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit.code == Some(0)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.exit {
            Exit { code: Some(code), .. } => write!(f, "exit code {code}")?,
            Exit { signal: Some(signal), .. } => write!(f, "signal {signal}")?,
            Exit { .. } => write!(f, "no exit status")?,
        }
        write!(f, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout.trim_end(), self.stderr.trim_end())
    }
}

/// A running process inside the lab. Killed, with its process group, when dropped.
#[derive(Debug)]
pub struct Process {
    what: String,
    pid: i32,
    channel: OwnedFd,
    stdin: Mutex<Option<OwnedFd>>,
    stdout: Capture,
    stderr: Capture,
    exit: Mutex<Option<Exit>>,
}

impl Process {
    /// Its id as processes inside the lab see it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. No effect on a process that is over.
    pub fn signal(&self, signal: i32) {
        let _ = send(&self.channel, &Order::Signal(signal), &[]);
    }

    /// Sends SIGKILL and waits until it is gone.
    ///
    /// # Panics
    /// If it is not gone within 20 s.
    #[track_caller]
    pub fn kill(&self) -> Exit {
        self.signal(libc::SIGKILL);
        self.wait(PATIENCE)
    }

    /// Sends SIGTERM and waits; the exit.
    ///
    /// # Panics
    /// If it is not gone by the deadline.
    #[track_caller]
    pub fn terminate(&self, deadline: Duration) -> Exit {
        self.signal(libc::SIGTERM);
        self.wait(deadline)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If the deadline passes.
    #[track_caller]
    pub fn wait(&self, deadline: Duration) -> Exit {
        must(self.try_wait(deadline).and_then(|exit| {
            exit.ok_or_else(|| anyhow!("{} was not over after {deadline:?}\n{}", self.what, self.tail()))
        }))
    }

    /// Its exit, or `None` if it still runs after this time.
    ///
    /// # Errors
    /// If the lab is gone.
    pub fn try_wait(&self, time: Duration) -> Result<Option<Exit>> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_some() {
            return Ok(*exit);
        }
        if !readable_within(&self.channel, time)? {
            return Ok(None);
        }
        match receive::<Answer>(&self.channel)? {
            Some((Answer::Exited(status), _)) => *exit = Some(status),
            _ => bail!("the lab went away under {}", self.what),
        }
        Ok(*exit)
    }

    /// Whether it still runs.
    #[must_use]
    pub fn running(&self) -> bool {
        matches!(self.try_wait(Duration::ZERO), Ok(None))
    }

    /// Ends its standard input: for the tools of the lab this means "enough, report".
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Ends its standard input and waits for its end.
    ///
    /// # Panics
    /// If it does not end within 20 s.
    #[track_caller]
    pub fn finish(self) -> Output {
        must(self.try_finish(PATIENCE))
    }

    /// Ends its standard input and waits for its end.
    ///
    /// # Errors
    /// If it does not end by the deadline.
    pub fn try_finish(self, deadline: Duration) -> Result<Output> {
        self.close_stdin();
        let end = Instant::now() + deadline;
        let Some(exit) = self.try_wait(deadline)? else {
            bail!("{} was not over after {deadline:?}\n{}", self.what, self.tail());
        };
        // A grandchild that holds the pipes open must not make the test hang.
        self.stdout.wait_end(end);
        self.stderr.wait_end(end);
        Ok(Output { exit, stdout: self.stdout.text(), stderr: self.stderr.text() })
    }

    /// Ends its standard input, waits for success, reads the last line of its output as JSON.
    ///
    /// # Panics
    /// If it fails or prints something else.
    #[track_caller]
    pub fn finish_json<T: DeserializeOwned>(self) -> T {
        let what = self.what.clone();
        let output = self.finish();
        assert!(output.success(), "{what} failed: {output}");
        let last = output.stdout.lines().last().unwrap_or_default();
        must(serde_json::from_str(last).with_context(|| format!("{what} printed {last:?}")))
    }

    /// What it printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it wrote to standard error so far: the log of a daemon.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for a line on standard output that satisfies the condition.
    ///
    /// # Panics
    /// If it does not come within 20 s or the process ends without it.
    #[track_caller]
    pub fn wait_stdout(&self, condition: impl Fn(&str) -> bool) -> String {
        self.wait_line(&self.stdout, condition)
    }

    /// Waits for a line on standard error that satisfies the condition.
    ///
    /// # Panics
    /// If it does not come within 20 s or the process ends without it.
    #[track_caller]
    pub fn wait_stderr(&self, condition: impl Fn(&str) -> bool) -> String {
        self.wait_line(&self.stderr, condition)
    }

    #[track_caller]
    fn wait_line(&self, capture: &Capture, condition: impl Fn(&str) -> bool) -> String {
        must(capture.wait_line(Instant::now() + PATIENCE, condition).ok_or_else(|| {
            anyhow!("{} did not say what was waited for within {PATIENCE:?}\n{}", self.what, self.tail())
        }))
    }

    fn tail(&self) -> String {
        format!(
            "--- stdout\n{}\n--- stderr\n{}",
            tail(&self.stdout.text(), 40),
            tail(&self.stderr.text(), 40)
        )
    }
}
