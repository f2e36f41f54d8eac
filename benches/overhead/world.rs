//! The underlays that everything is measured on, and the contenders on each.
//!
//! Nodes 1 and 2 run overlayd as users do, with its egress rules and the connection tracking that they bring. Nodes 3 and 4 carry the others; the
//! bench gives them the same rules, unless told to leave them bare. A second build of overlayd, if one is given, has nodes 5 and 6; flannel,
//! which brings its own rules, has the last two.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tests::load::LoadServer;
use tests::{Beside, Command, Families, Host, Lab, LinkState, Node, Offloads, Process, Way, eventually};

use crate::report::{BASE, Contender};
use crate::{flannel, rules, wireguard};

/// UDP port of the one-packet tunnel: the one of flannel's `udp` backend.
const ONE_PACKET_PORT: u16 = 8285;

/// The nodes that carry what is measured beside overlayd.
const OTHERS: [usize; 2] = [3, 4];

/// Subnets of the hosts behind them.
const PLAIN_SUBNET: u8 = 99;
const VXLAN_SUBNET: u8 = 98;
const ONE_PACKET_SUBNET: u8 = 97;
const WIREGUARD_SUBNET: u8 = 96;

pub(crate) const WIREGUARD: &str = "wireguard-go";
pub(crate) const FLANNEL: &str = "flannel-udp";

/// An underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WorldKind {
    /// Uplinks as the kernel makes a veth: 64 KiB pass in one piece
    L1,
    /// Uplinks like a network card without tunnel offload: no segmentation, GRO on
    L2,
    /// As l1, MTU 9000
    Jumbo,
    /// As l1, IPv6 between pods
    Inner6,
    /// As l1, IPv6 between nodes
    Underlay6,
}

impl WorldKind {
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Jumbo => "jumbo",
            Self::Inner6 => "inner6",
            Self::Underlay6 => "underlay6",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::L1 => "L1: uplinks with a veth's offloads, MTU 1500",
            Self::L2 => "L2: wire-like uplinks (no segmentation offload, GRO on), MTU 1500",
            Self::Jumbo => "L1 with MTU 9000",
            Self::Inner6 => "L1 with IPv6 between pods",
            Self::Underlay6 => "L1 with IPv6 between nodes",
        }
    }

    /// Whether all of it is IPv4, which is what some contenders carry.
    pub(crate) fn is_v4(self) -> bool {
        self.pods() == Families::V4 && self.underlay() == Families::V4
    }

    fn mtu(self) -> u32 {
        if self == Self::Jumbo { 9000 } else { 1500 }
    }

    pub(crate) fn offloads(self) -> Offloads {
        if self == Self::L2 { Offloads::Wire } else { Offloads::Veth }
    }

    fn pods(self) -> Families {
        if self == Self::Inner6 { Families::V6 } else { Families::V4 }
    }

    fn underlay(self) -> Families {
        match self {
            Self::Underlay6 => Families::V6,
            // Plain routes need an IPv6 next hop; the tunnels take IPv4, which comes first.
            Self::Inner6 => Families::Dual,
            _ => Families::V4,
        }
    }

    /// What plain routes carry: the family of the underlay that they need as next hop.
    fn plain(self) -> Families {
        if self == Self::Underlay6 { Families::V6 } else { self.pods() }
    }

    /// IP and UDP headers of the underlay in bytes.
    fn outer(self) -> u32 {
        if self == Self::Underlay6 { 48 } else { 28 }
    }
}

/// A way from one host to another, with everything running.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) id: String,
    pub(crate) client: Host,
    pub(crate) server: LoadServer,
    pub(crate) to: SocketAddr,
    /// Process ids of what carries its packets in user space.
    pub(crate) carriers: Vec<i32>,
    _running: Vec<Process>,
}

/// A lab with all contenders on it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) ways: Vec<Route>,
}

/// Who takes part.
#[derive(Clone, Debug)]
pub(crate) struct Cast {
    /// The program of wireguard-go, or why it takes no part.
    pub(crate) wireguard: Result<PathBuf, String>,
    /// The programs of flannel, or why it takes no part.
    pub(crate) flannel: Result<flannel::Programs, String>,
    /// Only these, if any are named.
    pub(crate) only: Vec<String>,
    /// No rules on the nodes of the others.
    pub(crate) bare: bool,
    /// Another build of overlayd.
    pub(crate) against: Option<PathBuf>,
    /// Flags for overlayd.
    pub(crate) flags: Vec<String>,
    /// Flags for the other build.
    pub(crate) against_flags: Vec<String>,
}

impl Cast {
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let all = [
            ("plain", "plain routes, no tunnel"),
            (BASE, "kernel vxlan"),
            ("overlayd", "overlayd"),
            ("overlayd-other", "overlayd, the other build or flags"),
            ("one-packet", "one packet per system call (TUN + UDP)"),
            (FLANNEL, "flannel, its udp backend"),
            (WIREGUARD, "wireguard-go (encrypts)"),
        ];
        let wanted = |id: &str| {
            (id != "overlayd-other" || self.against.is_some())
                && (id != WIREGUARD || self.wireguard.is_ok())
                && (id != FLANNEL || self.flannel.is_ok())
                && (self.only.is_empty() || id == BASE || self.only.iter().any(|only| only == id))
        };
        let contender = |(id, title): (&str, &str)| Contender { id: id.to_owned(), title: title.to_owned() };
        all.into_iter().filter(|(id, _)| wanted(id)).map(contender).collect()
    }
}

impl Stage {
    pub(crate) fn build(kind: WorldKind, cast: &Cast) -> Result<Self> {
        let mut builder = Lab::builder()
            .pods(kind.pods())
            .underlay(kind.underlay())
            .deadline(Duration::from_secs(4 * 3600));
        let others = 4 + if cast.against.is_some() { 2 } else { 0 };
        let contenders = cast.contenders().into_iter().filter(|one| kind.is_v4() || one.id != FLANNEL);
        let contenders: Vec<Contender> = contenders.collect();
        let flannels = if contenders.iter().any(|one| one.id == FLANNEL) { 2 } else { 0 };
        for _ in 0..others + flannels {
            builder = builder.node(|spec| spec.mtu(kind.mtu()).offloads(kind.offloads()));
        }
        let lab = builder.try_start()?;
        if !cast.bare {
            let subnets = [PLAIN_SUBNET, VXLAN_SUBNET, ONE_PACKET_SUBNET, WIREGUARD_SUBNET];
            rules::lay(&lab, OTHERS, &subnets)?;
        }
        let mut ways = Vec::new();
        for contender in contenders {
            let way = match contender.id.as_str() {
                "overlayd" => overlayd(&lab, [1, 2], None, &cast.flags),
                "overlayd-other" => overlayd(&lab, [5, 6], cast.against.as_deref(), &cast.against_flags),
                WIREGUARD => wireguard_go(&lab, cast, kind),
                FLANNEL => flannel_udp(&lab, [others + 1, others + 2], cast, kind),
                id => beside(&lab, id, kind),
            };
            ways.push(way.with_context(|| format!("{} in {}", contender.id, kind.id()))?);
        }
        Ok(Self { lab, ways })
    }
}

fn overlayd(lab: &Lab, nodes: [usize; 2], program: Option<&Path>, flags: &[String]) -> Result<Route> {
    let nodes = nodes.map(|number| lab.node(number));
    let mut running = Vec::new();
    for node in &nodes {
        match program {
            None => {
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                node.try_launch(&flags)?;
                node.try_wait_ready()?;
            }
            Some(program) => running.push(start(node, program, flags)?),
        }
    }
    let pods = [nodes[0].try_add_pod("client")?, nodes[1].try_add_pod("server")?];
    let carriers =
        nodes.iter().map(|node| Ok(node.try_status()?.pid.cast_signed())).collect::<Result<_>>()?;
    let [client, server] = pods.map(|pod| Host::clone(&pod));
    let id = if program.is_some() { "overlayd-other" } else { "overlayd" };
    way(id, [client, server], carriers, running)
}

/// Starts another build's daemon as the lab starts this one's.
fn start(node: &Node, program: &Path, flags: &[String]) -> Result<Process> {
    let arguments = ["run", "--node-name", node.name(), "--nodes-file", tests::node::NODES_FILE];
    let command = node.command(&program.to_string_lossy()).args(arguments);
    let process = command.args(["--run-dir", tests::node::RUN_DIR]).args(flags).try_spawn()?;
    eventually("the other build is ready", Duration::from_secs(20), || {
        node.try_status().is_ok_and(|status| status.ready)
    });
    Ok(process)
}

/// This program as one of its hidden tools, to run on a node.
pub(crate) fn tool(node: &Node, name: &str) -> Result<Command> {
    let program = std::env::current_exe().context("where is this program")?;
    Ok(node.command(&program.to_string_lossy()).args([name]))
}

/// What the node has in its lab's first family.
pub(crate) fn underlay(node: &Node) -> Result<IpAddr> {
    node.addresses().first().copied().context("no underlay address")
}

fn beside(lab: &Lab, id: &str, kind: WorldKind) -> Result<Route> {
    let nodes = OTHERS.map(|number| lab.node(number));
    let (mut running, mut carriers) = (Vec::new(), Vec::new());
    let beside = match id {
        "plain" => {
            let mtu = kind.mtu();
            Beside {
                name: "plain".into(),
                subnet: PLAIN_SUBNET,
                families: kind.plain(),
                mtu,
                way: Way::Plain,
            }
        }
        "one-packet" => {
            let (device, mtu) = ("one0", kind.mtu() - kind.outer());
            let at = |node: &Node| -> Result<String> {
                Ok(SocketAddr::new(underlay(node)?, ONE_PACKET_PORT).to_string())
            };
            let [one, two] = &nodes;
            for (own, other) in [(one, two), (two, one)] {
                let arguments = [device.to_owned(), mtu.to_string(), at(own)?, at(other)?];
                let process = tool(own, "one-packet")?.args(arguments).try_spawn()?;
                process.wait_stdout(|line| line == "carrying");
                carriers.push(process.pid());
                running.push(process);
            }
            let way = Way::Device(device.into());
            Beside { name: "one".into(), subnet: ONE_PACKET_SUBNET, families: kind.pods(), mtu, way }
        }
        _ => {
            // VXLAN's and the inner Ethernet header.
            let mtu = kind.mtu() - kind.outer() - 22;
            Beside {
                name: "kvx".into(),
                subnet: VXLAN_SUBNET,
                families: kind.pods(),
                mtu,
                way: Way::KernelVxlan,
            }
        }
    };
    way(id, lab.add_beside(OTHERS, &beside)?, carriers, running)
}

fn wireguard_go(lab: &Lab, cast: &Cast, kind: WorldKind) -> Result<Route> {
    let nodes = OTHERS.map(|number| lab.node(number));
    let program = cast.wireguard.as_ref().map_err(|why| anyhow!("{why}"))?;
    let mtu = kind.mtu() - kind.outer() - wireguard::OVERHEAD;
    let (mut running, mut carriers) = (Vec::new(), Vec::new());
    for (end, node) in nodes.iter().enumerate() {
        let process = node.command(&program.to_string_lossy()).args(["-f", wireguard::DEVICE]).try_spawn()?;
        carriers.push(process.pid());
        running.push(process);
        let peer = SocketAddr::new(underlay(&nodes[1 - end])?, wireguard::PORT).to_string();
        eventually("wireguard-go takes its configuration", Duration::from_secs(20), || {
            let configure = tool(node, "wireguard").map(|tool| tool.args([&end.to_string(), &peer]));
            configure.and_then(Command::try_run).is_ok()
        });
        node.set_link_mtu(wireguard::DEVICE, mtu);
        node.set_link_state(wireguard::DEVICE, LinkState::Up);
    }
    let way_of_it = Way::Device(wireguard::DEVICE.into());
    let beside =
        Beside { name: "wg".into(), subnet: WIREGUARD_SUBNET, families: kind.pods(), mtu, way: way_of_it };
    way(WIREGUARD, lab.add_beside(OTHERS, &beside)?, carriers, running)
}

/// On nodes of its own: it brings rules, as overlayd does.
fn flannel_udp(lab: &Lab, nodes: [usize; 2], cast: &Cast, kind: WorldKind) -> Result<Route> {
    let programs = cast.flannel.as_ref().map_err(|why| anyhow!("{why}"))?;
    let running = flannel::start(lab, nodes, programs)?;
    let carriers = running.iter().take(nodes.len()).map(Process::pid).collect();
    let (name, families, mtu) = ("fl".to_owned(), kind.pods(), kind.mtu() - kind.outer());
    let way_of_it = Way::Device(flannel::DEVICE.into());
    let hosts =
        lab.add_beside(nodes, &Beside { name, subnet: flannel::SUBNET, families, mtu, way: way_of_it })?;
    let [client, server] = &hosts;
    eventually("flannel's nodes know each other", Duration::from_secs(30), || {
        client.ping(server.v4(), 64, 1).answered == 1
    });
    way(FLANNEL, hosts, carriers, running)
}

fn way(id: &str, [client, server]: [Host; 2], carriers: Vec<i32>, running: Vec<Process>) -> Result<Route> {
    let address: IpAddr = server.addresses().first().copied().context("a server without address")?;
    ensure!(client.addresses().iter().any(|own| own.is_ipv4() == address.is_ipv4()), "families differ");
    let serving = server.serve_load()?;
    let to = SocketAddr::new(address, serving.port);
    Ok(Route { id: id.to_owned(), client, server: serving, to, carriers, _running: running })
}
