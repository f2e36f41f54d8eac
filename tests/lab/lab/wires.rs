//! How the nodes are wired: subnets, and the steps that make links, addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::spec::{Families, NodeSpec, Offloads};
use crate::protocol::{End, ROOT, Step};

/// The lab's bridge, in its root namespaces.
const BRIDGE: &str = "br0";
/// The second router's namespaces.
pub(super) const ROUTER: &str = "router";
/// The host outside the cluster.
pub(super) const OUTSIDE: &str = "outside";

pub(crate) fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix).into()
}

fn v6(subnet: u16, host: u16, prefix: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, 0, host), prefix).into()
}

/// A subnet of the lab: documentation ranges of RFC 5737 and RFC 3849.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subnet {
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
    pub(super) fn nets(self, families: Families, host: u8) -> Vec<IpNet> {
        let (a, b) = match self {
            Self::Bridge => (v4(192, 0, 2, host, 24), v6(1, host.into(), 64)),
            Self::Outside => (v4(198, 51, 100, host, 24), v6(2, host.into(), 64)),
            Self::Behind => (v4(203, 0, 113, host, 24), v6(3, host.into(), 64)),
            Self::Between => (v4(198, 18, 0, host, 24), v6(4, host.into(), 64)),
        };
        families.pick(a, b)
    }
}

pub(crate) fn default_route(via: IpAddr) -> IpNet {
    if via.is_ipv4() { v4(0, 0, 0, 0, 0) } else { Ipv6Net::default().into() }
}

/// Collects the steps that wire a lab.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) families: Families,
    pub(super) steps: Vec<Step>,
}

impl Wires {
    pub(super) fn forwarding(&mut self, space: &str) {
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

    pub(super) fn bridge(&mut self, space: &str, mtu: u32, subnet: Subnet) {
        self.steps.push(Step::Bridge { space: space.into(), name: BRIDGE.into(), mtu });
        self.addresses(space, BRIDGE, &subnet.nets(self.families, 1));
    }

    fn veth(&mut self, a: (&str, &str), b: (&str, &str), mtu: u32) {
        let end = |(space, name): (&str, &str)| End { space: space.to_owned(), name: name.to_owned() };
        self.steps.push(Step::Veth { a: end(a), b: end(b), mtu });
    }

    /// A point-to-point link with addresses on both ends.
    pub(super) fn join(&mut self, a: (&str, &str, Subnet, u8), b: (&str, &str, u8), mtu: u32) {
        self.veth((a.0, a.1), (b.0, b.1), mtu);
        self.addresses(a.0, a.1, &a.2.nets(self.families, a.3));
        self.addresses(b.0, b.1, &a.2.nets(self.families, b.2));
    }

    pub(super) fn route(&mut self, space: &str, destination: IpNet, via: IpAddr) {
        self.steps.push(Step::Route { space: space.into(), destination, via: Some(via), link: None });
    }

    pub(super) fn default_routes(&mut self, space: &str, subnet: Subnet, gateway: u8) {
        for net in subnet.nets(self.families, gateway) {
            self.route(space, default_route(net.addr()), net.addr());
        }
    }

    fn port(&mut self, space: &str, port: &str) {
        self.steps.push(Step::Port { space: space.into(), bridge: BRIDGE.into(), port: port.into() });
    }

    /// One node: uplink, addresses, default routes. Its addresses.
    pub(super) fn node(&mut self, index: usize, spec: &NodeSpec) -> Vec<IpAddr> {
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

    /// A host with nothing special: uplink, addresses, default routes. Its addresses.
    pub(super) fn bridge_host(&mut self, space: &str, link: &str, number: u8) -> Vec<IpAddr> {
        // MTU of an Ethernet.
        self.veth((ROOT, link), (space, "eth0"), 1500);
        self.port(ROOT, link);
        let nets = Subnet::Bridge.nets(self.families, number);
        self.addresses(space, "eth0", &nets);
        self.default_routes(space, Subnet::Bridge, 1);
        nets.iter().map(IpNet::addr).collect()
    }
}
