//! The test process's end of a lab: one connection to the agent inside.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::binaries::Binaries;
use crate::protocol::{Answer, Request, Step};
use crate::wire_up::{pair, readable_within, receive, send};

/// How long the agent may take for its namespaces or one batch of steps.
const SETUP_DEADLINE: Duration = Duration::from_secs(30);

/// A lab's connection and its outermost process.
#[derive(Debug)]
pub(crate) struct Core {
    binaries: Binaries,
    control: Mutex<Option<OwnedFd>>,
    holder: Mutex<Option<Child>>,
}

impl Core {
    pub(crate) fn start(binaries: Binaries) -> Result<Self> {
        let (ours, theirs) = pair().context("make the lab's control socket")?;
        let holder = Command::new(binaries.agent())
            .arg("hold")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", binaries.agent().display()))?;
        let core = Self { binaries, control: Mutex::new(Some(ours)), holder: Mutex::new(Some(holder)) };
        core.greet()?;
        Ok(core)
    }

    fn greet(&self) -> Result<()> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(control) = control.as_ref() else { bail!("the lab is gone") };
        if !readable_within(control, SETUP_DEADLINE)? {
            bail!("the lab did not start within {SETUP_DEADLINE:?}");
        }
        match receive::<Answer>(control)? {
            Some((Answer::Done, _)) => Ok(()),
            Some((Answer::Failed(why), _)) => bail!(why),
            other => bail!("the lab agent did not start: {:?}", other.map(|(answer, _)| answer)),
        }
    }

    pub(crate) fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Sends a request; the channel on which the answers come.
    pub(crate) fn ask(&self, request: &Request, more: &[RawFd]) -> Result<OwnedFd> {
        let (ours, theirs) = pair()?;
        let mut fds = vec![theirs.as_raw_fd()];
        fds.extend(more);
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(control) = control.as_ref() else {
            bail!("the lab is gone (its deadline passed, or it was dropped)")
        };
        send(control, request, &fds).context("ask the lab agent")?;
        Ok(ours)
    }

    /// Sends a request that is answered once.
    pub(crate) fn settle(&self, request: &Request) -> Result<()> {
        let channel = self.ask(request, &[])?;
        if !readable_within(&channel, SETUP_DEADLINE)? {
            bail!("the lab agent did not answer within {SETUP_DEADLINE:?}");
        }
        match receive::<Answer>(&channel)? {
            Some((Answer::Done, _)) => Ok(()),
            Some((Answer::Failed(why), _)) => bail!(why),
            other => bail!("the lab agent answered {:?}", other.map(|(answer, _)| answer)),
        }
    }

    pub(crate) fn setup(&self, steps: Vec<Step>) -> Result<()> {
        self.settle(&Request::Setup(steps))
    }

    /// Ends everything in the lab and waits until it is gone.
    pub(crate) fn end(&self) {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut holder) = self.holder.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = holder.wait();
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether this machine offers a TUN device at all.
pub(crate) fn check_tun() -> Result<()> {
    let path = Path::new("/dev/net/tun");
    if !path.exists() {
        bail!(
            "no /dev/net/tun on this machine: load the tun module (`modprobe tun`), or give this container the device"
        );
    }
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .map(drop)
        .context("this user may not open /dev/net/tun: run as root, for example `sudo -E cargo demo`")
}
