//! A tunnel that moves one packet per system call and asks the kernel for no offload: the shape of flannel's `udp` backend and of
//! most user-space VPNs. What it carries is the bare inner packet in UDP.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One tunnel to one peer.
#[derive(Debug, clap::Args)]
pub(crate) struct OnePacket {
    /// Name of the TUN device to make.
    device: String,
    /// MTU of the device in bytes.
    mtu: u16,
    /// Own address and port.
    local: SocketAddr,
    /// The peer's.
    peer: SocketAddr,
}

/// Carries packets for ever.
pub(crate) fn run(options: &OnePacket) -> Result<()> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(&options.device).mtu(options.mtu).up();
    let mut device = tun::create(&configuration).with_context(|| format!("make {}", options.device))?;
    // SAFETY: the descriptor belongs to `device`, which lives as long as this function.
    let fd = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let socket = UdpSocket::bind(options.local).with_context(|| format!("bind {}", options.local))?;
    socket.connect(options.peer).with_context(|| format!("connect to {}", options.peer))?;
    socket.set_nonblocking(true)?;
    println!("carrying");
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut wanted = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::NONE)?;
        let ready = wanted.map(|entry| entry.any().unwrap_or(false));
        if ready[0] {
            while let Some(length) = received(device.read(&mut buffer)).context("read a packet")? {
                // A full buffer or a peer that is not there yet loses the packet, as any link does.
                let _ = socket.send(&buffer[..length]);
            }
        }
        if ready[1] {
            while let Ok(Some(length)) = received(socket.recv(&mut buffer)) {
                let _ = device.write(&buffer[..length]);
            }
        }
    }
}

/// `None` when there is nothing more.
fn received(outcome: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match outcome {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
