//! CHECK: is everything that ADD made still as it was?

use std::net::IpAddr;
use std::time::{Duration, Instant};

use wire::ipc::{Attachment, Reply, Request};
use wire::packet::MacAddr;
use wire::tag::{Alias, host_mac, veth_name};

use crate::attach::{TABLE_MAIN, host_route};
use crate::call::{call, refused};
use crate::conf::Conf;
use crate::delete::is_of;
use crate::environment::{Sandbox, Target};
use crate::error::{CniError, Code};
use crate::netlink::{Address, Link, Neighbour, Netlink, NetlinkError, Route, RouteKind};
use crate::netns::Namespace;
use crate::result::Previous;
use crate::version::Version;

/// How long the daemon may take to answer.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);

/// What one namespace holds.
struct State {
    link: Option<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

impl State {
    fn read(name: &str) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        Ok(Self {
            link: netlink.link_by_name(name)?,
            addresses: netlink.addresses()?,
            routes: netlink.routes()?,
            neighbours: netlink.neighbours()?,
        })
    }

    fn knows(&self, link: u32, address: IpAddr, mac: Option<MacAddr>) -> bool {
        self.neighbours.iter().any(|neighbour| {
            (neighbour.link, neighbour.address, Some(neighbour.mac), neighbour.permanent)
                == (link, address, mac, true)
        })
    }
}

/// Compares the kernel with `prevResult`, then asks the daemon.
///
/// # Errors
/// Code 103 naming every difference; 1 before version 0.4.0; 7 without a usable `prevResult`; 11 without a daemon.
pub fn check(conf: &Conf, target: Target, sandbox: &Sandbox) -> Result<(), CniError> {
    conf.require(Version::V0_4_0, "CHECK")?;
    conf.require_own_addresses()?;
    let previous = Previous::read(conf.previous.as_ref(), &target.ifname, &sandbox.path)?;
    let namespace = Namespace::open(sandbox)?;
    let attachment =
        Attachment { network: conf.network.clone(), container: target.container, ifname: target.ifname };
    let host = State::read(&veth_name(&attachment))?;
    let pod = namespace
        .enter(|| State::read(&attachment.ifname))
        .map_err(|error| CniError::new(Code::Plumbing, format!("enter {}: {error}", namespace.path())))??;
    let mut damage = host_damage(&host, pod.link.as_ref(), &attachment, &previous);
    damage.extend(pod_damage(&pod, &attachment, &previous));
    if !damage.is_empty() {
        let message = format!("container {} is damaged: {}", attachment.container, damage.join("; "));
        return Err(CniError::new(Code::Mismatch, message));
    }
    let addresses = previous.addresses.iter().map(|(address, _)| *address).collect();
    let request = Request::Check { attachment, addresses };
    match call(&conf.socket, &request, Instant::now() + DAEMON_PATIENCE)? {
        Reply::Done => Ok(()),
        Reply::Refused { kind, message } => Err(refused(kind, &message)),
        Reply::Leased(_) => Err(CniError::new(Code::Daemon, "overlayd answered CHECK with a lease")),
    }
}

fn host_damage(
    host: &State,
    pod: Option<&Link>,
    attachment: &Attachment,
    previous: &Previous,
) -> Vec<String> {
    let name = veth_name(attachment);
    let Some(link) = &host.link else { return vec![format!("host interface {name} is missing")] };
    let mut damage = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            damage.push(what);
        }
    };
    let alias = link.alias.as_deref().and_then(Alias::parse);
    let leased: Vec<IpAddr> = previous.addresses.iter().map(|(address, _)| *address).collect();
    let is_labelled =
        is_of(link, attachment) && alias.is_some_and(|alias| alias == Alias::new(attachment, &leased));
    expect(
        is_labelled,
        format!(
            "host interface {name} has the alias {:?}, not that of this lease",
            link.alias.as_deref().unwrap_or_default()
        ),
    );
    expect(link.up, format!("host interface {name} is down"));
    if let Some(pod) = pod {
        expect(
            link.mtu == pod.mtu,
            format!("host interface {name} has mtu {}, {} has {}", link.mtu, pod.name, pod.mtu),
        );
    }
    for address in leased {
        let route = host_route(link.index, address);
        expect(host.routes.contains(&route), format!("the host has no route to {address} by {name}"));
        let mac = pod.and_then(|pod| pod.mac);
        let is_known = pod.is_none() || host.knows(link.index, address, mac);
        expect(is_known, format!("the host has no permanent neighbour entry for {address} on {name}"));
    }
    damage
}

fn pod_damage(pod: &State, attachment: &Attachment, previous: &Previous) -> Vec<String> {
    let name = &attachment.ifname;
    let Some(link) = &pod.link else { return vec![format!("interface {name} is missing in the container")] };
    let mut damage = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            damage.push(what);
        }
    };
    expect(link.kind == "veth", format!("interface {name} is of kind {:?}, not veth", link.kind));
    expect(link.up, format!("interface {name} is down"));
    let shown = |mac: Option<MacAddr>| mac.map_or("none".to_owned(), |mac| mac.to_string());
    if previous.mac.is_some() {
        expect(
            link.mac == previous.mac,
            format!("interface {name} has mac {}, not {}", shown(link.mac), shown(previous.mac)),
        );
    }
    let host_mac = host_mac(&veth_name(attachment));
    for (address, gateway) in &previous.addresses {
        let is_there =
            pod.addresses.iter().any(|held| (held.link, held.net.addr()) == (link.index, *address));
        expect(is_there, format!("interface {name} has no address {address}"));
        let Some(gateway) = gateway else { continue };
        let is_default = |route: &&Route| {
            route.destination.prefix_len() == 0
                && route.destination.addr().is_ipv4() == gateway.is_ipv4()
                && route.table == TABLE_MAIN
                && route.kind == RouteKind::Unicast
        };
        let leads = |route: &Route| route.link == Some(link.index) && route.gateway == Some(*gateway);
        let has_default = pod.routes.iter().filter(is_default).any(leads);
        expect(has_default, format!("the container has no default route via {gateway} by {name}"));
        let is_known = pod.knows(link.index, *gateway, Some(host_mac));
        expect(
            is_known,
            format!("the container has no permanent neighbour entry for {gateway} ({host_mac})"),
        );
    }
    damage
}
