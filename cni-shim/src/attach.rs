//! The plumbing of one attachment, as one value: dropping it before [`Plumbing::commit`] takes everything back.
//!
//! Everything hangs on the veth pair, so taking back is one deletion: the kernel drops addresses, routes and
//! neighbours with their link. Only the rules of a container's further interfaces stay, and are deleted one by one. Nothing else is ever deleted, a route by its prefix least of all: it could be
//! another's. The steps are ordered so that a plugin killed between any two leaves a link that the daemon
//! recognises: the pair is born with name, group and both MACs, and the next message gives it the alias, which is
//! the lease.
//!
//! Neither side asks for the other's MAC: both know it before the first packet, from permanent neighbour entries.
//! So the gateways (169.254.1.1, fe80::1) need to exist on no wire, and no address of the host stands on a pod's link
//! except fe80::1, which answers an IPv6 pod whose entries were flushed.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use wire::ipc::{Attachment, Lease, LeaseAddress};
use wire::packet::MacAddr;
use wire::tag::{
    Alias, GATEWAY_V6, POD_ROUTE_METRIC, ROUTE_PROTOCOL, VETH_GROUP, VETH_PREFIX, host_mac, mac_altname,
    pod_mac, veth_name,
};

use crate::error::{CniError, Code};
use crate::netlink::{Netlink, NetlinkError, Route, RouteKind, Rule, VethSpec};
use crate::netns::Namespace;
use crate::sysctl::{self, Setting};
use crate::wish::PodRoute;

/// `RT_TABLE_MAIN` of `linux/rtnetlink.h`.
pub(crate) const TABLE_MAIN: u32 = 254;

/// `LOOPBACK_IFINDEX` of include/net/flow.h: the index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// How long the pod's end may take to see its carrier, and its IPv6 address to stop being tentative: the kernel does
/// both from work queues, in microseconds unless those are busy. Until then the pod sees a link that is not running, and
/// an IPv6 address that does not answer, although it skips duplicate address detection (`addrconf_dad_begin` in
/// net/ipv6/addrconf.c).
const USABLE_PATIENCE: Duration = Duration::from_secs(2);

/// Priority of the rules in a pod: after that of the local table (0), before that of the main table (32766).
const RULE_PRIORITY: u32 = 1111;

/// Upper byte of the numbers of routing tables in a pod: "o" in ASCII.
const TABLE_BASE: u32 = 0x6f00_0000;

/// Metrics of the routes of a container's further interfaces begin here, after the 1024 of IPv6's own.
pub(crate) const SECOND_METRIC: u32 = 2000;

/// Settings of every host end. The kernel forwards IPv4 by the ingress device's own setting. Reverse path filtering is
/// said to be loose, but on a link without IPv4 address the kernel then lets in only sources that are routed back to the
/// same link (`__fib_validate_source` in net/ipv4/fib_frontend.c): a pod cannot use the address of another.
const HOST_V4: [Setting; 3] =
    [Setting::v4("forwarding", "1"), Setting::v4("rp_filter", "2"), Setting::v4("accept_redirects", "0")];

/// Settings of a host end that carries IPv6: no address that the kernel makes up, nothing that a pod could advertise.
/// With forwarding the kernel answers as a router; without, the pod would drop its default route on an answer.
const HOST_V6: [Setting; 6] = [
    Setting::v6("addr_gen_mode", "1"),
    Setting::v6("accept_dad", "0"),
    Setting::v6("accept_ra", "0"),
    Setting::v6("accept_redirects", "0"),
    Setting::v6("forwarding", "1"),
    Setting::v6("disable_ipv6", "0"),
];

/// Settings of a pod's end that carries IPv6: usable at once, no waiting for duplicates on a link of two.
const POD_V6: [Setting; 3] =
    [Setting::v6("accept_dad", "0"), Setting::v6("accept_ra", "0"), Setting::v6("disable_ipv6", "0")];

/// What to plumb.
#[derive(Clone, Copy, Debug)]
pub struct Blueprint<'a> {
    /// Who.
    pub attachment: &'a Attachment,
    /// Where.
    pub namespace: &'a Namespace,
    /// With which addresses.
    pub lease: &'a Lease,
    /// MAC of the pod's end, if not the derived one.
    pub mac: Option<MacAddr>,
    /// The pod's routes.
    pub routes: &'a [PodRoute],
}

impl Blueprint<'_> {
    /// MAC of the pod's end of the veth pair with this name.
    fn pod_mac(&self, host_name: &str) -> MacAddr {
        self.mac.unwrap_or_else(|| pod_mac(host_name))
    }
}

/// Why there is no attachment.
#[derive(Debug)]
pub enum Failure {
    /// These addresses have a route already: somebody else holds them.
    Taken(Vec<IpAddr>),
    /// Anything else.
    Cni(CniError),
}

impl From<CniError> for Failure {
    fn from(error: CniError) -> Self {
        Self::Cni(error)
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        Self::Cni(error.into())
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        Self::new(Code::Plumbing, error.to_string())
    }
}

/// An open socket on either side.
#[derive(Debug)]
pub struct Sockets {
    /// In the host's namespace.
    pub host: Netlink,
    /// In the pod's.
    pub pod: Netlink,
}

impl Sockets {
    /// Opens both.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(namespace: &Namespace) -> Result<Self, CniError> {
        Ok(Self { host: Netlink::open()?, pod: inside(namespace, Netlink::open)?? })
    }
}

fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> Result<T, CniError> {
    let failed = |error| CniError::new(Code::Plumbing, format!("enter {}: {error}", namespace.path()));
    namespace.enter(work).map_err(failed)
}

/// A pod's link as made. Dropping it deletes the link.
#[derive(Debug)]
pub struct Plumbing {
    netlink: Netlink,
    host_name: String,
    pod: Option<PodSide>,
    committed: bool,
}

impl Plumbing {
    /// Makes the veth pair and everything on both ends.
    ///
    /// # Errors
    /// Nothing is left behind then.
    pub fn build(blueprint: &Blueprint<'_>, sockets: Sockets) -> Result<Self, Failure> {
        let Blueprint { attachment, namespace, lease, .. } = *blueprint;
        let host_name = veth_name(attachment);
        let (host_mac, pod_mac) = (host_mac(&host_name), blueprint.pod_mac(&host_name));
        let Sockets { host: mut netlink, pod } = sockets;
        let spec = VethSpec {
            host_name: &host_name,
            host_mac,
            group: VETH_GROUP,
            pod_name: &attachment.ifname,
            pod_mac,
            pod_netns: std::os::fd::AsFd::as_fd(namespace),
            mtu: lease.mtu,
        };
        netlink.create_veth(&spec).map_err(|error| match error.errno() {
            Some(libc::EEXIST) => exists(attachment, namespace, &host_name),
            _ => error.into(),
        })?;
        let mut plumbing = Self { netlink, host_name, pod: None, committed: false };
        let index = plumbing.label(blueprint)?;
        let pod = PodSide::prepare(pod, blueprint)?;
        plumbing.host_side(index, lease, pod_mac)?;
        let table = own_table(&plumbing.host_name);
        let pod = plumbing.pod.insert(PodSide { table, ..pod });
        pod.connect(blueprint, host_mac)?;
        pod.await_usable(lease)?;
        Ok(plumbing)
    }

    /// Keeps it: the result has been delivered.
    pub fn commit(mut self) {
        self.committed = true;
    }

    /// Writes the lease into the alias, and a MAC that cannot be derived beside it. The link's index.
    fn label(&mut self, blueprint: &Blueprint<'_>) -> Result<u32, CniError> {
        let Blueprint { attachment, lease, mac, .. } = *blueprint;
        let found = self.netlink.link_by_name(&self.host_name)?;
        let gone = || CniError::new(Code::Plumbing, format!("link {} went away", self.host_name));
        let index = found.ok_or_else(gone)?.index;
        self.netlink.set_link_alias(index, &Alias::new(attachment, &addresses(lease)).emit())?;
        if let Some(mac) = mac {
            self.netlink.add_link_altname(index, &mac_altname(&self.host_name, mac))?;
        }
        Ok(index)
    }

    fn host_side(&mut self, index: u32, lease: &Lease, pod_mac: MacAddr) -> Result<(), Failure> {
        for setting in HOST_V4 {
            setting.apply(&self.host_name)?;
        }
        if has_v6(lease) {
            for setting in HOST_V6 {
                setting.apply(&self.host_name)?;
            }
        } else if sysctl::has_ipv6() {
            Setting::v6("disable_ipv6", "1").apply(&self.host_name)?;
        }
        self.netlink.set_link_up(index, true)?;
        if has_v6(lease) {
            self.netlink.add_address(index, IpAddr::V6(GATEWAY_V6).into())?;
        }
        let mut taken = Vec::new();
        for address in addresses(lease) {
            self.netlink.set_permanent_neighbour(index, address, pod_mac)?;
            if !self.claim(index, address)? {
                taken.push(address);
            }
        }
        if taken.is_empty() { Ok(()) } else { Err(Failure::Taken(taken)) }
    }

    /// Adds the host route to a pod's address; false if somebody else has the address: by the same route, by one that
    /// goes before ours, or as an address of the host.
    fn claim(&mut self, index: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        let route = host_route(index, address);
        match self.netlink.add_route(&route) {
            Ok(()) => {}
            // The daemon gives a route to every link that has an alias and none: it may have been quicker.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                if !self.netlink.routes()?.contains(&route) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
        match self.netlink.route_to(address) {
            Ok(taken) => Ok(taken.kind == RouteKind::Unicast && taken.link == Some(index)),
            // An unreachable route of somebody.
            Err(error) if error.errno().is_some() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Plumbing {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // The runtime's DEL finds what could not be deleted here.
        if let Some(pod) = &mut self.pod {
            pod.forget_rules();
        }
        if let Ok(Some(link)) = self.netlink.link_by_name(&self.host_name)
            && link.group == VETH_GROUP
        {
            let _ = self.netlink.delete_link(link.index);
        }
    }
}

/// The route on the host to one address of a pod.
pub(crate) fn host_route(link: u32, address: IpAddr) -> Route {
    Route {
        destination: address.into(),
        table: TABLE_MAIN,
        metric: POD_ROUTE_METRIC,
        kind: RouteKind::Unicast,
        protocol: ROUTE_PROTOCOL,
        link: Some(link),
        gateway: None,
        source: None,
        mtu: None,
        onlink: false,
    }
}

pub(crate) fn exists(attachment: &Attachment, namespace: &Namespace, host_name: &str) -> CniError {
    let Attachment { network, container, ifname } = attachment;
    let message = format!("container {container} already has an interface {ifname} (network {network})");
    CniError::new(Code::Exists, message)
        .with_details(format!("{ifname} in {} or {host_name} on the host exists", namespace.path()))
}

fn addresses(lease: &Lease) -> Vec<IpAddr> {
    lease.addresses.iter().map(|leased| leased.address).collect()
}

fn has_v6(lease: &Lease) -> bool {
    lease.addresses.iter().any(|leased| leased.address.is_ipv6())
}

/// The pod's end, by a socket that lives in the pod's namespace.
#[derive(Debug)]
struct PodSide {
    netlink: Netlink,
    ifname: String,
    index: u32,
    /// The routing table of this interface alone.
    table: u32,
    rules: Vec<Rule>,
}

impl PodSide {
    /// Settings and links. The pod's end comes up before the host's: then the kernel reports the pod's carrier at once, whereas
    /// that of the end that comes up last may wait for a second (`linkwatch_urgent_event` in net/core/link_watch.c).
    fn prepare(mut netlink: Netlink, blueprint: &Blueprint<'_>) -> Result<Self, CniError> {
        let ifname = &blueprint.attachment.ifname;
        let gone =
            || CniError::new(Code::Plumbing, format!("link {ifname} is not in the container's namespace"));
        let index = netlink.link_by_name(ifname)?.map(|link| link.index).ok_or_else(gone)?;
        if has_v6(blueprint.lease) {
            // The files show the namespace of the thread that opens them.
            inside(blueprint.namespace, || {
                Setting::v6("disable_ipv6", "0").apply("lo")?;
                POD_V6.into_iter().try_for_each(|setting| setting.apply(ifname))
            })??;
        }
        netlink.set_link_up(LOOPBACK, true)?;
        netlink.set_link_up(index, true)?;
        Ok(Self { netlink, ifname: ifname.clone(), index, table: 0, rules: Vec::new() })
    }

    /// Addresses, gateways, routes.
    fn connect(&mut self, blueprint: &Blueprint<'_>, host_mac: MacAddr) -> Result<(), CniError> {
        for leased in &blueprint.lease.addresses {
            self.netlink.add_address(self.index, leased.address.into())?;
            self.netlink.set_permanent_neighbour(self.index, leased.gateway, host_mac)?;
            self.add_route(&Route { metric: 0, ..host_route(self.index, leased.gateway) })?;
            let mut is_first = false;
            for route in blueprint.routes.iter().filter(|route| is_of_family(route, leased)) {
                let undisputed = self.add_route(&pod_route(self.index, route, leased.gateway))?;
                is_first |= undisputed && route.is_default();
            }
            if !is_first {
                self.answer_by_itself(leased)?;
            }
        }
        Ok(())
    }

    /// A second interface of one container finds the routes of the first: its own come after them, for programs that
    /// bind to the interface. False if so.
    fn add_route(&mut self, route: &Route) -> Result<bool, CniError> {
        match self.netlink.add_route(route) {
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let metric = SECOND_METRIC.saturating_add(self.index);
                self.netlink.add_route(&Route { metric, ..route.clone() })?;
                Ok(false)
            }
            other => Ok(other.map(|()| true)?),
        }
    }

    /// What is sent from the interface's address leaves by the interface, whoever has the default route: the host lets
    /// in only what comes from the right one.
    fn answer_by_itself(&mut self, leased: &LeaseAddress) -> Result<(), CniError> {
        for route in own_routes(self.index, self.table, leased.gateway) {
            self.netlink.add_route(&route)?;
        }
        let rule = own_rule(self.table, leased.address);
        match self.netlink.add_rule(&rule) {
            // Left behind by a plugin that was killed.
            Err(error) if error.errno() == Some(libc::EEXIST) => {}
            other => other?,
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Rules do not go with the link.
    fn forget_rules(&mut self) {
        for rule in self.rules.drain(..) {
            let _ = self.netlink.delete_rule(&rule);
        }
    }

    fn await_usable(&mut self, lease: &Lease) -> Result<(), CniError> {
        let deadline = Instant::now() + USABLE_PATIENCE;
        while let Some(missing) = self.missing(lease)? {
            if Instant::now() > deadline {
                let message = format!("link {} of the container {missing}", self.ifname);
                return Err(CniError::new(Code::Plumbing, message));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What keeps the link from being used, if anything.
    fn missing(&mut self, lease: &Lease) -> Result<Option<&'static str>, NetlinkError> {
        if !self.netlink.link_is_running(self.index)? {
            return Ok(Some("does not come up"));
        }
        if !has_v6(lease) {
            return Ok(None);
        }
        // The kernel's own link-local address may take its time.
        let leased = addresses(lease);
        let tentative = self.netlink.addresses()?.iter().any(|address| {
            address.link == self.index && address.tentative && leased.contains(&address.net.addr())
        });
        Ok(tentative.then_some("has an address that stays tentative"))
    }
}

fn is_of_family(route: &PodRoute, leased: &LeaseAddress) -> bool {
    route.destination.addr().is_ipv6() == leased.address.is_ipv6()
}

/// One of the pod's routes by the gateway.
fn pod_route(link: u32, route: &PodRoute, gateway: IpAddr) -> Route {
    Route {
        destination: route.destination,
        table: route.table.unwrap_or(TABLE_MAIN),
        metric: route.priority.unwrap_or(0),
        mtu: route.mtu,
        gateway: Some(gateway),
        onlink: true,
        ..host_route(link, gateway)
    }
}

/// The whole table of one interface: everything by its gateway.
pub(crate) fn own_routes(link: u32, table: u32, gateway: IpAddr) -> [Route; 2] {
    let any = PodRoute { table: Some(table), ..PodRoute::default_of(gateway.is_ipv6()) };
    [Route { metric: 0, table, ..host_route(link, gateway) }, pod_route(link, &any, gateway)]
}

/// The rule that sends what has this source to the interface's own table.
pub(crate) fn own_rule(table: u32, address: IpAddr) -> Rule {
    Rule { source: address.into(), table, priority: RULE_PRIORITY, protocol: ROUTE_PROTOCOL }
}

/// Number of the routing table, in the pod's namespace, that belongs to the veth pair with this name: 24 bits of its hash
/// behind a byte that keeps off the numbers that people choose. DEL finds the rules by it when the link is gone.
pub(crate) fn own_table(host_name: &str) -> u32 {
    let digits = host_name.strip_prefix(VETH_PREFIX).and_then(|digits| digits.get(..6));
    TABLE_BASE | digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Deletes the rules of this attachment in the calling thread's namespace.
///
/// # Errors
/// If they cannot be listed, or one cannot be deleted.
pub(crate) fn delete_own_rules(host_name: &str) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    let table = own_table(host_name);
    for rule in netlink.rules()?.iter().filter(|rule| rule.table == table && rule.protocol == ROUTE_PROTOCOL)
    {
        match netlink.delete_rule(rule) {
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_veth_has_a_table_of_its_own() {
        assert_eq!(own_table("ovp0123456789ab"), 0x6f01_2345);
        assert_eq!(own_table("ovpffffff789abc"), 0x6fff_ffff);
    }
}
