//! The lab: nodes as namespaces on one machine, for tests that need the real thing.
//!
//! ```no_run
//! use tests::Lab;
//!
//! let lab = Lab::with_nodes(2);
//! let client = lab.node(1).add_pod("client");
//! let server = lab.node(2).add_pod("server").serve();
//! assert_eq!(client.tcp_source(server.v4()), client.v4());
//! ```
//!
//! # How it is built
//!
//! [`Builder::start`] starts one process, `lab-agent hold`, which makes pid, mount, network, uts and ipc namespaces
//! (a user namespace too, if it has to) and serves a control socket inside them. Every node is a set of mount,
//! network, uts and ipc namespaces within, with its own `/sys`, `/run` and host name; a pod is a further network
//! namespace under the node's `/run/netns`. Programs are started by the agent *inside* (one fork, no wrapper) with
//! the test's own pipes, so that they belong to the lab's pid namespace. When the test process goes away, by
//! whatever way, the control socket closes, the agent ends, and the kernel takes down the rest. Nothing is ever
//! done in the host's network namespace, and no name outside the namespaces is used, so labs run in parallel.
//!
//! ```text
//!   node-1 eth0 192.0.2.11 --- n1 \                      / narrow0 -- router (Builder::router_mtu)
//!   node-2 eth0 192.0.2.12 --- n2 -- br0 192.0.2.1, root                 \-- br0 203.0.113.1 -- node behind router
//!   node-3 ...     (relay) r3/b3 /                       \ out0 -- outside eth0 198.51.100.10
//! ```
//!
//! Pod CIDRs are 10.244.N.0/24 and fd00:10:244:N::/64; IPv6 underlay addresses 2001:db8:1::b and on (host part =
//! the IPv4 host part in hex, 11 is `b`). The file of Node objects stands at [`node::NODES_FILE`] on each node.
//!
//! # What is where
//!
//! * [`Lab`], [`Builder`], [`NodeSpec`]: topology, MTU, offloads, families, relays, router, deadline, dump.
//! * [`Node`]: `start_daemon`, `start_daemon_under` a kernel that refuses an offload, `kill_daemon`, `restart_daemon`, `status`, `log`, `drops`, `add_pod`, `write_nodes`.
//! * [`Pod`] and [`Cni`]: the plugin as a runtime calls it, every verb, with every field to bend.
//! * [`Host`] (what node, pod, outside and root dereference to): `command`, `serve`, `tcp`, `tcp_source`,
//!   `tcp_upload`, `tcp_stream`, `udp`, `udp_df`, `udp_flood`, `ping`, `rtt`, `sniff`, `inject`; changes of
//!   links, addresses, routes, neighbours, nftables and sysctls by hand; `objects` to compare two moments by.
//! * [`Node::use_kubeconfig`] for a daemon that takes its Nodes from an API server, and [`Host::api_proxy`], a door to that server that
//!   does harm on demand.
//! * [`Lab::add_beside`]: hosts that reach each other without the daemon, to measure it against; [`load`]: generators for that.
//! * [`kills`]: plugins and daemons killed at random moments.
//! * [`kubernetes`]: a real control plane beside the nodes. [`runtime`]: containerd alone.
//! * [`firewall`]: rules of somebody else, and all rules byte by byte.
//! * [`packet`]: crafted IP, UDP and VXLAN packets. [`eventually`]: waiting where no event exists.
//!
//! Functions without `try_` panic with a sentence when their own work fails, and say so at the caller's line; what
//! the *network* answers (no connection, an ICMP error, loss) is a value to assert on. A lab that is dropped by a
//! panicking thread prints every node's links, addresses, routes, rules, counters, status and log. A lab whose
//! deadline passes is ended, which makes whatever waits for it fail.

mod beside;
pub mod binaries;
mod core;
pub mod firewall;
pub mod go;
pub mod host;
pub mod kills;
pub mod kubernetes;
mod lab;
pub mod load;
pub mod manifest;
pub mod node;
pub mod observe;
pub mod packet;
pub mod pod;
pub mod process;
#[doc(hidden)]
pub mod protocol;
mod refusal;
pub mod runtime;
pub mod suite;
pub mod traffic;
#[doc(hidden)]
pub mod wire_up;

use std::time::{Duration, Instant};

pub use beside::{Beside, KERNEL_VXLAN_PORT, Way};
pub use host::{ApiProxy, Harm, Host, LinkState, Relay, Running, Server, Sniffer, VxlanPeer};
pub use lab::{Builder, Families, Lab, NodeSpec, Offloads};
pub use manifest::Manifest;
pub use node::Node;
pub use pod::{Cni, Pod};
pub use process::{Command, Output, Process};
pub use protocol::{Exit, NftChange, NftFamily};
pub use refusal::Refusal;

/// Asks again every 10 ms until the answer is yes. For conditions that no event announces.
///
/// # Panics
/// If it is still no at the deadline; the message says what was waited for.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A result that a test cannot go on without.
#[track_caller]
pub(crate) fn must<T>(result: anyhow::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}
