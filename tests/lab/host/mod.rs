//! A place in the lab where programs run: a node, a pod, the outside. Everything that makes traffic is here.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::core::Core;
use crate::firewall;
use crate::must;
use crate::observe::Observed;
use crate::packet;
use crate::process::{Command, Output, PATIENCE, Process};
use crate::protocol::{NftChange, Step};
use crate::traffic::{Bulk, Flood, Http, Packet, Ping, RelayCounters, Rtt, Stream, TcpAnswer, UdpProbe};

/// How long a single connection or echo may take before it counts as failed.
const PROBE_TIME: Duration = Duration::from_secs(3);

/// Datagrams that may be lost, one after the other, before a question for the source counts as unanswered: on a machine
/// that does too much any queue may overflow. Loss is what [`Host::udp_stream`] and [`Host::udp_flood`] measure.
const SOURCE_PROBES: u32 = 3;

/// A place in the lab where programs run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    core: Arc<Core>,
    label: String,
    space: String,
    netns: Option<PathBuf>,
    addresses: Vec<IpAddr>,
}

impl Host {
    pub(crate) fn new(core: Arc<Core>, space: &str, addresses: Vec<IpAddr>) -> Self {
        Self { core, label: space.to_owned(), space: space.to_owned(), netns: None, addresses }
    }

    pub(crate) fn in_netns(&self, label: String, netns: PathBuf, addresses: Vec<IpAddr>) -> Self {
        Self { core: Arc::clone(&self.core), label, space: self.space.clone(), netns: Some(netns), addresses }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn space(&self) -> &str {
        &self.space
    }

    pub(crate) fn netns(&self) -> Option<&Path> {
        self.netns.as_deref()
    }

    /// Its name, for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its addresses: of a node those on the underlay, of a pod those the plugin gave, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its first IPv4 address.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    #[track_caller]
    pub fn v4(&self) -> IpAddr {
        must(self.address(true))
    }

    /// Its first IPv6 address.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    #[track_caller]
    pub fn v6(&self) -> IpAddr {
        must(self.address(false))
    }

    fn address(&self, v4: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| address.is_ipv4() == v4).copied();
        found.with_context(|| format!("{} has no IPv{} address", self.label, if v4 { 4 } else { 6 }))
    }

    /// A program to run here. `overlayd`, `cni-shim` and `lab-agent` are the ones built from this workspace; other
    /// names are looked up in PATH, and a test must not depend on what is found there.
    pub fn command(&self, program: &str) -> Command {
        let path = match program {
            "overlayd" | "cni-shim" | "lab-agent" => {
                self.core.binaries().directory().join(program).to_string_lossy().into_owned()
            }
            other => other.to_owned(),
        };
        Command::new(self.clone(), path)
    }

    /// Starts `overlayd`, `cni-shim` or any program with these arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn spawn(&self, program: &str, args: &[&str]) -> Process {
        self.command(program).args(args).spawn()
    }

    fn tool(&self, name: &str) -> Command {
        self.command("lab-agent").arg(name)
    }

    /// Writes a file, aside first and then renamed into place. `/run` is the node's own; all else is the machine's.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn write_file(&self, path: &str, contents: impl Into<Vec<u8>>) {
        self.tool("put").arg(path).stdin(contents).run();
    }

    /// Reads a file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn read_file(&self, path: &str) -> String {
        self.tool("cat").arg(path).run()
    }

    /// Whether a file can be read.
    #[must_use]
    #[track_caller]
    pub fn has_file(&self, path: &str) -> bool {
        self.tool("cat").arg(path).output().success()
    }

    /// Puts a symbolic link in the place of whatever has this path, by a rename.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    pub fn symlink(&self, target: &str, path: &str) {
        self.tool("symlink").arg(target).arg(path).run();
    }

    /// Deletes a file.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn remove_file(&self, path: &str) {
        self.tool("remove").arg(path).run();
    }

    /// Permission bits in octal and the owner's uid of a file, as in "600 0".
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    #[track_caller]
    pub fn file_mode(&self, path: &str) -> String {
        self.tool("mode").arg(path).run().trim().to_owned()
    }

    /// Opens so many connections to a unix socket, says these bytes on each and then nothing. Finishing it yields, on
    /// the last line, how many of them the server had left open by then.
    ///
    /// # Panics
    /// If it cannot connect.
    #[track_caller]
    pub fn loiter(&self, path: &str, count: usize, bytes: &[u8]) -> Process {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let process = self.tool("loiter").args([path, &count.to_string(), &hex]).spawn();
        process.wait_stdout(|line| line == "loitering");
        process
    }

    /// Starts a TCP and UDP server on all its addresses, on a free port; ready when this returns.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn serve(&self) -> Server {
        self.serve_on(0)
    }

    /// Starts a TCP and UDP server on this port.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn serve_on(&self, port: u16) -> Server {
        let process = self.tool("serve").arg(port).spawn();
        let line = process.wait_stdout(|line| line.starts_with("listening "));
        let port = must(line["listening ".len()..].parse().context("the server's port"));
        Server { host: self.clone(), port, process }
    }

    /// Connects and asks which address the server sees. A refusal or timeout is an answer, not a panic.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn tcp(&self, server: SocketAddr) -> TcpAnswer {
        must(self.try_tcp(server))
    }

    /// As [`Host::tcp`].
    ///
    /// # Errors
    /// If the tool itself cannot run.
    pub fn try_tcp(&self, server: SocketAddr) -> Result<TcpAnswer> {
        self.tool("tcp-who").arg(server).arg(PROBE_TIME.as_millis()).try_json()
    }

    /// The address that a TCP server sees when this host connects to it.
    ///
    /// # Panics
    /// If the connection fails.
    #[must_use]
    #[track_caller]
    pub fn tcp_source(&self, server: SocketAddr) -> IpAddr {
        let answer = self.tcp(server);
        match answer.seen {
            Some(seen) => seen.ip(),
            None => {
                panic!("{} cannot reach {server} by TCP: {}", self.label, answer.error.unwrap_or_default())
            }
        }
    }

    /// Moves bytes to the server and compares hashes.
    ///
    /// # Panics
    /// If the transfer fails.
    #[must_use]
    #[track_caller]
    pub fn tcp_upload(&self, server: SocketAddr, bytes: u64) -> Bulk {
        must(self.bulk(server, bytes, "up", 42))
    }

    /// Moves bytes from the server to here and compares hashes.
    ///
    /// # Panics
    /// If the transfer fails.
    #[must_use]
    #[track_caller]
    pub fn tcp_download(&self, server: SocketAddr, bytes: u64) -> Bulk {
        must(self.bulk(server, bytes, "down", 43))
    }

    /// Moves zeroes to the server, unhashed: for throughput.
    ///
    /// # Errors
    /// If the transfer fails.
    pub fn throughput(&self, server: SocketAddr, bytes: u64) -> Result<Bulk> {
        self.bulk(server, bytes, "up", 0)
    }

    fn bulk(&self, server: SocketAddr, bytes: u64, way: &str, seed: u64) -> Result<Bulk> {
        let time = Duration::from_secs(90);
        self.tool("tcp-bulk")
            .arg(server)
            .args([bytes.to_string(), way.to_owned(), seed.to_string(), time.as_millis().to_string()])
            .deadline(time)
            .try_json()
    }

    /// One TCP connection that echoes 8 bytes every 10 ms until [`Running::stop`]. It waits up to 30 s for an echo.
    ///
    /// # Panics
    /// If it cannot connect.
    #[track_caller]
    pub fn tcp_stream(&self, server: SocketAddr) -> Running {
        self.stream("tcp-stream", server, Duration::from_secs(30))
    }

    /// Datagrams that echo every 10 ms until [`Running::stop`]. One that is not back after 1 s is lost.
    ///
    /// # Panics
    /// If it cannot start.
    #[track_caller]
    pub fn udp_stream(&self, server: SocketAddr) -> Running {
        self.stream("udp-stream", server, Duration::from_secs(1))
    }

    #[track_caller]
    fn stream(&self, tool: &str, server: SocketAddr, patience: Duration) -> Running {
        let process = self.tool(tool).arg(server).arg(10).arg(patience.as_millis()).spawn();
        process.wait_stdout(|line| line == "streaming");
        Running { process }
    }

    /// One UDP echo of this payload size, fragments allowed.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn udp(&self, server: SocketAddr, size: usize) -> UdpProbe {
        must(self.udp_probe(server, "allowed", size, 1))
    }

    /// UDP echoes of this payload size with don't-fragment set, and the ICMP errors that came.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn udp_df(&self, server: SocketAddr, size: usize) -> UdpProbe {
        must(self.udp_probe(server, "forbidden", size, 1))
    }

    fn udp_probe(&self, server: SocketAddr, fragments: &str, size: usize, count: u32) -> Result<UdpProbe> {
        let time = Duration::from_millis(1500);
        self.tool("udp-probe")
            .arg(server)
            .arg(fragments)
            .arg(size)
            .arg(count)
            .arg(time.as_millis())
            .try_json()
    }

    /// The address that a UDP server sees, for a small datagram.
    ///
    /// # Panics
    /// If no answer comes.
    #[must_use]
    #[track_caller]
    pub fn udp_source(&self, server: SocketAddr) -> IpAddr {
        let mut unanswered = Vec::new();
        for _ in 0..SOURCE_PROBES {
            let probe = self.udp(server, 128);
            match probe.seen {
                Some(seen) => return seen.ip(),
                None => unanswered.push(probe),
            }
        }
        panic!("{} gets no UDP answer from {server}: {unanswered:?}", self.label)
    }

    /// Datagrams one way, counted by the server; `per_second` 0 means as fast as it goes.
    ///
    /// # Errors
    /// If the tool cannot run or the server's count cannot be read.
    pub fn udp_flood(&self, server: SocketAddr, size: usize, packets: u64, per_second: u64) -> Result<Flood> {
        let flood = self.tool("udp-flood").arg(server).args([size as u64, packets, per_second]);
        flood.deadline(Duration::from_secs(60)).try_json()
    }

    /// UDP ping-pong.
    ///
    /// # Errors
    /// If nothing comes back.
    pub fn rtt(&self, server: SocketAddr, count: u32) -> Result<Rtt> {
        self.tool("rtt").arg(server).arg(count).try_json()
    }

    /// ICMP echo with this payload size in bytes, ICMP header included.
    ///
    /// # Panics
    /// If the tool itself cannot run.
    #[must_use]
    #[track_caller]
    pub fn ping(&self, target: IpAddr, size: usize, count: u32) -> Ping {
        must(self.tool("ping").arg(target).arg(size).arg(count).arg(1000).try_json())
    }

    /// Sends an IP packet as it is (see [`crate::packet`]), from whatever source it names.
    ///
    /// # Panics
    /// If the kernel does not take it.
    #[track_caller]
    pub fn inject(&self, ip_packet: &[u8]) {
        self.inject_all(&[ip_packet.to_vec()]);
    }

    /// Sends IP packets as they are, one after the other in this order.
    ///
    /// # Panics
    /// If the kernel does not take one.
    #[track_caller]
    pub fn inject_all(&self, ip_packets: &[Vec<u8>]) {
        let hex =
            |packet: &Vec<u8>| packet.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        self.tool("inject").stdin(ip_packets.iter().map(hex).collect::<String>()).run();
    }

    /// Sends a UDP datagram from any source address and port.
    ///
    /// # Panics
    /// If the kernel does not take it.
    #[track_caller]
    pub fn inject_udp(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        self.inject(&packet::udp(source, destination, payload));
    }

    /// Watches an interface until [`Sniffer::stop`]; it already listens when this returns.
    ///
    /// # Panics
    /// If there is no such interface.
    #[must_use]
    #[track_caller]
    pub fn sniff(&self, interface: &str) -> Sniffer {
        let process = self.tool("sniff").arg(interface).spawn();
        process.wait_stdout(|line| line == "sniffing");
        Sniffer { process }
    }

    /// HTTP GET.
    ///
    /// # Errors
    /// If no answer comes.
    pub fn http(&self, server: SocketAddr, path: &str) -> Result<Http> {
        self.tool("http-get").arg(server).arg(path).arg(PROBE_TIME.as_millis()).try_json()
    }

    pub(crate) fn http_await(&self, server: SocketAddr, path: &str, time: Duration) -> Result<Process> {
        self.tool("http-await").arg(server).arg(path).arg(time.as_millis()).try_spawn()
    }

    pub(crate) fn start_relay(&self, left: &str, right: &str, harm: Harm) -> Result<Relay> {
        let process = self
            .tool("relay")
            .arg(left)
            .arg(right)
            .args([harm.drop_percent, harm.duplicate_percent, harm.reorder_percent])
            .arg(harm.seed)
            .try_spawn()?;
        process.wait_stdout(|line| line == "relaying");
        Ok(Relay { process })
    }

    /// Changes the network here by hand. See also the short forms next to this one.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn change(&self, step: Step) {
        must(self.try_change(step));
    }

    fn try_change(&self, step: Step) -> Result<()> {
        if self.netns.is_none() {
            return self.core.setup(vec![step]);
        }
        self.tool("step").arg(serde_json::to_string(&step)?).try_run().map(drop)
    }

    /// Deletes a link.
    ///
    /// # Panics
    /// If there is no such link.
    #[track_caller]
    pub fn delete_link(&self, link: &str) {
        self.change(Step::Delete { space: self.space.clone(), link: link.into() });
    }

    /// Sets a link up or down.
    ///
    /// # Panics
    /// If there is no such link.
    #[track_caller]
    pub fn set_link_state(&self, link: &str, state: LinkState) {
        self.change(Step::State { space: self.space.clone(), link: link.into(), up: state == LinkState::Up });
    }

    /// Sets a link's MTU in bytes.
    ///
    /// # Panics
    /// If there is no such link.
    #[track_caller]
    pub fn set_link_mtu(&self, link: &str, mtu: u32) {
        self.change(Step::Mtu { space: self.space.clone(), link: link.into(), mtu });
    }

    /// Adds an address to a link.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn add_address(&self, link: &str, net: IpNet) {
        self.change(Step::Address { space: self.space.clone(), link: link.into(), net });
    }

    /// Adds a route through a link (protocol static, table main).
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn add_link_route(&self, destination: IpNet, link: &str) {
        let link = Some(link.to_owned());
        self.change(Step::Route { space: self.space.clone(), destination, via: None, link });
    }

    /// Adds a route through a next hop (protocol static, table main).
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn add_route(&self, destination: IpNet, via: IpAddr) {
        self.change(Step::Route { space: self.space.clone(), destination, via: Some(via), link: None });
    }

    /// Deletes every route to this destination in table main.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn delete_route(&self, destination: IpNet) {
        self.change(Step::DeleteRoute { space: self.space.clone(), destination, metric: None });
    }

    /// Deletes the routes of one metric to this destination in table main.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn delete_route_of_metric(&self, destination: IpNet, metric: u32) {
        self.change(Step::DeleteRoute { space: self.space.clone(), destination, metric: Some(metric) });
    }

    /// Adds an unreachable route (protocol static, table main).
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn add_unreachable(&self, destination: IpNet, metric: u32) {
        self.change(Step::Unreachable { space: self.space.clone(), destination, metric });
    }

    /// Makes a kernel vxlan device: a leftover in the daemon's way.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn add_vxlan(&self, name: &str, vni: u32, port: u16) {
        self.change(Step::Vxlan { space: self.space.clone(), name: name.into(), vni, port });
    }

    /// Tells a kernel vxlan device here of a peer, as flannel does.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn add_vxlan_peer(&self, link: &str, peer: &VxlanPeer) {
        let VxlanPeer { mac, tunnel, node, pods } = peer.clone();
        self.change(Step::VxlanPeer {
            space: self.space.clone(),
            link: link.into(),
            mac,
            tunnel,
            node,
            pods,
        });
    }

    /// Links, addresses and routes here, as values.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn observe(&self) -> Observed {
        self.tool("observe").json()
    }

    /// Sets a link's alias.
    ///
    /// # Panics
    /// If there is no such link.
    #[track_caller]
    pub fn set_alias(&self, link: &str, text: &str) {
        self.change(Step::Alias { space: self.space.clone(), link: link.into(), text: text.into() });
    }

    /// Switches offloads of a link by the names of `ethtool -k` in its long form.
    ///
    /// # Panics
    /// If the kernel knows no such name.
    #[track_caller]
    pub fn set_offloads(&self, link: &str, features: &[(&str, bool)]) {
        let features = features.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        self.change(Step::Features { space: self.space.clone(), link: link.into(), features });
    }

    /// Writes `/proc/sys/<key>`.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        self.change(Step::Sysctl { space: self.space.clone(), key: key.into(), value: value.into() });
    }

    /// Removes an address from a link.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn delete_address(&self, link: &str, net: IpNet) {
        self.change(Step::DeleteAddress { space: self.space.clone(), link: link.into(), net });
    }

    /// Sets a link's queue length in packets.
    ///
    /// # Panics
    /// If there is no such link.
    #[track_caller]
    pub fn set_queue_length(&self, link: &str, packets: u32) {
        self.change(Step::QueueLength { space: self.space.clone(), link: link.into(), packets });
    }

    /// Deletes a neighbour entry.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn delete_neighbour(&self, link: &str, address: IpAddr) {
        self.change(Step::DeleteNeighbour { space: self.space.clone(), link: link.into(), address });
    }

    /// Changes nftables by hand.
    ///
    /// # Panics
    /// If the kernel refuses, for example because the thing is not there.
    #[track_caller]
    pub fn nft(&self, change: NftChange) {
        self.change(Step::Nft { space: self.space.clone(), change });
    }

    /// Makes an `inet` table that nobody else may change while the returned process runs.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn own_nft_table(&self, table: &str) -> Process {
        let process = self.tool("nft-own").arg(table).spawn();
        process.wait_stdout(|line| line == "owning");
        process
    }

    /// Links, addresses, routes, permanent neighbours, rules, set elements and sysctls, one line each, without anything
    /// that changes by itself: to compare two moments by.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn objects(&self) -> Vec<String> {
        self.tool("objects").arg("ovl0").run().lines().map(ToOwned::to_owned).collect()
    }

    /// Adds somebody else's nf_tables table.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn add_table(&self, table: &firewall::Table) {
        self.tool("firewall-apply").stdin(table.transaction()).run();
    }

    /// Deletes a table of the `inet` family, whose ever it is.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn delete_table(&self, table: &str) {
        self.tool("firewall-apply").stdin(firewall::deletion(table)).run();
    }

    /// Every nf_tables table, chain, rule and set, in the kernel's order.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn firewall(&self) -> Vec<firewall::Object> {
        must(self.tool("firewall-dump").try_json())
    }

    /// Links, addresses, routes, rules and counters, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.tool("dump").deadline(Duration::from_secs(5)).try_output() {
            Ok(output) if output.success() => output.stdout,
            Ok(output) => output.to_string(),
            Err(error) => format!("{error:#}"),
        }
    }
}

/// What a kernel vxlan device must know of a peer.
#[derive(Clone, Debug)]
pub struct VxlanPeer {
    /// MAC of its end of the tunnel, with colons.
    pub mac: String,
    /// Address of its end of the tunnel.
    pub tunnel: IpAddr,
    /// Address of its node.
    pub node: IpAddr,
    /// Its pods.
    pub pods: IpNet,
}

/// Whether a link is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// `IFF_UP` is set.
    Up,
    /// It is not.
    Down,
}

/// A server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    host: Host,
    port: u16,
    process: Process,
}

impl Server {
    /// The port, TCP and UDP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its first IPv4 address with the port.
    ///
    /// # Panics
    /// If its host has none.
    #[must_use]
    #[track_caller]
    pub fn v4(&self) -> SocketAddr {
        (self.host.v4(), self.port).into()
    }

    /// Its first IPv6 address with the port.
    ///
    /// # Panics
    /// If its host has none.
    #[must_use]
    #[track_caller]
    pub fn v6(&self) -> SocketAddr {
        (self.host.v6(), self.port).into()
    }

    /// Any address with the port.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> SocketAddr {
        (address, self.port).into()
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

impl Deref for Server {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// A stream that runs until told to stop.
#[derive(Debug)]
pub struct Running {
    process: Process,
}

impl Running {
    /// How many echoes have come back so far.
    #[must_use]
    pub fn echoes(&self) -> usize {
        self.process.stdout().lines().filter(|line| line.starts_with("echo ")).count()
    }

    /// Waits until so many more echoes have come back.
    ///
    /// # Panics
    /// If they have not within 20 s.
    #[track_caller]
    pub fn wait_echoes(&self, more: usize) {
        let line = format!("echo {}", self.echoes() + more);
        self.process.wait_stdout(|said| said == line);
    }

    /// Stops it; what came of it.
    ///
    /// # Panics
    /// If it does not report.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> Stream {
        self.process.close_stdin();
        let _ = must(self.process.try_wait(PATIENCE * 2));
        self.process.finish_json()
    }
}

/// A sniffer.
#[derive(Debug)]
pub struct Sniffer {
    process: Process,
}

impl Sniffer {
    /// Stops it; the packets it saw, oldest first, at most 4,096.
    ///
    /// # Panics
    /// If it does not report.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> Vec<Packet> {
        self.process.finish_json()
    }
}

/// How a relay treats frames; shares in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Harm {
    /// Thrown away.
    pub drop_percent: f64,
    /// Sent twice.
    pub duplicate_percent: f64,
    /// Held back behind the next frame.
    pub reorder_percent: f64,
    /// Of the die.
    pub seed: u64,
}

/// A relay between a node and the bridge.
#[derive(Debug)]
pub struct Relay {
    process: Process,
}

impl Relay {
    /// Stops it (the node is cut off from then on); what it did.
    ///
    /// # Panics
    /// If it does not report.
    #[must_use]
    #[track_caller]
    pub fn stop(self) -> RelayCounters {
        self.process.finish_json()
    }
}

/// Runs a plugin-like program: environment and standard input given, exit and output taken.
pub(crate) fn run_plugin(host: &Host, env: &[(&str, String)], stdin: String) -> Result<Output> {
    let mut command = host.command("cni-shim").stdin(stdin).deadline(Duration::from_secs(40));
    for (key, value) in env {
        command = command.env(key, value);
    }
    command.try_output()
}
