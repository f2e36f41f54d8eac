//! CHECK: is everything that ADD made still as it was?

use std::net::IpAddr;
use std::time::{Duration, Instant};

use wire::ipc::{Attachment, Reply, Request};
use wire::packet::MacAddr;
use wire::tag::{Alias, host_mac, veth_name};

use crate::attach::{SECOND_METRIC, TABLE_MAIN, host_route, own_routes, own_rule, own_table};
use crate::call::{call, refused};
use crate::conf::Conf;
use crate::delegate::Delegate;
use crate::delete::is_of;
use crate::environment::{Hints, Sandbox, Target};
use crate::error::{CniError, Code};
use crate::netlink::{Address, Link, Neighbour, Netlink, NetlinkError, Route, RouteKind, Rule};
use crate::netns::Namespace;
use crate::result::Previous;
use crate::sysctl::Setting;
use crate::version::Version;

/// How long the daemon may take to answer.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);

/// How long the IPAM plugin may take.
const DELEGATE_PATIENCE: Duration = Duration::from_secs(6);

/// What one namespace holds.
struct State {
    link: Option<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    rules: Vec<Rule>,
}

impl State {
    fn read(name: &str) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        Ok(Self {
            link: netlink.link_by_name(name)?,
            addresses: netlink.addresses()?,
            routes: netlink.routes()?,
            neighbours: netlink.neighbours()?,
            rules: netlink.rules()?,
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
pub fn check(conf: &Conf, target: Target, sandbox: &Sandbox, hints: &Hints) -> Result<(), CniError> {
    conf.require(Version::V0_4_0, "CHECK")?;
    let delegate = Delegate::find(conf, hints.plugin_path.as_deref())?;
    let previous = Previous::read(conf.previous.as_ref(), &target.ifname, &sandbox.path)?;
    let namespace = Namespace::open(sandbox)?;
    if let Some(delegate) = delegate {
        delegate.call("CHECK", DELEGATE_PATIENCE)?;
    }
    let attachment =
        Attachment { network: conf.network.clone(), container: target.container, ifname: target.ifname };
    let host = State::read(&veth_name(&attachment))?;
    let pod = namespace
        .enter(|| State::read(&attachment.ifname))
        .map_err(|error| CniError::new(Code::Plumbing, format!("enter {}: {error}", namespace.path())))??;
    let mut damage = host_damage(&host, pod.link.as_ref(), &attachment, &previous);
    if let (Some(link), true) = (&host.link, damage.is_empty()) {
        damage.extend(way_damage(link, &previous)?);
    }
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

/// What keeps packets from a link that is whole: the kernel forwards by the setting of each link, and a route of somebody
/// else may go before ours.
fn way_damage(link: &Link, previous: &Previous) -> Result<Vec<String>, CniError> {
    let mut damage = Vec::new();
    let mut netlink = Netlink::open()?;
    for (address, _) in &previous.addresses {
        let setting =
            if address.is_ipv4() { Setting::v4("forwarding", "1") } else { Setting::v6("forwarding", "1") };
        if !setting.holds(&link.name) {
            damage.push(format!("host interface {} does not forward {}", link.name, setting.family));
        }
        let way = match netlink.route_to(*address) {
            Ok(way) => Some(way),
            // An unreachable route of somebody.
            Err(error) if error.errno().is_some() => None,
            Err(error) => return Err(error.into()),
        };
        if !way.is_some_and(|way| way.kind == RouteKind::Unicast && way.link == Some(link.index)) {
            damage.push(format!("a route of somebody else takes {address} from {} on the host", link.name));
        }
    }
    Ok(damage)
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
    let host_name = veth_name(attachment);
    let (host_mac, table) = (host_mac(&host_name), own_table(&host_name));
    for (address, gateway) in &previous.addresses {
        let is_there =
            pod.addresses.iter().any(|held| (held.link, held.net.addr()) == (link.index, *address));
        expect(is_there, format!("interface {name} has no address {address}"));
        let Some(gateway) = gateway else { continue };
        let leads = |route: &&Route| {
            route.link == Some(link.index)
                && route.gateway == Some(*gateway)
                && route.kind == RouteKind::Unicast
        };
        let ways: Vec<&Route> = pod.routes.iter().filter(leads).collect();
        for (destination, _) in previous.routes.iter().filter(|(_, via)| via == gateway) {
            let what = if destination.prefix_len() == 0 {
                "default route".to_owned()
            } else {
                format!("route to {destination}")
            };
            let has_it = ways.iter().any(|way| way.destination == *destination && way.table != table);
            expect(has_it, format!("the container has no {what} via {gateway} by {name}"));
        }
        let is_first = |way: &&Route| {
            way.destination.prefix_len() == 0 && way.table == TABLE_MAIN && way.metric < SECOND_METRIC
        };
        if !ways.iter().any(is_first) {
            let has_table = own_routes(link.index, table, *gateway)
                .iter()
                .all(|own| pod.routes.iter().any(|route| same_way(route, own)));
            expect(has_table, format!("the container's routing table {table} of {name} is not whole"));
            let has_rule = pod.rules.contains(&own_rule(table, *address));
            expect(has_rule, format!("the container has no rule that sends from {address} by {name}"));
        }
        let is_known = pod.knows(link.index, *gateway, Some(host_mac));
        expect(
            is_known,
            format!("the container has no permanent neighbour entry for {gateway} ({host_mac})"),
        );
    }
    damage
}

/// Whether a packet goes the same way; IPv6 fills in a metric of its own.
fn same_way(one: &Route, other: &Route) -> bool {
    (one.destination, one.table, one.kind, one.link, one.gateway)
        == (other.destination, other.table, other.kind, other.link, other.gateway)
}
