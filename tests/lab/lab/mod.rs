//! Building, watching and ending a lab.

mod spec;
mod watch;
mod wires;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv6Net};

pub use self::spec::{Builder, Families, NodeSpec, Offloads};
use self::watch::{Watchdog, Witness};
use self::wires::{OUTSIDE, ROUTER, Subnet, Wires};
pub(crate) use self::wires::{default_route, v4};
use crate::core::Core;
use crate::host::{Host, Relay};
use crate::manifest::Manifest;
use crate::must;
use crate::node::Node;
use crate::protocol::{ROOT, Request};

/// A lab: nodes on a bridge, a router, a host outside. Ends, with everything in it, when dropped; when the thread
/// is panicking, it first prints what it looked like.
#[derive(Debug)]
pub struct Lab {
    core: Arc<Core>,
    root: Host,
    outside: Host,
    nodes: Vec<Node>,
    relays: Vec<Relay>,
    underlay: Families,
    pods: Families,
    watchdog: Watchdog,
}

impl Lab {
    /// Starts the description of a lab.
    pub fn builder() -> Builder {
        Builder {
            nodes: Vec::new(),
            underlay: Families::V4,
            pods: Families::V4,
            router_mtu: 1500,
            deadline: Duration::from_secs(120),
        }
    }

    /// A lab of so many ordinary nodes, every daemon running and ready.
    ///
    /// # Panics
    /// If that is not possible; the message says what to do.
    #[must_use]
    #[track_caller]
    pub fn with_nodes(count: usize) -> Self {
        let lab = Self::builder().nodes(count).start();
        lab.start_daemons();
        lab
    }

    /// The node with this number, from 1.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn node(&self, number: usize) -> Node {
        match number.checked_sub(1).and_then(|index| self.nodes.get(index)) {
            Some(node) => node.clone(),
            None => panic!("no node {number}: the lab has 1 to {}", self.nodes.len()),
        }
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The host outside the cluster, reached through the nodes' default routes. It knows no way to pod addresses.
    #[must_use]
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// The router and bridge between them. Link `n1` is the other end of node-1's `eth0`, and so on.
    #[must_use]
    pub fn root(&self) -> &Host {
        &self.root
    }

    /// The relays, in the order of the nodes that have one.
    #[must_use]
    pub fn relays(&self) -> &[Relay] {
        &self.relays
    }

    /// Ends the relays and hands out what each did. The nodes behind them are cut off afterwards.
    #[must_use]
    pub fn stop_relays(&mut self) -> Vec<crate::traffic::RelayCounters> {
        self.relays.drain(..).map(Relay::stop).collect()
    }

    /// The Node objects of all nodes as the builder made them: change them and give them to [`Lab::write_nodes`].
    #[must_use]
    pub fn manifests(&self) -> Vec<Manifest> {
        self.nodes.iter().map(Node::manifest).collect()
    }

    /// Writes the file of Node objects on every node; daemons see it at once.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn write_nodes(&self, manifests: &[Manifest]) {
        for node in &self.nodes {
            node.write_nodes(manifests);
        }
    }

    /// Starts the daemon of every node and waits until all are ready.
    ///
    /// # Panics
    /// If one does not come up; its log is in the message.
    #[track_caller]
    pub fn start_daemons(&self) {
        self.start_daemons_with(&[]);
    }

    /// Starts the daemon of every node with more flags and waits until all are ready.
    ///
    /// # Panics
    /// If one does not come up; its log is in the message.
    #[track_caller]
    pub fn start_daemons_with(&self, flags: &[&str]) {
        for node in &self.nodes {
            must(node.try_launch(flags));
        }
        for node in &self.nodes {
            must(node.try_wait_ready());
        }
    }

    fn plumb(&mut self, plan: &Builder) -> Result<()> {
        let uses_router = plan.nodes.iter().any(|node| node.behind_router);
        for name in plan.nodes.iter().map(|node| node.name.as_str()).chain([OUTSIDE]) {
            self.core.settle(&Request::Space(name.to_owned()))?;
        }
        let mtu = plan.nodes.iter().map(|node| node.mtu).max().unwrap_or(1500).max(1500);
        let mut wires = Wires { families: plan.underlay, steps: Vec::new() };
        wires.forwarding(ROOT);
        wires.bridge(ROOT, mtu, Subnet::Bridge);
        wires.join((ROOT, "out0", Subnet::Outside, 1), (OUTSIDE, "eth0", 10), mtu);
        wires.default_routes(OUTSIDE, Subnet::Outside, 1);
        if uses_router {
            self.core.settle(&Request::Space(ROUTER.to_owned()))?;
            wires.forwarding(ROUTER);
            wires.bridge(ROUTER, mtu, Subnet::Behind);
            wires.join((ROOT, "narrow0", Subnet::Between, 1), (ROUTER, "narrow0", 2), plan.router_mtu);
            wires.default_routes(ROUTER, Subnet::Between, 1);
            let destinations = Subnet::Behind.nets(plan.underlay, 0);
            for (net, via) in destinations.iter().zip(Subnet::Between.nets(plan.underlay, 2)) {
                wires.route(ROOT, net.trunc(), via.addr());
            }
        }
        let outside: Vec<IpAddr> = Subnet::Outside.nets(plan.underlay, 10).iter().map(IpNet::addr).collect();
        self.outside = Host::new(Arc::clone(&self.core), OUTSIDE, outside);
        for (index, spec) in plan.nodes.iter().enumerate() {
            let addresses = wires.node(index, spec);
            let number = u8::try_from(index + 1).context("too many nodes")?;
            let pods = plan.pods.pick(
                v4(10, 244, number, 0, 24),
                Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0), 64).into(),
            );
            self.nodes.push(Node::new(Host::new(Arc::clone(&self.core), &spec.name, addresses), pods));
        }
        // One message holds some hundreds of steps.
        for steps in wires.steps.chunks(200) {
            self.core.setup(steps.to_vec())?;
        }
        for (index, spec) in plan.nodes.iter().enumerate() {
            if let Some(harm) = spec.harm {
                let relay =
                    self.root.start_relay(&format!("n{}", index + 1), &format!("r{}", index + 1), harm)?;
                self.relays.push(relay);
            }
        }
        Ok(())
    }

    /// Adds a host on the nodes' own network. `link` is the other end of its uplink, on the bridge.
    pub(crate) fn add_bridge_host(&self, name: &str, link: &str, number: u8) -> Result<Host> {
        self.core.settle(&Request::Space(name.to_owned()))?;
        let mut wires = Wires { families: self.underlay, steps: Vec::new() };
        let addresses = wires.bridge_host(name, link, number);
        self.core.setup(wires.steps)?;
        Ok(Host::new(Arc::clone(&self.core), name, addresses))
    }

    /// Families of the pods.
    pub(crate) fn pods(&self) -> Families {
        self.pods
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    fn witness(&self) -> Witness {
        Witness {
            core: Arc::clone(&self.core),
            nodes: self.nodes.clone(),
            others: vec![self.root.clone(), self.outside.clone()],
        }
    }

    /// Everything about the lab, for people: links, addresses, routes, rules, counters, status and log of every node.
    #[must_use]
    pub fn dump(&self) -> String {
        self.witness().describe()
    }

    /// The logs of all daemons, by node name.
    #[must_use]
    pub fn logs(&self) -> Vec<(String, String)> {
        self.nodes.iter().map(|node| (node.name().to_owned(), node.log())).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.dump());
        }
        self.watchdog.stop();
        self.core.end();
    }
}
