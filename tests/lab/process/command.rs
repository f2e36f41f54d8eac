//! What to run inside the lab, and how.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use serde::de::DeserializeOwned;

use super::capture::Capture;
use super::{Output, PATIENCE, Process};
use crate::host::Host;
use crate::must;
use crate::protocol::{Answer, Exit, Request, Spawn};
use crate::refusal::Refusal;
use crate::wire_up::receive;

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

    /// As [`Command::bounded`], in a mount namespace as a container runtime makes it: `/proc/sys` is read-only, and of it `net`
    /// can be written at `net_at`.
    pub fn contained(mut self, capability: u32, net_at: &str) -> Self {
        let agent = self.host.core().binaries().agent().to_string_lossy().into_owned();
        let words = [&agent, "bounded", "--sysctl-net", net_at, &capability.to_string(), "--"];
        self.argv.splice(0..0, words.map(str::to_owned));
        self
    }

    /// Runs it under a kernel that refuses this offload.
    pub fn under(mut self, refusal: Refusal) -> Self {
        let agent = self.host.core().binaries().agent().to_string_lossy().into_owned();
        let name = refusal.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        self.argv.splice(0..0, [agent, "refuse".to_owned(), name, "--".to_owned()]);
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
