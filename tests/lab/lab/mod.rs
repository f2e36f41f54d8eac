//! Building, watching and ending a lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::binaries::Binaries;
use crate::core::{Core, check_tun};
use crate::host::{Harm, Host, Relay};
use crate::manifest::Manifest;
use crate::must;
use crate::node::Node;
use crate::protocol::{End, ROOT, Request, Step};

/// The lab's bridge, in its root namespaces.
const BRIDGE: &str = "br0";
/// The second router's namespaces.
const ROUTER: &str = "router";
/// The host outside the cluster.
const OUTSIDE: &str = "outside";

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
    fn has_v4(self) -> bool {
        self != Self::V6
    }

    fn has_v6(self) -> bool {
        self != Self::V4
    }

    fn pick(self, v4: IpNet, v6: IpNet) -> Vec<IpNet> {
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
    fn features(self) -> Vec<(String, bool)> {
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
    name: String,
    mtu: u32,
    offloads: Offloads,
    harm: Option<Harm>,
    behind_router: bool,
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
    nodes: Vec<NodeSpec>,
    underlay: Families,
    pods: Families,
    router_mtu: u32,
    deadline: Duration,
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

fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix).into()
}

fn v6(subnet: u16, host: u16, prefix: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, 0, host), prefix).into()
}

/// A subnet of the lab: documentation ranges of RFC 5737 and RFC 3849.
#[derive(Clone, Copy, Debug)]
enum Subnet {
    /// Nodes on the bridge.
    Bridge,
    /// The host outside.
    Outside,
    /// Nodes behind the router.
    Behind,
    /// Between the two routers (RFC 2544's range, as RFC 5737 has only three).
    Between,
}

impl Subnet {
    fn nets(self, families: Families, host: u8) -> Vec<IpNet> {
        let (a, b) = match self {
            Self::Bridge => (v4(192, 0, 2, host, 24), v6(1, host.into(), 64)),
            Self::Outside => (v4(198, 51, 100, host, 24), v6(2, host.into(), 64)),
            Self::Behind => (v4(203, 0, 113, host, 24), v6(3, host.into(), 64)),
            Self::Between => (v4(198, 18, 0, host, 24), v6(4, host.into(), 64)),
        };
        families.pick(a, b)
    }
}

fn default_route(via: IpAddr) -> IpNet {
    if via.is_ipv4() { v4(0, 0, 0, 0, 0) } else { Ipv6Net::default().into() }
}

/// A lab: nodes on a bridge, a router, a host outside. Ends, with everything in it, when dropped; when the thread
/// is panicking, it first prints what it looked like.
#[derive(Debug)]
pub struct Lab {
    core: Arc<Core>,
    root: Host,
    outside: Host,
    nodes: Vec<Node>,
    relays: Vec<Relay>,
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

    /// Adds a host of its own behind a node, in a plain routed subnet 10.99.N.0/24 that the other nodes know through
    /// the underlay: what the overlay is measured against. The nodes forward only if something has told them to.
    ///
    /// # Errors
    /// If the kernel refuses, or the underlay has no IPv4.
    pub fn add_plain_host(&self, number: usize) -> Result<Host> {
        let node = self.nodes.get(number.wrapping_sub(1)).context("no such node")?;
        let name = format!("plain-{number}");
        let third = u8::try_from(number).context("node number over 255")?;
        self.core.settle(&Request::Space(name.clone()))?;
        let end = |space: &str, name: &str| End { space: space.to_owned(), name: name.to_owned() };
        let mtu = 1500;
        let (gateway, address) = (v4(10, 99, third, 1, 24), v4(10, 99, third, 2, 24));
        let mut steps = vec![
            Step::Veth { a: end(node.name(), "plain0"), b: end(&name, "eth0"), mtu },
            Step::Address { space: node.name().into(), link: "plain0".into(), net: gateway },
            Step::Address { space: name.clone(), link: "eth0".into(), net: address },
            Step::Route {
                space: name.clone(),
                destination: default_route(gateway.addr()),
                via: Some(gateway.addr()),
                link: None,
            },
        ];
        let via = node.addresses().iter().find(|address| address.is_ipv4()).copied();
        let via = via.context("the plain comparison needs an IPv4 underlay")?;
        for other in self.nodes.iter().filter(|other| other.name() != node.name()) {
            steps.push(Step::Route {
                space: other.name().into(),
                destination: gateway.trunc(),
                via: Some(via),
                link: None,
            });
        }
        self.core.setup(steps)?;
        Ok(Host::new(Arc::clone(&self.core), &name, vec![address.addr()]))
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

/// What is needed to describe a lab.
#[derive(Debug)]
struct Witness {
    core: Arc<Core>,
    nodes: Vec<Node>,
    others: Vec<Host>,
}

impl Witness {
    fn describe(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let status =
                node.overlayd(&["status", "-o", "json"]).deadline(Duration::from_secs(5)).try_output();
            let status = status.map_or_else(|error| format!("{error:#}"), |output| output.stdout);
            text += &format!(
                "\n===== {}\n{}\nstatus: {}\n{}\n",
                node.name(),
                node.describe(),
                status.trim(),
                node.log_tail()
            );
        }
        for host in &self.others {
            text += &format!("\n===== {}\n{}\n", host.label(), host.describe());
        }
        text
    }
}

/// Ends a lab whose time is over: everything that waits for it then fails.
#[derive(Debug, Default)]
struct Watchdog(Arc<(Mutex<bool>, Condvar)>);

impl Watchdog {
    fn start(&self, deadline: Duration, witness: Witness) {
        let shared = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let stopped = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (stopped, waited) = shared
                .1
                .wait_timeout_while(stopped, deadline, |stopped| !*stopped)
                .unwrap_or_else(PoisonError::into_inner);
            drop(stopped);
            if waited.timed_out() {
                eprintln!("the lab's deadline of {deadline:?} passed:\n{}", witness.describe());
                witness.core.end();
            }
        });
    }

    fn stop(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

/// Collects the steps that wire a lab.
#[derive(Debug)]
struct Wires {
    families: Families,
    steps: Vec<Step>,
}

impl Wires {
    fn forwarding(&mut self, space: &str) {
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            if key.contains("ipv4") || self.families.has_v6() {
                self.steps.push(Step::Sysctl { space: space.into(), key: key.into(), value: "1".into() });
            }
        }
    }

    fn addresses(&mut self, space: &str, link: &str, nets: &[IpNet]) {
        for net in nets {
            self.steps.push(Step::Address { space: space.into(), link: link.into(), net: *net });
        }
    }

    fn bridge(&mut self, space: &str, mtu: u32, subnet: Subnet) {
        self.steps.push(Step::Bridge { space: space.into(), name: BRIDGE.into(), mtu });
        self.addresses(space, BRIDGE, &subnet.nets(self.families, 1));
    }

    fn veth(&mut self, a: (&str, &str), b: (&str, &str), mtu: u32) {
        let end = |(space, name): (&str, &str)| End { space: space.to_owned(), name: name.to_owned() };
        self.steps.push(Step::Veth { a: end(a), b: end(b), mtu });
    }

    /// A point-to-point link with addresses on both ends.
    fn join(&mut self, a: (&str, &str, Subnet, u8), b: (&str, &str, u8), mtu: u32) {
        self.veth((a.0, a.1), (b.0, b.1), mtu);
        self.addresses(a.0, a.1, &a.2.nets(self.families, a.3));
        self.addresses(b.0, b.1, &a.2.nets(self.families, b.2));
    }

    fn route(&mut self, space: &str, destination: IpNet, via: IpAddr) {
        self.steps.push(Step::Route { space: space.into(), destination, via: Some(via), link: None });
    }

    fn default_routes(&mut self, space: &str, subnet: Subnet, gateway: u8) {
        for net in subnet.nets(self.families, gateway) {
            self.route(space, default_route(net.addr()), net.addr());
        }
    }

    fn port(&mut self, space: &str, port: &str) {
        self.steps.push(Step::Port { space: space.into(), bridge: BRIDGE.into(), port: port.into() });
    }

    /// One node: uplink, addresses, default routes. Its addresses.
    fn node(&mut self, index: usize, spec: &NodeSpec) -> Vec<IpAddr> {
        let number = index + 1;
        let (switch, subnet) =
            if spec.behind_router { (ROUTER, Subnet::Behind) } else { (ROOT, Subnet::Bridge) };
        let port = format!("n{number}");
        self.veth((switch, &port), (&spec.name, "eth0"), spec.mtu);
        let mut ends = vec![(switch, port.clone()), (spec.name.as_str(), "eth0".to_owned())];
        if spec.harm.is_some() {
            let (near, far) = (format!("r{number}"), format!("b{number}"));
            self.veth((switch, &near), (switch, &far), spec.mtu);
            self.port(switch, &far);
            ends.extend([(switch, near), (switch, far)]);
        } else {
            self.port(switch, &port);
        }
        let features = spec.offloads.features();
        if !features.is_empty() {
            for (space, link) in ends {
                let features = features.clone();
                self.steps.push(Step::Features { space: space.into(), link, features });
            }
        }
        if spec.offloads == Offloads::Wire {
            // Only where the packets end: the switch in between passes them on one by one.
            let features = vec![("rx-gro".to_owned(), true)];
            self.steps.push(Step::Features { space: spec.name.clone(), link: "eth0".into(), features });
        }
        // Numbers 11 and on: 192.0.2.11 is node-1.
        let nets = subnet.nets(self.families, (10 + number) as u8);
        self.addresses(&spec.name, "eth0", &nets);
        self.default_routes(&spec.name, subnet, 1);
        nets.iter().map(IpNet::addr).collect()
    }
}
