//! ADD.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use wire::ipc::{Attachment, Lease, Reply, Request};
use wire::tag::{host_mac, pod_mac, veth_name};

use crate::attach::{Blueprint, Failure, Plumbing, Sockets, exists};
use crate::call::{call, call_once, refused};
use crate::conf::Conf;
use crate::delegate::Delegate;
use crate::environment::{Hints, Sandbox, Target};
use crate::error::{CniError, Code};
use crate::log;
use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::result::{Plumbed, to_json};
use crate::wish::{PodRoute, Wish};

/// How long the daemon may take for all its answers together, the IPAM plugin before it included.
const DAEMON_PATIENCE: Duration = Duration::from_secs(14);

/// How often an address that turns out to be taken is given back for another.
const ADDRESS_ATTEMPTS: u32 = 8;

/// How long giving a lease back may take when an ADD has failed already.
const RELEASE_PATIENCE: Duration = Duration::from_millis(500);

/// Smallest MTU that carries IPv4 (RFC 791, section 3.1) and IPv6 (RFC 8200, section 5).
const MIN_MTU_V4: u32 = 68;
const MIN_MTU_V6: u32 = 1280;

/// How long the IPAM plugin may take, and again to take back what it gave.
const DELEGATE_PATIENCE: Duration = Duration::from_secs(6);
const DELEGATE_UNDO_PATIENCE: Duration = Duration::from_secs(3);

/// An attachment that is plumbed but not yet reported.
#[derive(Debug)]
pub struct Added {
    /// The result for standard output.
    pub document: String,
    // Dropped in this order: the link goes before its addresses can be anybody else's.
    plumbing: Plumbing,
    claim: Claim,
}

impl Added {
    /// Keeps it: the result has been delivered.
    pub fn commit(self) {
        self.plumbing.commit();
        self.claim.commit();
    }
}

/// The addresses of an attachment that is not there yet. Dropped before [`Claim::commit`], they are given back to
/// whoever gave them.
#[derive(Debug)]
struct Claim {
    conf: Conf,
    attachment: Attachment,
    delegate: Option<Delegate>,
    committed: bool,
}

impl Claim {
    fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Some(delegate) = &self.delegate
            && let Err(error) = delegate.call("DEL", DELEGATE_UNDO_PATIENCE)
        {
            log(format_args!("its addresses could not be given back: {error}"));
        }
        release(&self.conf, &self.attachment, RELEASE_PATIENCE);
    }
}

/// Attaches a container.
///
/// # Errors
/// Nothing is left behind then.
pub fn add(conf: Conf, target: Target, sandbox: &Sandbox, hints: &Hints) -> Result<Added, CniError> {
    if conf.previous.is_some() {
        let message = "overlayd must be the first plugin of the chain: prevResult on ADD is not supported";
        return Err(CniError::new(Code::InvalidConfig, message));
    }
    let mut wish = Wish::read(&conf.document, hints.arguments.as_deref())?;
    let delegate = Delegate::find(&conf, hints.plugin_path.as_deref())?;
    let attachment =
        Attachment { network: conf.network.clone(), container: target.container, ifname: target.ifname };
    let (namespace, sockets) = open_where_absent(&attachment, sandbox)?;

    let claim = Claim { conf, attachment, delegate, committed: false };
    let deadline = Instant::now() + DAEMON_PATIENCE;
    let mut dns = claim.conf.dns.clone().filter(|dns| dns.as_object().is_some_and(|dns| !dns.is_empty()));
    let source = match &claim.delegate {
        Some(delegate) => {
            let given = delegate.add(DELEGATE_PATIENCE)?;
            wish.routes.extend(given.routes);
            dns = dns.or(given.dns);
            Source::Given(given.addresses)
        }
        None if wish.addresses.is_empty() => Source::Any,
        None => Source::These(std::mem::take(&mut wish.addresses)),
    };
    let builder = Builder { claim: &claim, namespace: &namespace, wish: &wish, deadline };
    let (plumbing, lease, routes) = builder.build(&source, sockets)?;
    let host_name = veth_name(&claim.attachment);
    let plumbed = Plumbed {
        host_name: &host_name,
        host_mac: host_mac(&host_name),
        ifname: &claim.attachment.ifname,
        pod_mac: wish.mac.unwrap_or_else(|| pod_mac(&host_name)),
        sandbox: namespace.path(),
        lease: &lease,
        routes: &routes,
        dns: dns.as_ref(),
    };
    let document = to_json(claim.conf.version, &plumbed)?;
    Ok(Added { document, plumbing, claim })
}

/// Where the addresses come from.
enum Source {
    /// Whatever the daemon gives.
    Any,
    /// From the daemon, and these.
    These(Vec<IpAddr>),
    /// From another plugin.
    Given(Vec<IpAddr>),
}

impl Source {
    fn first_request(&self, attachment: &Attachment) -> Request {
        let attachment = attachment.clone();
        match self {
            Self::Any => Request::Allocate(attachment),
            Self::These(addresses) => Request::AllocateThese { attachment, addresses: addresses.clone() },
            Self::Given(addresses) => Request::Adopt { attachment, addresses: addresses.clone() },
        }
    }

    /// Whether the daemon gave what it was asked for.
    fn is_met_by(&self, lease: &Lease) -> bool {
        let held: Vec<IpAddr> = lease.addresses.iter().map(|leased| leased.address).collect();
        match self {
            Self::Any => true,
            Self::These(addresses) => addresses.iter().all(|address| held.contains(address)),
            Self::Given(addresses) => held == *addresses,
        }
    }
}

/// Tells the daemon that an attachment is gone. It finds out by itself if it does not hear.
pub(crate) fn release(conf: &Conf, attachment: &Attachment, patience: Duration) {
    let request = Request::Release(attachment.clone());
    if let Err(error) = call_once(&conf.socket, &request, Instant::now() + patience) {
        log(format_args!("the daemon was not told of the release: {error}"));
    }
}

/// An interface that is there already belongs to an earlier attachment, whose owner is not to notice.
fn open_where_absent(attachment: &Attachment, sandbox: &Sandbox) -> Result<(Namespace, Sockets), CniError> {
    let host_name = veth_name(attachment);
    let (namespace, inside) = Namespace::open_for(sandbox, || -> Result<_, CniError> {
        let mut pod = Netlink::open()?;
        let is_there = pod.link_by_name(&attachment.ifname)?.is_some();
        Ok((pod, is_there))
    })?;
    let (pod, is_in_pod) = inside?;
    let mut host = Netlink::open()?;
    if is_in_pod || host.link_by_name(&host_name)?.is_some() {
        return Err(exists(attachment, &namespace, &host_name));
    }
    Ok((namespace, Sockets { host, pod }))
}

struct Builder<'a> {
    claim: &'a Claim,
    namespace: &'a Namespace,
    wish: &'a Wish,
    deadline: Instant,
}

impl Builder<'_> {
    fn build(&self, source: &Source, sockets: Sockets) -> Result<(Plumbing, Lease, Vec<PodRoute>), CniError> {
        let Claim { conf, attachment, .. } = self.claim;
        let mut sockets = Some(sockets);
        let mut request = source.first_request(attachment);
        let mut taken: Vec<IpAddr> = Vec::new();
        for _ in 0..ADDRESS_ATTEMPTS {
            let lease = leased(call(&conf.socket, &request, self.deadline)?)?;
            if !source.is_met_by(&lease) {
                return Err(CniError::new(
                    Code::Daemon,
                    "overlayd gave other addresses than it was asked for",
                ));
            }
            let routes = pod_routes(self.wish, &lease);
            let blueprint = Blueprint {
                attachment,
                namespace: self.namespace,
                lease: &lease,
                mac: self.wish.mac,
                routes: &routes,
            };
            let fresh = sockets.take().map_or_else(|| Sockets::open(self.namespace), Ok)?;
            match Plumbing::build(&blueprint, fresh) {
                Ok(plumbing) => return Ok((plumbing, lease, routes)),
                Err(Failure::Cni(error)) => return Err(error),
                Err(Failure::Taken(addresses)) if !matches!(source, Source::Any) => {
                    let message = format!("{} cannot be given: in use on this host", listed(&addresses));
                    return Err(CniError::new(Code::TryAgainLater, message));
                }
                Err(Failure::Taken(addresses)) => {
                    log(format_args!(
                        "{} in use on this host already, asking for others",
                        listed(&addresses)
                    ));
                    taken.extend(&addresses);
                    request = Request::Taken { attachment: attachment.clone(), addresses };
                }
            }
        }
        let message =
            format!("{ADDRESS_ATTEMPTS} leases in a row had addresses with a route of somebody else");
        Err(CniError::new(Code::Plumbing, message).with_details(listed(&taken)))
    }
}

fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The routes of a pod: the default ones if wanted, then what was asked for in the families that it has.
fn pod_routes(wish: &Wish, lease: &Lease) -> Vec<PodRoute> {
    let families: Vec<bool> = lease.addresses.iter().map(|leased| leased.address.is_ipv6()).collect();
    let defaults = families.iter().filter(|_| wish.default_route).map(|is_v6| PodRoute::default_of(*is_v6));
    let mut routes: Vec<PodRoute> = defaults.collect();
    for route in &wish.routes {
        let is_known = routes.iter().any(|known| {
            (known.destination, known.table, known.priority)
                == (route.destination, route.table, route.priority)
        });
        let is_possible = families.contains(&route.destination.addr().is_ipv6());
        if is_possible && !is_known && (wish.default_route || !route.is_default()) {
            routes.push(*route);
        }
    }
    routes
}

/// The lease in a reply, checked before anything is made of it.
fn leased(reply: Reply) -> Result<Lease, CniError> {
    let lease = match reply {
        Reply::Leased(lease) => lease,
        Reply::Refused { kind, message } => return Err(refused(kind, &message)),
        Reply::Done => return Err(CniError::new(Code::Daemon, "overlayd gave no lease when asked for one")),
    };
    let families: Vec<bool> = lease.addresses.iter().map(|leased| leased.address.is_ipv6()).collect();
    let gateways: Vec<bool> = lease.addresses.iter().map(|leased| leased.gateway.is_ipv6()).collect();
    let is_possible = matches!(families[..], [false] | [true] | [false, true]) && families == gateways;
    let least = if families.contains(&true) { MIN_MTU_V6 } else { MIN_MTU_V4 };
    if !is_possible || !(least..=u32::from(u16::MAX)).contains(&lease.mtu) {
        return Err(CniError::new(Code::Daemon, "overlayd gave an impossible lease")
            .with_details(format!("{lease:?}")));
    }
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use wire::ipc::{LeaseAddress, RefusalKind};

    use super::*;

    fn reply(addresses: &[(&str, &str)], mtu: u32) -> Reply {
        let leased = |(address, gateway): &(&str, &str)| LeaseAddress {
            address: address.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        };
        Reply::Leased(Lease { addresses: addresses.iter().map(leased).collect(), mtu })
    }

    const V4: (&str, &str) = ("10.0.0.1", "169.254.1.1");
    const V6: (&str, &str) = ("fd00::1", "fe80::1");

    #[test]
    fn one_address_of_each_family_is_a_lease() {
        for addresses in [&[V4][..], &[V6], &[V4, V6]] {
            assert!(leased(reply(addresses, 1450)).is_ok());
        }
    }

    #[test]
    fn impossible_leases_are_the_daemons_fault() {
        for bad in [
            reply(&[], 1450),
            reply(&[V4, V4], 1450),
            reply(&[V6, V4], 1450),
            reply(&[("10.0.0.1", "fe80::1")], 1450),
            reply(&[V4], 67),
            reply(&[V6], 1279),
            reply(&[V4], 65536),
            Reply::Done,
        ] {
            assert_eq!(leased(bad).unwrap_err().code, Code::Daemon);
        }
    }

    #[test]
    fn routes_are_the_default_ones_unless_not_wanted_and_what_was_asked_for() {
        let Reply::Leased(lease) = reply(&[V4], 1450) else { panic!("no lease") };
        let route =
            |text: &str| PodRoute { destination: text.parse().unwrap(), ..PodRoute::default_of(false) };
        let asked = vec![route("10.0.0.0/8"), route("fd00::/8"), route("0.0.0.0/0"), route("10.0.0.0/8")];
        let mut wish = Wish { addresses: vec![], mac: None, default_route: true, routes: asked };
        assert_eq!(pod_routes(&wish, &lease), [route("0.0.0.0/0"), route("10.0.0.0/8")]);
        wish.default_route = false;
        assert_eq!(pod_routes(&wish, &lease), [route("10.0.0.0/8")]);
    }

    #[test]
    fn a_refusal_keeps_the_daemons_words() {
        let reply =
            Reply::Refused { kind: RefusalKind::Exhausted, message: "no address left in 10.0.0.0/24".into() };
        let error = leased(reply).unwrap_err();
        assert_eq!(error.code, Code::TryAgainLater);
        assert_eq!(error.message, "overlayd refuses: no address left in 10.0.0.0/24");
    }
}
