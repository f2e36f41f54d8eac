//! The processes that hold a lab: `holder` (outside, waits), process 1 of the lab's pid namespace (reaps), and
//! the server (starts everything). The server ends when its control socket closes, which is also what
//! happens when the test process is killed; then process 1 ends, and the kernel kills the rest.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid, setsid};
use tests::protocol::{Answer, Exit, Order, ROOT, Request, Spawn};
use tests::wire_up::{receive, send};

use crate::net;

const NODE_SPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// The open namespaces of one node.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) net: OwnedFd,
    mount: OwnedFd,
    uts: OwnedFd,
    ipc: OwnedFd,
}

impl Space {
    fn of_this_thread() -> Result<Self> {
        let open = |kind: &str| {
            let path = format!("/proc/thread-self/ns/{kind}");
            fs::File::open(&path).map(OwnedFd::from).with_context(|| format!("open {path}"))
        };
        Ok(Self { net: open("net")?, mount: open("mnt")?, uts: open("uts")?, ipc: open("ipc")? })
    }

    /// Async-signal-safe: called between fork and exec.
    fn enter(&self) -> nix::Result<()> {
        setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        setns(&self.uts, CloneFlags::CLONE_NEWUTS)?;
        setns(&self.ipc, CloneFlags::CLONE_NEWIPC)?;
        setns(&self.mount, CloneFlags::CLONE_NEWNS)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Spaces(Mutex<HashMap<String, Arc<Space>>>);

impl Spaces {
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Space>> {
        let spaces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.get(name).cloned().ok_or_else(|| anyhow!("no node or host {name} in this lab"))
    }

    fn insert(&self, name: String, space: Space) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(space));
    }
}

/// The process that the test process starts. Its standard input is the control socket.
pub(crate) fn hold() -> Result<()> {
    let control = io::stdin().as_fd().try_clone_to_owned().context("control socket")?;
    let host = netns_inode()?;
    if let Err(error) = enter_lab_spaces() {
        send(&control, &Answer::Failed(format!("{error:#}")), &[])?;
        return Ok(());
    }
    // SAFETY: no other thread exists yet.
    match unsafe { fork() }.context("fork process 1 of the lab")? {
        ForkResult::Parent { child } => {
            drop(control);
            let null = fs::File::open("/dev/null")?;
            nix::unistd::dup2_stdin(&null)?;
            waitpid(child, None).context("wait for the lab")?;
            Ok(())
        }
        ForkResult::Child => {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            be_process_one(control, host)
        }
    }
}

fn netns_inode() -> Result<u64> {
    Ok(fs::metadata("/proc/self/ns/net").context("look at /proc/self/ns/net")?.ino())
}

/// Own namespaces; a user namespace too where that is the only way.
fn enter_lab_spaces() -> Result<()> {
    let flags = NODE_SPACES | CloneFlags::CLONE_NEWPID;
    match unshare(flags) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno).context("make the lab's namespaces"),
    }
    let (uid, gid) = (geteuid(), getegid());
    let no = "this user may not make user namespaces here: run as root, for example `sudo -E cargo demo`";
    unshare(CloneFlags::CLONE_NEWUSER).context(no)?;
    fs::write("/proc/self/setgroups", "deny").context(no)?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context(no)?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context(no)?;
    unshare(flags).context(no)
}

fn be_process_one(control: OwnedFd, host_netns: u64) -> Result<()> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork the lab's server")? {
        ForkResult::Child => serve(&control, host_netns),
        ForkResult::Parent { child } => {
            drop(control);
            let null = fs::File::open("/dev/null")?;
            nix::unistd::dup2_stdin(&null)?;
            loop {
                match waitpid(None, None) {
                    Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid == child => {
                        return Ok(());
                    }
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno).context("reap"),
                }
            }
        }
    }
}

fn serve(control: &OwnedFd, host_netns: u64) -> Result<()> {
    // The duplicate on descriptor 0 would keep nothing alive, but children must not inherit it.
    nix::unistd::dup2_stdin(fs::File::open("/dev/null")?)?;
    let spaces = Arc::new(Spaces::default());
    let ready = prepare_root(host_netns).and_then(|()| Space::of_this_thread());
    match ready {
        Ok(space) => {
            spaces.insert(ROOT.into(), space);
            send(control, &Answer::Done, &[])?;
        }
        Err(error) => {
            send(control, &Answer::Failed(format!("{error:#}")), &[])?;
            return Ok(());
        }
    }
    while let Some((request, fds)) = receive::<Request>(control)? {
        let spaces = Arc::clone(&spaces);
        std::thread::Builder::new()
            .name("request".into())
            .spawn(move || answer(&spaces, request, fds))
            .context("start a thread")?;
    }
    Ok(())
}

fn prepare_root(host_netns: u64) -> Result<()> {
    ensure!(netns_inode()? != host_netns, "the lab is not isolated: still in the host's network namespace");
    make_private()?;
    // Refused where the outer /proc is masked (containers): the outer one serves too, with outer process ids.
    let _ = mount_special("proc", "/proc");
    rustix::system::sethostname(b"lab").context("set the lab's host name")?;
    mount_run()?;
    skip_address_detection();
    bridge_without_netfilter();
    net::loopback_up().context("set lo up in the lab")
}

/// The lab's bridge stands for a switch, which looks at no rules. Where `br_netfilter` is loaded each new namespace starts with it on,
/// and every packet between nodes would pass the hooks of a router.
fn bridge_without_netfilter() {
    for family in ["iptables", "ip6tables", "arptables"] {
        let _ = fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "0");
    }
}

/// Addresses are wanted at once, also those that the kernel makes itself. A kernel without IPv6 has none.
fn skip_address_detection() {
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
    let _ = fs::write("/proc/sys/net/ipv6/conf/all/accept_dad", "0");
}

fn make_private() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make the lab's mounts private")
}

fn mount_special(kind: &str, target: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(kind), target, Some(kind), flags, None::<&str>)
        .with_context(|| format!("mount {kind} on {target}"))
}

fn mount_run() -> Result<()> {
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
        .context("mount tmpfs on /run")?;
    fs::create_dir_all("/run/netns").context("make /run/netns")
}

fn answer(spaces: &Arc<Spaces>, request: Request, mut fds: Vec<OwnedFd>) {
    if fds.is_empty() {
        return;
    }
    let channel = fds.remove(0);
    let result = match request {
        Request::Space(name) => make_space(spaces, name).map(|()| Answer::Done),
        Request::Setup(steps) => net::carry_out(spaces, &steps).map(|()| Answer::Done),
        Request::Spawn(spawn) => match start(spaces, &spawn, fds) {
            Ok(child) => {
                // Starting waits until the program is loaded; what the lab does before is none of its time.
                attend(child, Instant::now(), &channel, spawn.interactive);
                return;
            }
            Err(error) => Err(error),
        },
    };
    let reply = result.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
    // A failed send means that the asker is gone.
    let _ = send(&channel, &reply, &[]);
}

/// A thread enters new namespaces, prepares them and leaves them open as descriptors.
fn make_space(spaces: &Arc<Spaces>, name: String) -> Result<()> {
    let hostname = name.clone();
    let space = in_thread(move || {
        unshare(NODE_SPACES).context("make namespaces")?;
        make_private()?;
        // Shows this namespace's links. Refused where the outer /sys is masked; then it shows the host's.
        let _ = mount_special("sysfs", "/sys");
        mount_run()?;
        rustix::system::sethostname(hostname.as_bytes()).context("set host name")?;
        net::loopback_up().context("set lo up")?;
        skip_address_detection();
        Space::of_this_thread()
    })
    .with_context(|| format!("prepare {name}"))?;
    spaces.insert(name, space);
    Ok(())
}

fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match std::thread::spawn(work).join() {
        Ok(result) => result,
        Err(_) => bail!("a thread of the lab agent panicked; its message is above"),
    }
}

/// Runs work in the network namespace of a space, on a thread of its own.
pub(crate) fn in_space<T: Send + 'static>(
    space: Arc<Space>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    in_thread(move || {
        setns(&space.net, CloneFlags::CLONE_NEWNET).context("enter network namespace")?;
        work()
    })
}

fn start(spaces: &Spaces, spawn: &Spawn, fds: Vec<OwnedFd>) -> Result<Child> {
    let space = spaces.get(&spawn.space)?;
    let (program, args) = spawn.argv.split_first().context("no program given")?;
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(fds).map_err(|_| anyhow!("need three descriptors"))?;
    let netns = match &spawn.netns {
        Some(path) => Some(
            std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).context("netns path with a NUL")?,
        ),
        None => None,
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(spawn.env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr));
    let interactive = spawn.interactive;
    // SAFETY: between fork and exec only system calls are made; nothing allocates or locks.
    unsafe {
        command.pre_exec(move || {
            if !interactive {
                setsid()?;
            }
            space.enter()?;
            if let Some(path) = &netns {
                let fd = rustix::fs::open(
                    path.as_c_str(),
                    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                )?;
                setns(&fd, CloneFlags::CLONE_NEWNET)?;
            }
            Ok(())
        });
    }
    command.spawn().with_context(|| format!("start {program}"))
}

/// Stays with a process until it ends, or until nobody wants it any more.
fn attend(mut child: Child, began: Instant, channel: &OwnedFd, interactive: bool) {
    let id = Pid::from_raw(child.id().cast_signed());
    let _ = send(channel, &Answer::Started(id.as_raw()), &[]);
    let Some(watch) = rustix::process::Pid::from_raw(id.as_raw())
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
    else {
        let _ = child.kill();
        let _ = child.wait();
        return;
    };
    loop {
        let mut fds =
            [PollFd::new(watch.as_fd(), PollFlags::POLLIN), PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        let any = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if any(&fds[0]) {
            break;
        }
        if any(&fds[1]) {
            match receive::<Order>(channel) {
                Ok(Some((Order::Signal(number), _))) => {
                    if let Ok(signal) = Signal::try_from(number) {
                        let _ = kill(id, signal);
                    }
                }
                Ok(None) | Err(_) => {
                    if !interactive {
                        let _ = killpg(id, Signal::SIGKILL);
                    }
                    let _ = child.kill();
                    break;
                }
            }
        }
    }
    if let Ok(status) = child.wait() {
        let exit = Exit { code: status.code(), signal: status.signal(), took: began.elapsed() };
        let _ = send(channel, &Answer::Exited(exit), &[]);
    }
}

/// In a mount namespace of its own: `/proc/sys` cannot be written, and of it `net` can be written at `path`.
pub(crate) fn contain_sysctls(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("make the mounts ours")?;
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    let bind = |source: &Path, target: &Path, flags| {
        mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)
            .with_context(|| format!("mount {} on {}", source.display(), target.display()))
    };
    let sysctls = Path::new("/proc/sys");
    bind(&sysctls.join("net"), path, MsFlags::empty())?;
    bind(sysctls, sysctls, MsFlags::empty())?;
    bind(sysctls, sysctls, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)
}

/// Makes a named network namespace in this mount namespace, as a container runtime does.
pub(crate) fn add_netns(name: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(name);
    fs::create_dir_all("/run/netns").context("make /run/netns")?;
    fs::File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
    unshare(CloneFlags::CLONE_NEWNET).context("make network namespace")?;
    net::loopback_up().context("set lo up")?;
    mount(Some("/proc/self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {}", path.display()))
}

/// Removes it again.
pub(crate) fn delete_netns(name: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(name);
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH)
        .with_context(|| format!("unmount {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}
