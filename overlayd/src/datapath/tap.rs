//! The TAP device by which super-packets leave whole (Linux 6.17 and later): opened once per worker like the TUN device, but not
//! persistent, so that it goes with us. What is written to it has the tunnel's headers in front; a rule that is `kernel`'s sends it on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use super::link::{self, Link};
use super::sys::{self, tun_offload};
use super::tun::DEVICE;
use wire::offload::TUNNEL_VNET_LEN;

/// Attaches `count` queues to a new device of this name.
///
/// # Errors
/// Why there is none, in words: the datapath runs without.
pub(super) fn open(name: &str, count: usize) -> Result<Vec<File>, String> {
    let failed = |doing: &str| {
        let doing = format!("{doing} {name}");
        move |error: io::Error| format!("{doing}: {error}")
    };
    match link::inspect(name).map_err(failed("looking for the interface"))? {
        Link::Absent => {}
        // The name is the tag, and ours never outlives its daemon.
        Link::Tap { index } => link::delete(index).map_err(failed("deleting the TAP device"))?,
        Link::Tun { .. } | Link::Foreign(_) => {
            return Err(format!("an interface {name} of another kind exists"));
        }
    }
    (0..count).map(|_| attach(name)).collect::<io::Result<_>>().map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => "this kernel does not offer it".to_owned(),
        _ => format!("making the TAP device {name}: {error}"),
    })
}

fn attach(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    let fd = file.as_fd();
    sys::tun_attach(fd, name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE)?;
    sys::tun_set_offload(fd, tun_offload::CSUM | tun_offload::TSO | tun_offload::UDP_TUNNEL)?;
    sys::tun_set_header_size(fd, TUNNEL_VNET_LEN as i32)?;
    sys::tun_set_send_buffer(fd, i32::MAX)?;
    Ok(file)
}
