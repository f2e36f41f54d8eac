//! The TUN device: opened once per worker, each opening is one queue.
//!
//! `tun` builds a device of one queue only, so each queue is attached here and its descriptor handed to that crate. The
//! device is persistent and everything on it outlives us: so do header size, offload mask and send buffer of an earlier
//! process, which is why each of them is set after each attach. Attaching with other flags than the device has changes them
//! for all queues in silence: a device with other flags is deleted and made anew.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::link::{self, Link};
use super::sys::{self, tun_offload};
use super::{Offloads, StartError};

/// One queue of the device.
pub(super) type Queue = tun::Device;

/// What is opened for each queue.
pub(super) const DEVICE: &str = "/dev/net/tun";

/// Bytes of the virtio-net header before each packet: without `num_buffers`, which needs mergeable buffers.
const HEADER: i32 = 10;

/// Attaches `count` queues to the device `name`, creating it if there is none.
pub(super) fn open(name: &str, count: usize, offloads: &mut Offloads) -> Result<Vec<Queue>, StartError> {
    let failed = |doing: &str| {
        let what = format!("{doing} {name}");
        move |cause| StartError::Os { what, cause }
    };
    match link::inspect(name).map_err(failed("looking for the interface"))? {
        Link::Absent | Link::Tun { usable: true, .. } => {}
        Link::Tun { index, .. } => {
            link::delete(index).map_err(failed("deleting the TUN device with other flags"))?;
        }
        foreign @ (Link::Tap { .. } | Link::Foreign(_)) => {
            let kind = if let Link::Foreign(kind) = foreign { kind } else { "tap".to_owned() };
            return Err(StartError::Os {
                what: format!("using {name} as the TUN device"),
                cause: io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("an interface of that name and of kind {kind} exists"),
                ),
            });
        }
    }
    (0..count).map(|_| attach(name, offloads).map_err(failed("attaching to the TUN device"))).collect()
}

fn attach(name: &str, offloads: &mut Offloads) -> io::Result<Queue> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .map_err(|error| explained(&error, opening(&error)))?;
    let fd = file.as_fd();
    sys::tun_attach(fd, name, libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE)
        .map_err(|error| explained(&error, attaching(&error)))?;
    sys::tun_persist(fd)?;
    sys::tun_set_header_size(fd, HEADER)?;
    set_offloads(&file, offloads)?;
    sys::tun_set_send_buffer(fd, i32::MAX)?;
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).raw_fd(file.into_raw_fd());
    tun::create(&configuration).map_err(io::Error::other)
}

/// The error with its likely cause.
fn explained(error: &io::Error, cause: Option<&str>) -> io::Error {
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    io::Error::new(error.kind(), format!("{DEVICE}: {error}{cause}"))
}

/// Why the device node cannot be opened. EPERM comes from the control group: the container runtime's list of devices (runc
/// dropped the TUN from its list in 1.2.0 and brought it back in 1.2.4; crun's has it since 1.20).
fn opening(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EPERM => Some(
            "the container runtime's device list forbids it, as that of runc 1.2.0 to 1.2.3 and of crun before 1.20 does: \
             upgrade the runtime, or use the privileged variant",
        ),
        libc::EACCES => Some(
            "the file's mode or mount forbids it: run as uid 0, or let the container runtime pass the device (runc 1.2.0 to 1.2.3 \
             and crun before 1.20 do not: upgrade, or use the privileged variant)",
        ),
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Some(
            "the kernel's tun module is missing: `modprobe tun`, and make the device visible in the container",
        ),
        _ => None,
    }
}

/// Why the open device node cannot become a TUN device.
fn attaching(error: &io::Error) -> Option<&'static str> {
    (error.raw_os_error()? == libc::EPERM).then_some("the capability NET_ADMIN is missing")
}

/// The most this kernel takes.
fn set_offloads(file: &File, offloads: &mut Offloads) -> io::Result<()> {
    const STEPS: [u32; 4] = [
        tun_offload::CSUM | tun_offload::TSO | tun_offload::USO,
        tun_offload::CSUM | tun_offload::TSO,
        tun_offload::CSUM,
        0,
    ];
    for mask in STEPS {
        match sys::tun_set_offload(file.as_fd(), mask) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
            Ok(()) => {
                for (name, bit) in [
                    ("tun_checksum", tun_offload::CSUM),
                    ("tun_tso", tun_offload::TSO),
                    ("tun_uso", tun_offload::USO),
                ] {
                    let state = if mask & bit == bit { "on" } else { "off: this kernel does not offer it" };
                    offloads.insert(name.to_owned(), state.to_owned());
                }
                return Ok(());
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(errno: i32) -> String {
        let error = io::Error::from_raw_os_error(errno);
        explained(&error, opening(&error)).to_string()
    }

    #[test]
    fn a_device_that_the_runtime_forbids_is_told_with_the_versions_and_the_remedy() {
        for errno in [libc::EPERM, libc::EACCES] {
            let words = words(errno);
            for part in ["/dev/net/tun", "runc 1.2.0 to 1.2.3", "crun before 1.20", "privileged variant"] {
                assert!(words.contains(part), "{part} is not in {words}");
            }
        }
        assert!(words(libc::ENOENT).contains("modprobe tun"));
        assert!(!words(libc::EMFILE).contains("modprobe"), "no guess without a reason");
        let attach = io::Error::from_raw_os_error(libc::EPERM);
        assert!(explained(&attach, attaching(&attach)).to_string().contains("NET_ADMIN"));
    }
}
