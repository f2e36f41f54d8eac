//! Kernel state: `read()` what is, `apply()` one operation. Netlink and nftables only, no binaries.
//!
//! Everything is synchronous, on one socket per purpose, in the network namespace of the thread that opened them.
//! Operations can be repeated: deleting what is gone is success, and adding what is there is success if a fresh
//! read shows that it is ours.

mod conntrack;
mod ethtool;
mod expression;
mod netfilter;
mod nftables;
mod observe;
mod plumbing;
mod sysctl;
mod watch;

use std::fmt::Display;
use std::path::Path;
use std::time::Instant;

use cni_shim::netlink::{Netlink, NetlinkError};

use crate::core::desired::disable_ipv6;
use crate::core::plan::{Actual, Neighbour, Op, Route};
use ethtool::Ethtool;
use netfilter::Netfilter;
use plumbing::Plumbing;
use sysctl::Sysctls;

pub use plumbing::PLUMBING_LIMIT;
pub use watch::{Watch, watch};

/// Why a read or an operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(pub String);

impl From<NetlinkError> for KernelError {
    fn from(error: NetlinkError) -> Self {
        Self(error.to_string())
    }
}

/// What an operation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Conntrack entries deleted by it.
    pub conntrack_deleted: u64,
}

/// Netlink ports, by which the kernel tells who made a change. Each protocol numbers its own.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    route: u32,
    netfilter: u32,
}

/// Sockets to the kernel. Synchronous; every call is short.
#[derive(Debug)]
pub struct Kernel {
    device: String,
    netlink: Netlink,
    netfilter: Netfilter,
    nftables: nftables::Reader,
    sysctls: Sysctls,
    plumbing: Plumbing,
    ethtool: Ethtool,
    epoch: Instant,
}

impl Kernel {
    /// Opens the sockets in the calling thread's network namespace. `device` is the TUN device's name.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub fn open(device: &str) -> Result<Self, KernelError> {
        Ok(Self {
            device: device.to_owned(),
            netlink: Netlink::open()?,
            netfilter: Netfilter::open().map_err(failed("open a netfilter socket"))?,
            nftables: nftables::Reader::default(),
            sysctls: Sysctls::default(),
            plumbing: Plumbing::default(),
            ethtool: Ethtool::default(),
            epoch: Instant::now(),
        })
    }

    /// The ports of the sockets that make changes.
    #[must_use]
    pub fn ports(&self) -> Ports {
        Ports { route: self.netlink.port(), netfilter: self.netfilter.port() }
    }

    /// Writes sysctls below `root`, another mount of `/proc/sys`.
    #[must_use]
    pub fn with_sysctls_at(mut self, root: &Path) -> Self {
        self.sysctls = Sysctls::written_at(root);
        self
    }

    /// Reads everything that carries our tag, and the facts that decisions need.
    ///
    /// # Errors
    /// If a dump fails.
    pub fn read(&mut self) -> Result<Actual, KernelError> {
        // Routes before links: the route of a veth that appears in between is then missing and not foreign.
        let routes = self.netlink.routes()?;
        let links = self.netlink.links()?;
        let addresses = self.netlink.addresses()?;
        let neighbours = self.netlink.neighbours()?;
        let dumps = observe::Dumps { links, addresses, neighbours, routes: &routes };
        let mut actual = observe::observe(&self.device, &dumps);
        let routed = observe::routed_links(&routes);
        let ages = self.plumbing.observe(&actual.veths, &routed, self.epoch.elapsed());
        (actual.settled, actual.orphans) = (ages.settled, ages.orphans);
        let rules = self.nftables.read(&mut self.netfilter).map_err(failed("read nftables"))?;
        (actual.table, actual.forward_chains) = (rules.table, rules.forward_chains);
        actual.uplink_table = rules.uplink_table;
        // Without the device nobody asks what the uplinks can do.
        if actual.tap.is_some() {
            for link in actual.foreign_links.iter_mut().filter(|link| !link.addresses.is_empty()) {
                link.tunnel_gso = self.ethtool.segments_tunnels(link.index);
            }
        }
        actual.sysctls = self.sysctls.read(observe::sysctl_keys(&self.device, &actual));
        Ok(actual)
    }

    /// Makes one change. Repeating it is harmless.
    ///
    /// # Errors
    /// In words, naming the object.
    pub fn apply(&mut self, op: &Op) -> Result<Applied, KernelError> {
        let (netlink, netfilter) = (&mut self.netlink, &mut self.netfilter);
        match op {
            Op::SetSysctl { key, value } => {
                let what = format!("write {value} to sysctl {}", key.replace('/', "."));
                self.sysctls.write(key, value).map_err(failed(&what))?;
            }
            Op::SetMtu { link, mtu } => netlink.set_link_mtu(*link, *mtu)?,
            Op::SetQueueLength { link, packets } => netlink.set_link_tx_queue_len(*link, *packets)?,
            Op::SetUp { link } => gone_is_fine(netlink.set_link_up(*link, true), &[libc::ENODEV])?,
            Op::AddAddress { link, net } => match netlink.add_address(*link, *net) {
                Err(error) if error.errno() == Some(libc::EEXIST) => {
                    let there = |found: &cni_shim::netlink::Address| found.link == *link && found.net == *net;
                    if !netlink.addresses()?.iter().any(there) {
                        return Err(error.into());
                    }
                }
                other => other?,
            },
            Op::DeleteAddress { link, net } => {
                gone_is_fine(netlink.delete_address(*link, *net), &[libc::EADDRNOTAVAIL, libc::ENODEV])?;
            }
            Op::SetNeighbour(Neighbour { link, address, mac }) => {
                let set = netlink.set_permanent_neighbour(*link, *address, *mac);
                gone_is_fine(set, &[libc::ENODEV])?;
            }
            Op::AddRoute(route) => self.add_route(route)?,
            Op::ReplaceRoute(route) => netlink.replace_route(&observe::request(route))?,
            Op::DeleteRoute(route) => {
                let gone = [libc::ESRCH, libc::ENOENT, libc::ENODEV];
                gone_is_fine(netlink.delete_route(&observe::request(route)), &gone)?;
            }
            Op::ReplaceTable(ruleset) => {
                nftables::replace_table(netfilter, ruleset)
                    .map_err(failed("replace nftables table inet overlayd"))?;
            }
            Op::ChangeElements(changes) => nftables::change_elements(netfilter, changes)
                .map_err(failed("change elements of nftables table inet overlayd"))?,
            Op::DeleteTable => {
                nftables::delete_table(netfilter).map_err(failed("delete nftables table inet overlayd"))?;
            }
            Op::OpenUplinks(table) => {
                // Nothing of the kernel's own on it. Where there is no IPv6 there is nothing to write.
                let _ = self.sysctls.write(&disable_ipv6(&table.device), "1");
                if let Some(tap) = netlink.link_by_name(&table.device)? {
                    netlink.set_link_up(tap.index, true)?;
                }
                nftables::uplink::replace(netfilter, table)
                    .map_err(failed("replace nftables table netdev overlayd"))?;
            }
            Op::ForgetBareFlows { sources, exempt } => {
                let deleted = conntrack::forget_bare(netfilter, sources, exempt);
                let conntrack_deleted =
                    deleted.map_err(failed("delete conntrack entries without source NAT"))?;
                return Ok(Applied { conntrack_deleted });
            }
            Op::InsertForwardRules { chain, rules } => nftables::insert_rules(netfilter, chain, rules)
                .map_err(failed(&format!("insert accept rules into chain {chain}")))?,
            Op::DeleteForwardRule { chain, handle } => nftables::delete_rule(netfilter, chain, *handle)
                .map_err(failed(&format!("delete our rule {handle} of chain {chain}")))?,
            Op::DeleteLink { link, name } => {
                // The index may be another link's by now.
                if netlink.link_by_name(name)?.is_some_and(|found| found.index == *link) {
                    gone_is_fine(netlink.delete_link(*link), &[libc::ENODEV])?;
                }
            }
        }
        Ok(Applied::default())
    }

    fn add_route(&mut self, route: &Route) -> Result<(), KernelError> {
        match self.netlink.add_route(&observe::request(route)) {
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let routes = self.netlink.routes()?;
                let ours = routes.iter().filter_map(observe::own_route).any(|found| found == *route);
                if ours { Ok(()) } else { Err(error.into()) }
            }
            // The pod is gone, and its veth with it.
            other => Ok(gone_is_fine(other, &[libc::ENODEV])?),
        }
    }
}

/// Turns "it is not there" into success.
fn gone_is_fine(result: Result<(), NetlinkError>, gone: &[i32]) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno().is_some_and(|errno| gone.contains(&errno)) => Ok(()),
        other => other,
    }
}

fn failed<E: Display>(what: &str) -> impl FnOnce(E) -> KernelError {
    let what = what.to_owned();
    move |error| KernelError(format!("{what}: {error}"))
}
