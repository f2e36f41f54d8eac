//! Subscriptions to kernel changes, on a thread of their own.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cni_shim::netlink::attribute;
use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use wire::tag::VETH_PREFIX;

use super::{KernelError, Ports};

/// `enum rtnetlink_groups` of `linux/rtnetlink.h`: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, and
/// NEIGH for neighbours that were deleted, and IPV4_NETCONF, IPV6_NETCONF, which report sysctls such as forwarding
/// and rp_filter.
const ROUTE_GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];

/// `RTM_NEWNEIGH`: every ARP answer on the node is one, and none of them takes away what is ours.
const NEW_NEIGHBOUR: u16 = 28;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = 7;

/// A burst is over when nothing came for this long.
const QUIET: Duration = Duration::from_millis(20);

/// A burst that does not end is reported this long after it began.
const LONGEST_BURST: Duration = Duration::from_millis(200);

/// Subscriptions to link, address, neighbour, route and nftables changes. Dropping it ends them.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.stop.write(1).is_err() {
            return;
        }
        // A panic in there has been reported by its own thread.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Calls `notify` (from its own thread) after every burst of changes that others than the sockets with the ports `own` made, and
/// before it `gone` with the name of each link of ours that went: one that came and went within a burst is never seen by a read.
///
/// # Errors
/// If the kernel refuses the sockets.
pub fn watch(
    own: Ports,
    notify: impl Fn() + Send + 'static,
    gone: impl Fn(String) + Send + 'static,
) -> Result<Watch, KernelError> {
    let subscribe_all = || -> io::Result<Vec<Subscription>> {
        Ok(vec![
            Subscription { own: own.route, socket: subscribe(NETLINK_ROUTE, &ROUTE_GROUPS)? },
            Subscription { own: own.netfilter, socket: subscribe(NETLINK_NETFILTER, &[NFTABLES_GROUP])? },
        ])
    };
    let open = || start(subscribe_all()?, notify, gone);
    open().map_err(|error| KernelError(format!("subscribe to kernel changes: {error}")))
}

/// A socket that is told of changes, and the port of ours that makes changes of this kind.
struct Subscription {
    own: u32,
    socket: Socket,
}

fn start(
    sockets: Vec<Subscription>,
    notify: impl Fn() + Send + 'static,
    gone: impl Fn(String) + Send + 'static,
) -> io::Result<Watch> {
    let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let watcher = Watcher { sockets, stop: Arc::clone(&stop) };
    let thread = std::thread::Builder::new()
        .name("kernel-watch".to_owned())
        .spawn(move || watcher.run(notify, &gone))?;
    Ok(Watch { stop, thread: Some(thread) })
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

struct Watcher {
    sockets: Vec<Subscription>,
    stop: Arc<EventFd>,
}

impl Watcher {
    fn run(&self, notify: impl Fn(), gone: &dyn Fn(String)) {
        loop {
            match self.wait(PollTimeout::NONE, gone) {
                Wake::Changed => {}
                Wake::Noise | Wake::Quiet => continue,
                Wake::Stop => return,
            }
            let began = Instant::now();
            while began.elapsed() < LONGEST_BURST {
                let quiet = PollTimeout::try_from(QUIET).unwrap_or(PollTimeout::ZERO);
                match self.wait(quiet, gone) {
                    Wake::Changed | Wake::Noise => {}
                    Wake::Quiet => break,
                    Wake::Stop => return,
                }
            }
            notify();
        }
    }

    fn wait(&self, timeout: PollTimeout, gone: &dyn Fn(String)) -> Wake {
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let sockets = self.sockets.iter().map(|subscription| input(subscription.socket.as_fd()));
        let mut fds: Vec<PollFd<'_>> = std::iter::once(input(self.stop.as_fd())).chain(sockets).collect();
        match poll(&mut fds, timeout) {
            Err(nix::Error::EINTR) => return Wake::Changed,
            Err(_) => return Wake::Stop,
            Ok(0) => return Wake::Quiet,
            Ok(_) => {}
        }
        if fds.first().and_then(PollFd::any) == Some(true) {
            return Wake::Stop;
        }
        let changed = self
            .sockets
            .iter()
            .map(|subscription| drain(subscription, gone))
            .fold(false, |any, one| any | one);
        if changed { Wake::Changed } else { Wake::Noise }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wake {
    Changed,
    /// Nothing that takes away what is ours.
    Noise,
    Quiet,
    Stop,
}

/// Empties the queue. Whether anything in it matters: what else the messages say does not, as everything is read
/// anew; nor does it if the kernel had to drop some (ENOBUFS, which clears itself when reported).
fn drain(Subscription { own, socket }: &Subscription, gone: &dyn Fn(String)) -> bool {
    let mut buffer = [0u8; 256];
    let mut matters = false;
    loop {
        let mut space = buffer.as_mut_slice();
        match socket.recv(&mut space, libc::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return matters,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => matters = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return matters,
            // Of a longer message this is its begin, which has all that is looked at.
            Ok(length) => {
                let message = buffer.get(..length).unwrap_or_default();
                matters |= is_change(message, *own);
                if let Some(name) = deleted_veth(message) {
                    gone(name);
                }
            }
        }
    }
}

/// The name of the pod's link that this notification says is deleted. The name is the first attribute behind `struct
/// nlmsghdr` and `struct ifinfomsg` (`rtnl_fill_ifinfo`).
fn deleted_veth(message: &[u8]) -> Option<String> {
    let kind = message.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind != Some(libc::RTM_DELLINK) {
        return None;
    }
    attribute::text(message.get(32..)?, libc::IFLA_IFNAME).filter(|name| name.starts_with(VETH_PREFIX))
}

/// Whether a notification (`struct nlmsghdr` first) is of a change that could concern us: who made one that we made knows of it.
fn is_change(message: &[u8], own: u32) -> bool {
    let kind = message.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let port = message.get(12..16).and_then(|port| port.try_into().ok()).map(u32::from_ne_bytes);
    kind != Some(NEW_NEIGHBOUR) && port != Some(own)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn neighbours_that_appear_are_noise_and_ones_that_go_are_not() {
        let message = |kind: u16| [&[32, 0, 0, 0][..], &kind.to_ne_bytes(), &[0; 26]].concat();
        assert!(!is_change(&message(NEW_NEIGHBOUR), 7));
        // RTM_DELNEIGH, RTM_DELROUTE
        assert!(is_change(&message(29), 7) && is_change(&message(25), 7));
    }

    #[test]
    fn what_our_own_socket_changed_is_noise_and_a_cut_message_is_not() {
        let message = [&[32, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0][..], &7u32.to_ne_bytes(), &[0; 16]].concat();
        assert!(!is_change(&message, 7));
        assert!(is_change(&message, 8) && is_change(&message[..12], 7));
    }

    #[test]
    fn a_deleted_link_of_ours_is_named() {
        let message = |kind: u16, name: &str| {
            let name = attribute::Attributes::default().text(libc::IFLA_IFNAME, name).bytes();
            [&[0; 4][..], &kind.to_ne_bytes(), &[0; 26], &name].concat()
        };
        let deleted = message(libc::RTM_DELLINK, "ovp0123456789ab");
        assert_eq!(deleted_veth(&deleted).as_deref(), Some("ovp0123456789ab"));
        assert_eq!(deleted_veth(&message(libc::RTM_DELLINK, "eth0")), None);
        assert_eq!(deleted_veth(&message(libc::RTM_NEWLINK, "ovp0123456789ab")), None);
        assert!((0..deleted.len() - 1).all(|length| deleted_veth(&deleted[..length]).is_none()));
    }

    #[test]
    fn dropping_a_watch_ends_its_thread() {
        let (sender, receiver) = mpsc::channel::<()>();
        // The nftables group needs a privilege that unit tests do not have.
        let socket = subscribe(NETLINK_ROUTE, &ROUTE_GROUPS).unwrap();
        let sockets = vec![Subscription { own: 0, socket }];
        let watch = start(sockets, move || sender.send(()).unwrap_or(()), |_| {}).unwrap();
        drop(watch);
        while receiver.recv().is_ok() {}
    }
}
