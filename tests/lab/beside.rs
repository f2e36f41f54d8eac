//! What the overlay is measured against: hosts behind the same kind of node that reach each other another way.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv6Net};

use crate::host::Host;
use crate::lab::{Families, Lab, default_route, v4};
use crate::protocol::{End, Request, Step};

/// VNI and port of the kernel's tunnel: not those of the daemon, so that both can be on one node.
const VNI: u32 = 77;

/// UDP port of the kernel's tunnel.
pub const KERNEL_VXLAN_PORT: u16 = 4790;

/// How the hosts' packets get from node to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Routed by the nodes' underlay addresses, in no tunnel.
    Plain,
    /// The kernel's vxlan device with static neighbours and forwarding entries, as flannel programs it.
    KernelVxlan,
    /// Routed into a device that somebody else makes and serves, and that exists when this is called.
    Device(String),
}

/// A pair of hosts behind two nodes.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Begins the names of hosts and links; at most 6 letters.
    pub name: String,
    /// Hosts are in `10.SUBNET.N.0/24` and `fd00:10:SUBNET:N::/64` behind node N; 244 is the pods'.
    pub subnet: u8,
    /// Families of the hosts.
    pub families: Families,
    /// MTU of the hosts' links in bytes.
    pub mtu: u32,
    /// How they reach each other.
    pub way: Way,
}

impl Beside {
    fn gateways(&self, node: u8) -> Vec<IpNet> {
        self.addresses(node, 1)
    }

    fn addresses(&self, node: u8, host: u8) -> Vec<IpNet> {
        let [one, other] = Self::pair(self.subnet, node, host);
        self.families.pick(one, other)
    }

    /// The networks of this subnet's hosts behind node N, IPv4 first.
    #[must_use]
    pub fn cidrs(subnet: u8, node: u8) -> [IpNet; 2] {
        Self::pair(subnet, node, 0).map(|net| net.trunc())
    }

    fn pair(subnet: u8, node: u8, host: u8) -> [IpNet; 2] {
        // The decimal digits of the subnet, read as hexadecimal, so that both families look alike.
        let digits = u16::from_str_radix(&subnet.to_string(), 16).unwrap_or_default();
        let address = Ipv6Addr::new(0xfd00, 0x10, digits, node.into(), 0, 0, 0, host.into());
        [v4(10, subnet, node, host, 24), Ipv6Net::new_assert(address, 64).into()]
    }

    /// Locally administered; differs between nodes.
    fn mac(node: u8) -> String {
        format!("02:00:00:4b:56:{node:02x}")
    }
}

impl Lab {
    /// Adds a host behind each of two nodes (numbers from 1), and the way between them. The nodes forward from then on.
    ///
    /// # Errors
    /// If the kernel refuses, or the way needs an underlay family that the lab lacks.
    pub fn add_beside(&self, nodes: [usize; 2], beside: &Beside) -> Result<[Host; 2]> {
        let [one, two] = nodes;
        let hosts = [self.add_host(one, beside)?, self.add_host(two, beside)?];
        for (own, other) in [(one, two), (two, one)] {
            let steps = self.way(own, other, beside)?;
            self.core().setup(steps).with_context(|| format!("{} on node {own}", beside.name))?;
        }
        Ok(hosts)
    }

    fn add_host(&self, number: usize, beside: &Beside) -> Result<Host> {
        let (node, space) = (self.node(number), format!("{}-{number}", beside.name));
        let number = u8::try_from(number).context("node number over 255")?;
        self.core().settle(&Request::Space(space.clone()))?;
        let link = format!("{}-host", beside.name);
        let end = |space: &str, name: &str| End { space: space.to_owned(), name: name.to_owned() };
        let mut steps =
            vec![Step::Veth { a: end(node.name(), &link), b: end(&space, "eth0"), mtu: beside.mtu }];
        let mut found = Vec::new();
        for (gateway, net) in beside.gateways(number).into_iter().zip(beside.addresses(number, 2)) {
            steps.push(Step::Address { space: node.name().into(), link: link.clone(), net: gateway });
            steps.push(Step::Address { space: space.clone(), link: "eth0".into(), net });
            let (destination, via) = (default_route(gateway.addr()), Some(gateway.addr()));
            steps.push(Step::Route { space: space.clone(), destination, via, link: None });
            let family = if net.addr().is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
            let (space, key) = (node.name().to_owned(), format!("net/{family}"));
            steps.push(Step::Sysctl { space, key, value: "1".into() });
            found.push(net.addr());
        }
        self.core().setup(steps)?;
        Ok(Host::new(Arc::clone(self.core()), &space, found))
    }

    fn way(&self, own: usize, other: usize, beside: &Beside) -> Result<Vec<Step>> {
        let (own_node, other_node) = (self.node(own), self.node(other));
        let space = own_node.name().to_owned();
        let (own, other) = (u8::try_from(own)?, u8::try_from(other)?);
        let gateways = beside.gateways(other);
        let to = |net: &IpNet, via, link| Step::Route {
            space: space.clone(),
            destination: net.trunc(),
            via,
            link,
        };
        match &beside.way {
            Way::Plain => gateways
                .iter()
                .map(|net| {
                    let is_v4 = net.addr().is_ipv4();
                    let via = other_node.addresses().iter().find(|address| address.is_ipv4() == is_v4);
                    let via = via.context("plain routes need the hosts' family on the underlay")?;
                    Ok(to(net, Some(*via), None))
                })
                .collect(),
            Way::Device(device) => {
                Ok(gateways.iter().map(|net| to(net, None, Some(device.clone()))).collect())
            }
            Way::KernelVxlan => {
                let (local, remote) = (first(&own_node)?, first(&other_node)?);
                let link = format!("{}-vx", beside.name);
                let mut steps = vec![Step::Tunnel {
                    space: space.clone(),
                    name: link.clone(),
                    vni: VNI,
                    port: KERNEL_VXLAN_PORT,
                    local,
                    mac: Beside::mac(own),
                    mtu: beside.mtu,
                }];
                steps.extend(gateways.iter().map(|net| Step::VxlanPeer {
                    space: space.clone(),
                    link: link.clone(),
                    mac: Beside::mac(other),
                    tunnel: net.network(),
                    node: remote,
                    pods: net.trunc(),
                }));
                Ok(steps)
            }
        }
    }
}

fn first(host: &Host) -> Result<IpAddr> {
    host.addresses().first().copied().context("a node without underlay address")
}
