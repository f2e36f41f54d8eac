//! What to build: nodes, families, offloads.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use super::Lab;
use super::watch::Watchdog;
use super::wires::OUTSIDE;
use crate::binaries::Binaries;
use crate::core::{Core, check_tun};
use crate::host::{Harm, Host};
use crate::must;
use crate::protocol::ROOT;

/// Which address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Families {
    pub(crate) fn has_v4(self) -> bool {
        self != Self::V6
    }

    pub(crate) fn has_v6(self) -> bool {
        self != Self::V4
    }

    pub(crate) fn pick(self, v4: IpNet, v6: IpNet) -> Vec<IpNet> {
        let mut nets = Vec::new();
        if self.has_v4() {
            nets.push(v4);
        }
        if self.has_v6() {
            nets.push(v6);
        }
        nets
    }
}

/// What a node's uplink can do in "hardware".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// What a veth has: everything. One 64 KiB packet passes in one piece.
    Veth,
    /// Like a network card without tunnel offload: no segmentation, receive aggregation (GRO) on.
    Wire,
    /// Nothing, checksums included.
    None,
}

const SEGMENTATION: [&str; 6] = [
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
];

impl Offloads {
    /// What is changed from a veth's defaults, by the kernel's names.
    #[must_use]
    pub fn features(self) -> Vec<(String, bool)> {
        let off = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), false)).collect::<Vec<_>>();
        match self {
            Self::Veth => Vec::new(),
            Self::Wire => off(&SEGMENTATION),
            Self::None => {
                let mut features = off(&SEGMENTATION);
                features.extend(off(&[
                    "tx-generic-segmentation",
                    "rx-gro",
                    "tx-checksum-ip-generic",
                    "tx-scatter-gather",
                ]));
                features
            }
        }
    }
}

/// What to build for one node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) offloads: Offloads,
    pub(super) harm: Option<Harm>,
    pub(super) behind_router: bool,
}

impl NodeSpec {
    /// MTU of its uplink in bytes; 1,500 if not given.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Offloads of its uplink; those of a veth if not given.
    #[must_use]
    pub fn offloads(mut self, offloads: Offloads) -> Self {
        self.offloads = offloads;
        self
    }

    /// Puts a lossy relay into its uplink, which then has no offloads.
    #[must_use]
    pub fn harm(mut self, harm: Harm) -> Self {
        self.harm = Some(harm);
        self.offloads = Offloads::None;
        self
    }

    /// Puts it into another subnet, beyond the link that [`Builder::router_mtu`] makes narrow.
    #[must_use]
    pub fn behind_router(mut self) -> Self {
        self.behind_router = true;
        self
    }
}

/// What to build. Made by [`Lab::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    pub(super) nodes: Vec<NodeSpec>,
    pub(super) underlay: Families,
    pub(super) pods: Families,
    pub(super) router_mtu: u32,
    pub(super) deadline: Duration,
}

impl Builder {
    /// Adds so many ordinary nodes.
    pub fn nodes(mut self, count: usize) -> Self {
        for _ in 0..count {
            self = self.node(|spec| spec);
        }
        self
    }

    /// Adds one node with properties of its own. Nodes are called node-1, node-2 and so on.
    pub fn node(mut self, describe: impl FnOnce(NodeSpec) -> NodeSpec) -> Self {
        let name = format!("node-{}", self.nodes.len() + 1);
        let spec = NodeSpec { name, mtu: 1500, offloads: Offloads::Veth, harm: None, behind_router: false };
        self.nodes.push(describe(spec));
        self
    }

    /// Families of the underlay; IPv4 if not given.
    pub fn underlay(mut self, families: Families) -> Self {
        self.underlay = families;
        self
    }

    /// Families of the pods; IPv4 if not given.
    pub fn pods(mut self, families: Families) -> Self {
        self.pods = families;
        self
    }

    /// MTU in bytes of the link between the bridge's router and the one that nodes "behind the router" hang from;
    /// 1,500 if not given.
    pub fn router_mtu(mut self, mtu: u32) -> Self {
        self.router_mtu = mtu;
        self
    }

    /// When the whole lab is ended, with a dump, so that a test that hangs fails; 120 s if not given.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Builds the programs and the lab. No daemon runs yet.
    ///
    /// # Panics
    /// If that is not possible; the message says what to do.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Lab {
        must(self.try_start())
    }

    /// Builds the programs and the lab. No daemon runs yet.
    ///
    /// # Errors
    /// If that is not possible; the message says what to do.
    pub fn try_start(self) -> Result<Lab> {
        check_tun()?;
        if self.nodes.len() > 200 {
            bail!("a lab has at most 200 nodes");
        }
        let core = Arc::new(Core::start(Binaries::build()?)?);
        let mut lab = Lab {
            root: Host::new(Arc::clone(&core), ROOT, Vec::new()),
            outside: Host::new(Arc::clone(&core), OUTSIDE, Vec::new()),
            nodes: Vec::new(),
            relays: Vec::new(),
            underlay: self.underlay,
            pods: self.pods,
            watchdog: Watchdog::default(),
            core,
        };
        lab.plumb(&self).context("set up the lab's network")?;
        lab.watchdog.start(self.deadline, lab.witness());
        let manifests = lab.manifests();
        for node in &lab.nodes {
            node.write_nodes(&manifests);
        }
        Ok(lab)
    }
}
