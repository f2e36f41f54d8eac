//! The system calls that no safe wrapper covers without cost: TUN ioctls, two socket options, and messages with
//! control data (the wrappers at hand allocate for each message).

use std::ffi::{c_int, c_ulong};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, Socket};

/// Offloads the kernel may hand to a reader of the TUN device: `TUN_F_*` in `include/uapi/linux/if_tun.h`.
pub(super) mod tun_offload {
    /// Partial checksums.
    pub(crate) const CSUM: u32 = libc::TUN_F_CSUM;
    /// TCP super-packets of both families.
    pub(crate) const TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    /// UDP super-packets; the kernel takes both families or none (6.2 and later).
    pub(crate) const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    /// `TUN_F_UDP_TUNNEL_GSO` and `TUN_F_UDP_TUNNEL_GSO_CSUM`: super-packets below the headers of a UDP tunnel, and the outer
    /// checksum left to the kernel (6.17 and later).
    pub(crate) const UDP_TUNNEL: u32 = 0x80 | 0x100;
}

/// Attaches an open `/dev/net/tun` to the device `name` as one queue, and creates the device if there is none.
pub(super) fn tun_attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device name"));
    }
    // SAFETY: `ifreq` is plain data, all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    // The flags are a short in the interface; all of ours fit.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Keeps the device when its last queue closes.
pub(super) fn tun_persist(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes an integer by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, 1 as c_ulong) })
}

/// Tells the kernel which offloads the readers of the device understand.
pub(super) fn tun_set_offload(fd: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes an integer by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(mask)) })
}

/// Size in bytes of the virtio-net header before each packet.
pub(super) fn tun_set_header_size(fd: BorrowedFd<'_>, size: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
}

/// Bytes that writers may have under way inside the kernel.
pub(super) fn tun_set_send_buffer(fd: BorrowedFd<'_>, size: c_int) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads one int, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETSNDBUF, &raw const size) })
}

/// Sets an integer socket option.
pub(super) fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the option is an int and `value` outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    })
}

/// Reads an integer socket option.
pub(super) fn option(socket: &Socket, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`; both outlive the call.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    })?;
    Ok(value)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Control data in the kernel's layout: length (size_t, header included), level (int), type (int), data padded to the
/// size of a long: `struct cmsghdr` in `include/linux/socket.h`.
pub(super) struct Control {
    bytes: [u8; Self::SIZE],
    length: usize,
}

const CMSG_HEADER: usize = size_of::<usize>() + 2 * size_of::<c_int>();

impl Control {
    /// Room for the two messages we send or ask for (24 bytes each), and some.
    const SIZE: usize = 128;

    pub(super) fn new() -> Self {
        Self { bytes: [0; Self::SIZE], length: 0 }
    }

    /// Appends a message. One that does not fit is a mistake in this module's callers: at most four ints fit.
    pub(super) fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let at = self.length;
        let end = at + CMSG_HEADER + data.len();
        self.bytes[at..at + size_of::<usize>()].copy_from_slice(&(end - at).to_ne_bytes());
        let at = at + size_of::<usize>();
        self.bytes[at..at + 4].copy_from_slice(&level.to_ne_bytes());
        self.bytes[at + 4..at + 8].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[at + 8..end].copy_from_slice(data);
        self.length = end.next_multiple_of(size_of::<usize>());
    }

    /// Level, type and data of each message.
    pub(super) fn messages(&self) -> impl Iterator<Item = (c_int, c_int, &[u8])> {
        let mut rest = &self.bytes[..self.length];
        std::iter::from_fn(move || {
            let length = usize::from_ne_bytes(*rest.first_chunk()?);
            let level = c_int::from_ne_bytes(*rest.get(size_of::<usize>()..)?.first_chunk()?);
            let kind = c_int::from_ne_bytes(*rest.get(size_of::<usize>() + 4..)?.first_chunk()?);
            let data = rest.get(CMSG_HEADER..length)?;
            rest = rest.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
            Some((level, kind, data))
        })
    }
}

/// One message to `to`, with control data.
pub(super) fn send(socket: &Socket, to: &SockAddr, bytes: &[u8], control: &Control) -> io::Result<usize> {
    let buffers = [io::IoSlice::new(bytes)];
    let mut message = MsgHdr::new().with_addr(to).with_buffers(&buffers);
    if control.length > 0 {
        message = message.with_control(&control.bytes[..control.length]);
    }
    socket.sendmsg(&message, 0)
}

/// What [`receive`] learned besides the bytes.
pub(super) struct Received {
    pub(super) length: usize,
    pub(super) truncated: bool,
}

/// One message into `bytes`; the sender's address is written to `from`, which must hold an address of the socket's family.
pub(super) fn receive(
    socket: &Socket,
    from: &mut SockAddr,
    bytes: &mut [u8],
    control: &mut Control,
) -> io::Result<Received> {
    let mut buffers = [MaybeUninitSlice::new(uninit(bytes))];
    let mut message =
        MsgHdrMut::new().with_addr(from).with_buffers(&mut buffers).with_control(uninit(&mut control.bytes));
    let length = socket.recvmsg(&mut message, 0)?;
    let truncated = message.flags().is_truncated();
    let control_length = message.control_len();
    control.length = control_length;
    Ok(Received { length, truncated })
}

/// The same bytes as a buffer for the kernel to fill.
fn uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: the layouts are the same, and the only users above pass the slice to the kernel, which writes initialised
    // bytes or none.
    unsafe { &mut *(std::ptr::from_mut(bytes) as *mut [MaybeUninit<u8>]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_read_back_as_written() {
        let mut control = Control::new();
        control.push(17, 103, &1400_u16.to_ne_bytes());
        control.push(41, 67, &3_i32.to_ne_bytes());

        let read: Vec<_> = control.messages().collect();

        assert_eq!(read, [(17, 103, &1400_u16.to_ne_bytes()[..]), (41, 67, &3_i32.to_ne_bytes()[..])]);
    }

    #[test]
    fn a_control_message_that_lies_about_its_length_ends_the_list() {
        let mut control = Control::new();
        control.push(17, 103, &[1, 2]);
        control.bytes[..8].copy_from_slice(&4096_usize.to_ne_bytes());

        assert_eq!(control.messages().count(), 0);
    }

    #[test]
    fn a_control_message_of_length_zero_ends_the_list() {
        let mut control = Control::new();
        control.push(17, 103, &[1, 2]);
        control.bytes[..8].copy_from_slice(&0_usize.to_ne_bytes());

        assert_eq!(control.messages().count(), 0);
    }
}
