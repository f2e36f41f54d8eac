//! Processes inside the lab.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;

use crate::host::Host;
use crate::must;
use crate::protocol::{Answer, Exit, Order, Request, Spawn};
use crate::wire_up::{readable_within, receive, send};

/// How long anything may take unless it says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A command to run inside the lab. Made by [`Host::command`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Command {
    host: Host,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

impl Command {
    pub(crate) fn new(host: Host, program: String) -> Self {
        Self { host, argv: vec![program], env: Vec::new(), stdin: None, deadline: PATIENCE }
    }

    /// One more argument.
    #[expect(clippy::needless_pass_by_value, reason = "words and numbers read better without &")]
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.argv.push(arg.to_string());
        self
    }

    /// More arguments.
    pub fn args<T: ToString>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.argv.extend(args.into_iter().map(|arg| arg.to_string()));
        self
    }

    /// An environment variable on top of the test's own.
    #[expect(clippy::needless_pass_by_value, reason = "words and numbers read better without &")]
    pub fn env(mut self, key: &str, value: impl ToString) -> Self {
        self.env.push((key.to_owned(), value.to_string()));
        self
    }

    /// Standard input, which then ends. Without this it stays open until the process is finished.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Leaves it no capability but this one (number as in `linux/capability.h`), and no way to get more.
    pub fn bounded(mut self, capability: u32) -> Self {
        let agent = self.host.core().binaries().agent().to_string_lossy().into_owned();
        let prefix = [agent, "bounded".to_owned(), capability.to_string(), "--".to_owned()];
        self.argv.splice(0..0, prefix);
        self
    }

    /// How long [`Command::output`] and [`Command::run`] wait before they kill it and fail.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn spawn(self) -> Process {
        must(self.try_spawn())
    }

    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn try_spawn(self) -> Result<Process> {
        let what = format!("{} on {}", self.argv.join(" "), self.host.label());
        let (in_read, in_write) = std::io::pipe().context("make a pipe")?;
        let (out_read, out_write) = std::io::pipe().context("make a pipe")?;
        let (err_read, err_write) = std::io::pipe().context("make a pipe")?;
        let stdio = [in_read.as_raw_fd(), out_write.as_raw_fd(), err_write.as_raw_fd()];
        let (channel, pid) = self.start(&stdio, false).with_context(|| format!("start {what}"))?;
        let stdin = match self.stdin {
            Some(bytes) => {
                let mut pipe = in_write;
                // Written aside: a program that does not read must not block the test.
                std::thread::spawn(move || pipe.write_all(&bytes));
                None
            }
            None => Some(OwnedFd::from(in_write)),
        };
        Ok(Process {
            what,
            pid,
            channel,
            stdin: Mutex::new(stdin),
            stdout: Capture::of(out_read),
            stderr: Capture::of(err_read),
            exit: Mutex::new(None),
        })
    }

    /// Runs it on the test's own terminal until it ends.
    ///
    /// # Errors
    /// If it cannot be started, or the lab dies.
    pub fn interact(self) -> Result<Exit> {
        let (channel, _) = self.start(&[0, 1, 2], true)?;
        match receive::<Answer>(&channel)? {
            Some((Answer::Exited(exit), _)) => Ok(exit),
            _ => bail!("the lab is gone"),
        }
    }

    fn start(&self, stdio: &[i32; 3], interactive: bool) -> Result<(OwnedFd, i32)> {
        let request = Request::Spawn(Spawn {
            space: self.host.space().to_owned(),
            netns: self.host.netns().map(std::path::Path::to_owned),
            argv: self.argv.clone(),
            env: self.env.clone(),
            interactive,
        });
        let channel = self.host.core().ask(&request, stdio)?;
        match receive::<Answer>(&channel)? {
            Some((Answer::Started(pid), _)) => Ok((channel, pid)),
            Some((Answer::Failed(why), _)) => bail!(why),
            Some((other, _)) => bail!("unexpected answer {other:?}"),
            None => bail!("the lab is gone"),
        }
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Panics
    /// If it cannot be started or is not over by the deadline.
    #[track_caller]
    pub fn output(self) -> Output {
        must(self.try_output())
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// If it cannot be started or is not over by the deadline.
    pub fn try_output(self) -> Result<Output> {
        let deadline = self.deadline;
        self.try_spawn()?.try_finish(deadline)
    }

    /// Runs it to its end, which must be success; its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn run(self) -> String {
        must(self.try_run())
    }

    /// Runs it to its end, which must be success; its standard output.
    ///
    /// # Errors
    /// If it fails; with its standard error.
    pub fn try_run(self) -> Result<String> {
        let what = format!("{} on {}", self.argv.join(" "), self.host.label());
        let output = self.try_output()?;
        if !output.success() {
            bail!("{what} failed: {output}");
        }
        Ok(output.stdout)
    }

    /// Runs it; its standard output, read as JSON.
    ///
    /// # Panics
    /// If it fails or prints something else.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(self) -> T {
        must(self.try_json())
    }

    /// Runs it; its standard output, read as JSON.
    ///
    /// # Errors
    /// If it fails or prints something else.
    pub fn try_json<T: DeserializeOwned>(self) -> Result<T> {
        let text = self.try_run()?;
        serde_json::from_str(&text).with_context(|| format!("not the expected JSON: {text}"))
    }
}

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

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Everything that came out of a pipe, gathered by a thread.
#[derive(Clone, Debug)]
struct Capture(Arc<(Mutex<Captured>, Condvar)>);

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    fn of(mut pipe: std::io::PipeReader) -> Self {
        let capture = Self(Arc::default());
        let shared = Arc::clone(&capture.0);
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let got = pipe.read(&mut buffer).unwrap_or(0);
                let mut captured = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                captured.bytes.extend(&buffer[..got]);
                captured.ended = got == 0;
                shared.1.notify_all();
                if got == 0 {
                    return;
                }
            }
        });
        capture
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap_or_else(PoisonError::into_inner).bytes).into_owned()
    }

    fn wait_end(&self, deadline: Instant) {
        let captured = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        drop(self.0.1.wait_timeout_while(captured, left, |captured| !captured.ended));
    }

    fn wait_line(&self, deadline: Instant, condition: impl Fn(&str) -> bool) -> Option<String> {
        let mut captured = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let text = String::from_utf8_lossy(&captured.bytes);
            // The last piece may be half a line.
            let complete = if captured.ended { text.len() } else { text.rfind('\n').map_or(0, |at| at + 1) };
            if let Some(line) = text[..complete].lines().find(|line| condition(line)) {
                return Some(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if captured.ended || left.is_zero() {
                return None;
            }
            captured = self.0.1.wait_timeout(captured, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
