//! The egress rules of overlayd on nodes that it does not run on: every way from pod to pod that Kubernetes knows masquerades what
//! leaves the cluster, and so tracks connections. A tunnel measured without has less to do than in use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;
use overlayd::core::cluster::{Cluster, Own, Peer, PeerPath};
use overlayd::core::config::{Config, MachineFacts, RawConfig};
use overlayd::core::desired::{Inputs, desired};
use overlayd::core::plan::{Actual, Op};
use overlayd::kernel::Kernel;
use tests::{Beside, KERNEL_VXLAN_PORT, Lab};
use wire::packet::MacAddr;

use crate::world::{tool, underlay};

/// Lays the rules for one end of a pair of nodes, in the namespace that it is started in.
#[derive(Debug, clap::Args)]
pub(crate) struct Rules {
    /// Pod networks behind this node.
    #[arg(long, required = true)]
    own: Vec<IpNet>,
    /// Pod networks behind the other.
    #[arg(long, required = true)]
    other: Vec<IpNet>,
    /// This node's underlay address.
    #[arg(long)]
    at: IpAddr,
    /// The other's.
    #[arg(long)]
    to: IpAddr,
}

/// Starts this program on both nodes (numbers from 1) to lay the rules for hosts in these subnets.
pub(crate) fn lay(lab: &Lab, nodes: [usize; 2], subnets: &[u8]) -> Result<()> {
    let [one, two] = nodes;
    for (own, other) in [(one, two), (two, one)] {
        let mut arguments = Vec::new();
        for (flag, number) in [("own", own), ("other", other)] {
            let number = u8::try_from(number).context("node number over 255")?;
            let cidrs = subnets.iter().flat_map(|subnet| Beside::cidrs(*subnet, number));
            arguments.extend(cidrs.map(|cidr| format!("--{flag}={cidr}")));
        }
        for (flag, number) in [("at", own), ("to", other)] {
            arguments.push(format!("--{flag}={}", underlay(&lab.node(number))?));
        }
        tool(&lab.node(own), "rules")?.args(arguments).try_run()?;
    }
    Ok(())
}

/// Makes the table that overlayd would have here.
pub(crate) fn run(rules: &Rules) -> Result<()> {
    // Only the number of workers and the length of their queues follow from these.
    let machine = MachineFacts { hostname: "node".to_owned(), cpus: 1, memory: 1 << 30 };
    let defaults = Config::resolve(None, &BTreeMap::new(), &RawConfig::default(), &machine);
    let config = Config {
        port: KERNEL_VXLAN_PORT,
        ..defaults.map_err(|faults| anyhow!("the defaults have faults: {faults:?}"))?
    };
    let mac = MacAddr::local([2, 0, 0, 0, 0, 1]);
    let path = PeerPath { underlay: rules.to, mac, pod_cidrs: rules.other.clone() };
    let own = Own {
        name: "own".to_owned(),
        pod_cidrs: rules.own.clone(),
        underlay_v4: if let IpAddr::V4(v4) = rules.at { Some(v4) } else { None },
        underlay_v6: if let IpAddr::V6(v6) = rules.at { Some(v6) } else { None },
        mac,
    };
    let cluster = Cluster {
        own: Some(own.clone()),
        own_problem: None,
        peers: vec![Peer { name: "other".to_owned(), paths: vec![path] }],
        refused: Vec::new(),
    };
    let (path_mtus, actual) = (BTreeMap::new(), Actual::default());
    let wish = desired(Inputs {
        config: &config,
        own: &own,
        cluster: &cluster,
        path_mtus: &path_mtus,
        actual: &actual,
    });
    Kernel::open(&config.device)?.apply(&Op::ReplaceTable(wish.table))?;
    Ok(())
}
