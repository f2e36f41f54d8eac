//! What the kernel should hold, as a value.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::cluster::{Cluster, Own};
use super::config::Config;
use super::plan::Actual;

/// Everything the wish depends on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// Our own node (the daemon reconciles nothing before it is known).
    pub own: &'a Own,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Smaller path MTUs learnt by the datapath: underlay address of the peer to outer MTU in bytes.
    pub path_mtus: &'a BTreeMap<IpAddr, u32>,
    /// What the kernel holds now: facts such as the underlay link's MTU and the veths that need their routes.
    pub actual: &'a Actual,
}

/// The wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {}

/// Derives the wish.
#[must_use]
pub fn desired(inputs: Inputs<'_>) -> Desired {
    let _ = inputs;
    todo!()
}

/// Inner MTU in bytes for this node: configured, or that of the underlay link less the overhead (50 over IPv4, 70 over IPv6).
#[must_use]
pub fn inner_mtu(config: &Config, own: &Own, actual: &Actual) -> Option<u32> {
    let _ = (config, own, actual);
    todo!()
}
