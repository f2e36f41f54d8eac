//! Changes of a host's links, addresses, routes, sysctls and nftables by hand.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use super::Host;
use crate::firewall;
use crate::must;
use crate::process::Process;
use crate::protocol::{NftChange, Step};

impl Host {
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

    /// Deletes the rules that choose a table by this source.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[track_caller]
    pub fn delete_rule(&self, source: IpNet) {
        self.change(Step::DeleteRule { space: self.space.clone(), source });
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
