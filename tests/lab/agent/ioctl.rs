//! The two things of the lab that still go by ioctl: bridges (`linux/sockios.h`) and offload switches
//! (`linux/ethtool.h`).

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `SIOCBRADDBR`.
const SIOCBRADDBR: c_ulong = 0x89a0;
/// `SIOCBRADDIF`.
const SIOCBRADDIF: c_ulong = 0x89a2;
/// `SIOCETHTOOL`.
const SIOCETHTOOL: c_ulong = 0x8946;
/// `ETHTOOL_GSTRINGS`: names of a string set.
const ETHTOOL_GSTRINGS: u32 = 0x1b;
/// `ETHTOOL_GSSET_INFO`: sizes of string sets.
const ETHTOOL_GSSET_INFO: u32 = 0x37;
/// `ETHTOOL_SFEATURES`: switches features by bit.
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`.
const STRINGS_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const STRING_LENGTH: usize = 32;

#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    // The union ifr_ifru: 24 bytes on 64-bit systems, of which a pointer or an int comes first.
    value: [u64; 3],
}

fn name_bytes(name: &str) -> Result<[u8; libc::IFNAMSIZ]> {
    let mut bytes = [0; libc::IFNAMSIZ];
    if name.len() >= bytes.len() {
        bail!("link name {name} is over 15 bytes");
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

fn control_socket() -> Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("open a socket")
}

/// Makes a bridge in the calling thread's namespace.
pub(crate) fn add_bridge(name: &str) -> Result<()> {
    let (socket, bytes) = (control_socket()?, name_bytes(name)?);
    // SAFETY: the kernel reads a name of at most 16 bytes with terminator from the pointer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR, bytes.as_ptr()) };
    check(result).with_context(|| format!("make bridge {name}"))
}

/// Makes a link a port of a bridge.
pub(crate) fn add_bridge_port(bridge: &str, index: u32) -> Result<()> {
    let socket = control_socket()?;
    let request = Request { name: name_bytes(bridge)?, value: [u64::from(index), 0, 0] };
    // SAFETY: Request has the layout of struct ifreq; ifr_ifindex is its first union member (little endian int).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDIF, &raw const request) };
    check(result).with_context(|| format!("make link {index} a port of {bridge}"))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One ethtool command on a buffer of 32-bit words.
fn ethtool(link: &str, words: &mut [u32]) -> Result<()> {
    let socket = control_socket()?;
    let mut request = Request { name: name_bytes(link)?, value: [words.as_mut_ptr() as u64, 0, 0] };
    // SAFETY: Request has the layout of struct ifreq; ifr_data points to a buffer that each caller below
    // has sized for the answer of its command.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    check(result).with_context(|| format!("ethtool command {:#x} on {link}", words[0]))
}

fn feature_names(link: &str) -> Result<Vec<String>> {
    // struct ethtool_sset_info: cmd, reserved, 64-bit mask, then one count per bit of the mask.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << STRINGS_FEATURES, 0, 0];
    ethtool(link, &mut info)?;
    let count = info[4] as usize;
    // struct ethtool_gstrings: cmd, set, count, then the strings.
    let mut words = vec![0; 3 + count * STRING_LENGTH / 4];
    words[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, STRINGS_FEATURES, info[4]]);
    ethtool(link, &mut words)?;
    let bytes: Vec<u8> = words[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = |chunk: &[u8]| {
        let end = chunk.iter().position(|byte| *byte == 0).unwrap_or(chunk.len());
        String::from_utf8_lossy(&chunk[..end]).into_owned()
    };
    Ok(bytes.chunks(STRING_LENGTH).map(text).collect())
}

/// Switches offloads by name (the names of `ethtool -k`'s long form, `net/ethtool/common.c`).
pub(crate) fn set_features(link: &str, features: &[(String, bool)]) -> Result<()> {
    let names = feature_names(link)?;
    let blocks = names.len().div_ceil(32);
    // struct ethtool_sfeatures: cmd, block count, then per block of 32 features: valid mask, wanted bits.
    let mut words = vec![0; 2 + 2 * blocks];
    words[0] = ETHTOOL_SFEATURES;
    words[1] = u32::try_from(blocks).context("too many features")?;
    for (name, on) in features {
        let Some(bit) = names.iter().position(|known| known == name) else {
            bail!("this kernel knows no offload {name}");
        };
        let block = 2 + 2 * (bit / 32);
        words[block] |= 1 << (bit % 32);
        if *on {
            words[block + 1] |= 1 << (bit % 32);
        }
    }
    ethtool(link, &mut words)
}
