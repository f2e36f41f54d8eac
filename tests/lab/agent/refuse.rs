//! A kernel that refuses an offload, for one program: its system calls stop at a seccomp listener (seccomp_unotify(2)), which fails
//! those that make use of the offload and lets the kernel carry out all others.
//!
//! The program becomes this process; the listener is a child of it that ends with it.

use std::fs;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tests::Refusal;
use wire::packet::{GsoKind, VNET_LEN, VirtioNetHdr};

/// `AUDIT_ARCH_*` of `linux/audit.h`.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

/// Offsets in `struct seccomp_data`; of an argument the lower half comes first (little endian).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// No frame of a TUN device is shorter: virtio-net header and IPv4 header.
const SHORTEST: u32 = VNET_LEN as u32 + 20;

/// `TUN_F_UDP_TUNNEL_GSO` of `linux/if_tun.h`.
const UDP_TUNNEL_GSO: u64 = 0x80;

/// As much of a control message as any sender needs.
const CONTROL: usize = 256;

/// Becomes this program, under a kernel that refuses this.
pub(crate) fn under(refusal: Refusal, argv: &[String]) -> Result<()> {
    let (program, args) = argv.split_first().context("no program given")?;
    let ((mut told, mut tell), (mut taken, take)) = (io::pipe()?, io::pipe()?);
    let parent = rustix::process::getpid();
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork the listener")? {
        ForkResult::Child => {
            drop((tell, taken));
            nix::unistd::dup2_stdin(fs::File::open("/dev/null")?)?;
            let mut number = [0; 4];
            told.read_exact(&mut number).context("the program did not come to be")?;
            let process = pidfd_open(parent, PidfdFlags::empty()).context("look at the program")?;
            let flags = PidfdGetfdFlags::empty();
            let listener =
                pidfd_getfd(process, i32::from_ne_bytes(number), flags).context("take the listener")?;
            drop(take);
            listen(&listener, refusal)
        }
        ForkResult::Parent { .. } => {
            drop((told, take));
            let listener = install(refusal).context("install a seccomp filter")?;
            // By its number: descriptors are passed in messages, which may be what waits for the listener.
            tell.write_all(&listener.as_raw_fd().to_ne_bytes())?;
            taken.read_to_end(&mut Vec::new())?;
            drop(listener);
            Err(Command::new(program).args(args).exec()).with_context(|| format!("become {program}"))
        }
    }
}

/// From now on the calls of this process that might use the offload wait for the listener that is returned.
fn install(refusal: Refusal) -> io::Result<OwnedFd> {
    let (load, equal) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let end = |action: u32| step(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    // Which calls might: a number, an argument, and what is to be true of it.
    let write = (libc::SYS_write, 2, at_least, SHORTEST);
    let suspects = match refusal {
        Refusal::Tso | Refusal::Uso => vec![write],
        Refusal::UsoUnknown => vec![write, (libc::SYS_ioctl, 1, equal, libc::TUNSETOFFLOAD as u32)],
        // Any number of pieces.
        Refusal::TunnelGso => vec![(libc::SYS_writev, 2, at_least, 1)],
        Refusal::TunnelGsoUnknown => vec![(libc::SYS_ioctl, 1, equal, libc::TUNSETOFFLOAD as u32)],
        // Any flags.
        Refusal::UdpSegment => vec![(libc::SYS_sendmsg, 2, at_least, 0)],
    };
    let mut filter =
        vec![step(load, ARCH, 0, 0), step(equal, ARCHITECTURE, 1, 0), end(libc::SECCOMP_RET_ALLOW)];
    for (number, argument, test, value) in suspects {
        filter.extend([
            step(load, NUMBER, 0, 0),
            step(equal, number as u32, 0, 3),
            step(load, ARGUMENTS + 8 * argument, 0, 0),
            step(test, value, 0, 1),
            end(libc::SECCOMP_RET_USER_NOTIF),
        ]);
    }
    filter.push(end(libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the kernel copies the program, which is as long as it says, within the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Answers until nobody is left who could ask.
fn listen(listener: &OwnedFd, refusal: Refusal) -> Result<()> {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("wait for a system call"),
        }
        let events = fds[0].revents().unwrap_or(PollFlags::POLLHUP);
        if !events.contains(PollFlags::POLLIN) {
            return Ok(());
        }
        let Some(call) = next(listener).context("take a system call")? else { continue };
        let refused = call.uses(refusal);
        answer(listener, call.id, refused.then_some(refusal.errno())).context("answer a system call")?;
        if refused {
            eprintln!("lab-agent: {}", refusal.words());
        }
    }
}

/// A call that waits.
struct Call {
    id: u64,
    number: i64,
    process: Pid,
    arguments: [u64; 6],
}

/// `None` if its caller is gone.
fn next(listener: &OwnedFd) -> io::Result<Option<Call>> {
    // SAFETY: all zeroes is a valid value of this plain data, and what the kernel asks for.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure, which outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) };
    match Errno::result(result) {
        Ok(_) => Ok(Some(Call {
            id: asked.id,
            number: asked.data.nr.into(),
            process: Pid::from_raw(asked.pid.cast_signed()),
            arguments: asked.data.args,
        })),
        Err(Errno::ENOENT | Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Fails a call, or lets the kernel carry it out.
fn answer(listener: &OwnedFd, id: u64, failure: Option<i32>) -> io::Result<()> {
    let (error, flags) = match failure {
        Some(errno) => (-errno, 0),
        None => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let mut response = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the kernel reads one such structure, which outlives the call.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    match Errno::result(result) {
        // Its caller is gone.
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Call {
    fn uses(&self, refusal: Refusal) -> bool {
        match refusal {
            Refusal::UsoUnknown if self.number == libc::SYS_ioctl => {
                self.arguments[2] & u64::from(libc::TUN_F_USO4 | libc::TUN_F_USO6) != 0
            }
            Refusal::Tso | Refusal::Uso | Refusal::UsoUnknown => {
                self.written_to_tun().is_some_and(|kind| match kind {
                    GsoKind::Tcp4 | GsoKind::Tcp6 => refusal == Refusal::Tso,
                    GsoKind::Udp => refusal != Refusal::Tso,
                    GsoKind::None => false,
                })
            }
            // Nothing else is written in pieces there.
            Refusal::TunnelGso => self.is_of_tun(),
            Refusal::TunnelGsoUnknown => self.arguments[2] & UDP_TUNNEL_GSO != 0,
            Refusal::UdpSegment => self.asks_for_segments().unwrap_or(false),
        }
    }

    /// Whether its descriptor is that of a TUN or TAP device.
    fn is_of_tun(&self) -> bool {
        let open = fs::read_link(format!("/proc/{}/fd/{}", self.process, self.arguments[0]));
        open.is_ok_and(|open| open.ends_with("net/tun"))
    }

    /// What kind of frame it writes, if it writes to a TUN device.
    fn written_to_tun(&self) -> Option<GsoKind> {
        if !self.is_of_tun() {
            return None;
        }
        let buffer = self.arguments[1];
        let mut header = [0; VNET_LEN];
        self.read(buffer, &mut header).ok()?;
        VirtioNetHdr::split(&header)?.0.kind()
    }

    /// Whether a message comes with `UDP_SEGMENT`.
    fn asks_for_segments(&self) -> Result<bool> {
        let mut message = [0; size_of::<libc::msghdr>()];
        self.read(self.arguments[1], &mut message)?;
        let word = |bytes: &[u8], at: usize| -> Result<u64> {
            let bytes =
                bytes.get(at..).and_then(<[u8]>::first_chunk).context("a control message cut short")?;
            Ok(u64::from_ne_bytes(*bytes))
        };
        let control = word(&message, std::mem::offset_of!(libc::msghdr, msg_control))?;
        let length = word(&message, std::mem::offset_of!(libc::msghdr, msg_controllen))? as usize;
        ensure!(length <= CONTROL, "a control message of {length} bytes");
        let mut bytes = vec![0; length];
        if length > 0 {
            self.read(control, &mut bytes)?;
        }
        // Each is its length, level and type, and what they are about, padded to words.
        let mut rest = &bytes[..];
        while rest.len() >= size_of::<libc::cmsghdr>() {
            let length = word(rest, 0)? as usize;
            let what = word(rest, 8)?.to_ne_bytes();
            let wanted = [libc::SOL_UDP.to_ne_bytes(), libc::UDP_SEGMENT.to_ne_bytes()].concat();
            if what[..] == wanted[..] {
                return Ok(true);
            }
            rest = rest.get(length.max(1).next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(false)
    }

    /// Reads memory of the caller, which cannot change it meanwhile: it waits.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let length = bytes.len();
        let there = [RemoteIoVec { base: at as usize, len: length }];
        let read = process_vm_readv(self.process, &mut [IoSliceMut::new(bytes)], &there)
            .context("read memory of the program")?;
        ensure!(read == length, "memory of the program ends early");
        Ok(())
    }
}
