//! What the test process and the agent inside the lab say to each other: one JSON message per
//! packet of a `SOCK_SEQPACKET` pair. Every [`Request`] travels on the control socket together with one
//! end of a fresh pair, the channel of that request; [`Answer`]s and [`Order`]s travel on the channel.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Upper bound of one message in bytes; under the default send buffer of a unix socket (212,992).
pub const MESSAGE_LIMIT: usize = 160 * 1024;

/// Name of the lab's root namespaces, where bridge and router live.
pub const ROOT: &str = "root";

/// What the test process asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Makes namespaces (net, mount, uts, ipc) under this name; the name becomes the host name.
    Space(String),
    /// Carries out these steps in order; stops at the first that fails.
    Setup(Vec<Step>),
    /// Starts a process. Its standard streams come along as three more descriptors.
    Spawn(Spawn),
}

/// A process to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spawn {
    /// In which namespaces.
    pub space: String,
    /// Network namespace to enter instead, a path as seen in the space.
    pub netns: Option<PathBuf>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Stays in the caller's session, so that it can use the terminal.
    pub interactive: bool,
}

/// What the agent answers on a request's channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// Not done, and why.
    Failed(String),
    /// The process runs; its id inside the lab.
    Started(i32),
    /// The process ended.
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How long it ran, from the moment that its program was loaded.
    pub took: std::time::Duration,
}

/// What the test process says about a running process. Closing the channel kills it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Sends this signal.
    Signal(i32),
}

/// One end of a veth pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct End {
    /// In which space.
    pub space: String,
    /// Name there.
    pub name: String,
}

/// One change of the lab's network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Makes a veth pair, both ends up.
    Veth {
        /// One end.
        a: End,
        /// The other end.
        b: End,
        /// MTU of both in bytes.
        mtu: u32,
    },
    /// Makes a bridge, up.
    Bridge {
        /// In which space.
        space: String,
        /// Name.
        name: String,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Makes a link a port of a bridge.
    Port {
        /// In which space.
        space: String,
        /// The bridge.
        bridge: String,
        /// The link.
        port: String,
    },
    /// Makes a kernel vxlan device, up.
    Vxlan {
        /// In which space.
        space: String,
        /// Name.
        name: String,
        /// VNI.
        vni: u32,
        /// UDP port.
        port: u16,
    },
    /// Adds an address.
    Address {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Sets a link's alias.
    Alias {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// The alias.
        text: String,
    },
    /// Makes one end of a tunnel of the kernel's vxlan, up, as flannel makes it.
    Tunnel {
        /// In which space.
        space: String,
        /// Name.
        name: String,
        /// VNI.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Own address on the underlay.
        local: IpAddr,
        /// Own MAC inside the tunnel, with colons.
        mac: String,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Tells a kernel vxlan device of a peer as flannel does: neighbour, forwarding entry, on-link route.
    VxlanPeer {
        /// In which space.
        space: String,
        /// The vxlan device.
        link: String,
        /// MAC of the peer's end of the tunnel, with colons.
        mac: String,
        /// Address of the peer's end of the tunnel.
        tunnel: IpAddr,
        /// Address of the peer's node.
        node: IpAddr,
        /// Pods of the peer.
        pods: IpNet,
    },
    /// Adds a route (table main, protocol static).
    Route {
        /// In which space.
        space: String,
        /// Destination.
        destination: IpNet,
        /// Next hop.
        via: Option<IpAddr>,
        /// Link, if there is no next hop on a connected network.
        link: Option<String>,
    },
    /// Adds an unreachable route (table main, protocol static).
    Unreachable {
        /// In which space.
        space: String,
        /// Destination.
        destination: IpNet,
        /// Metric.
        metric: u32,
    },
    /// Deletes routes to this destination in table main.
    DeleteRoute {
        /// In which space.
        space: String,
        /// Destination.
        destination: IpNet,
        /// Only those of this metric.
        metric: Option<u32>,
    },
    /// Sets a link up or down.
    State {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// Up, or down.
        up: bool,
    },
    /// Sets a link's MTU.
    Mtu {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// Bytes.
        mtu: u32,
    },
    /// Deletes a link.
    Delete {
        /// In which space.
        space: String,
        /// The link.
        link: String,
    },
    /// Switches offloads by the kernel's feature names; a name the kernel lacks is an error.
    Features {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// Feature and whether it is on.
        features: Vec<(String, bool)>,
    },
    /// Writes `/proc/sys/<key>`.
    Sysctl {
        /// In which space.
        space: String,
        /// Path below `/proc/sys`.
        key: String,
        /// Value.
        value: String,
    },
    /// Removes an address from a link.
    DeleteAddress {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Sets a link's queue length.
    QueueLength {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// Packets.
        packets: u32,
    },
    /// Deletes a neighbour entry.
    DeleteNeighbour {
        /// In which space.
        space: String,
        /// The link.
        link: String,
        /// The neighbour.
        address: IpAddr,
    },
    /// Deletes the rules from a source.
    DeleteRule {
        /// In which space.
        space: String,
        /// The source.
        source: IpNet,
    },
    /// Changes nftables.
    Nft {
        /// In which space.
        space: String,
        /// How.
        change: NftChange,
    },
}

/// Family of an nftables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NftFamily {
    /// `inet`.
    Inet,
    /// `ip`.
    Ip,
}

/// One change of nftables by hand.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NftChange {
    /// Deletes a table.
    DeleteTable(NftFamily, String),
    /// Deletes one rule.
    DeleteRule {
        /// Family of the table.
        family: NftFamily,
        /// Table.
        table: String,
        /// Chain.
        chain: String,
        /// Which rule of the chain, from 0.
        position: usize,
    },
    /// Deletes one interval from a set.
    DeleteElement {
        /// Family of the table.
        family: NftFamily,
        /// Table.
        table: String,
        /// Set.
        set: String,
        /// First address of the interval.
        first: IpAddr,
        /// The address behind its last one.
        end: IpAddr,
    },
    /// Makes a table with a base chain at the forward hook that drops by policy.
    AddForwardDrop {
        /// Family of the table.
        family: NftFamily,
        /// Table.
        table: String,
        /// Chain.
        chain: String,
    },
}
