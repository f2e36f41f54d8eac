//! ADD.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use wire::ipc::{Attachment, Lease, Reply, Request};
use wire::tag::{host_mac, pod_mac, veth_name};

use crate::attach::{Blueprint, Failure, Plumbing, exists};
use crate::call::{call, call_once, refused};
use crate::conf::Conf;
use crate::environment::{Sandbox, Target};
use crate::error::{CniError, Code};
use crate::log;
use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::result::{Plumbed, to_json};

/// How long the daemon may take for all its answers together.
const DAEMON_PATIENCE: Duration = Duration::from_secs(15);

/// How often an address that turns out to be taken is given back for another.
const ADDRESS_ATTEMPTS: u32 = 8;

/// How long giving a lease back may take when an ADD has failed already.
const RELEASE_PATIENCE: Duration = Duration::from_millis(500);

/// Smallest MTU that carries IPv4 (RFC 791, section 3.1) and IPv6 (RFC 8200, section 5).
const MIN_MTU_V4: u32 = 68;
const MIN_MTU_V6: u32 = 1280;

/// An attachment that is plumbed but not yet reported.
#[derive(Debug)]
pub struct Added {
    /// The result for standard output.
    pub document: String,
    conf: Conf,
    attachment: Attachment,
    plumbing: Option<Plumbing>,
}

impl Added {
    /// Keeps it: the result has been delivered. Dropped otherwise, it is taken back.
    pub fn commit(mut self) {
        if let Some(plumbing) = self.plumbing.take() {
            plumbing.commit();
        }
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        if let Some(plumbing) = self.plumbing.take() {
            drop(plumbing);
            release(&self.conf, &self.attachment, RELEASE_PATIENCE);
        }
    }
}

/// Attaches a container.
///
/// # Errors
/// Nothing is left behind then.
pub fn add(conf: Conf, target: Target, sandbox: &Sandbox) -> Result<Added, CniError> {
    conf.require_own_addresses()?;
    if conf.previous.is_some() {
        let message = "overlayd must be the first plugin of the chain: prevResult on ADD is not supported";
        return Err(CniError::new(Code::InvalidConfig, message));
    }
    let namespace = Namespace::open(sandbox)?;
    let attachment =
        Attachment { network: conf.network.clone(), container: target.container, ifname: target.ifname };
    require_absent(&attachment, &namespace)?;
    let built = build(&conf, &attachment, &namespace);
    let (plumbing, lease) = built.inspect_err(|error| {
        if error.code != Code::TryAgainLater {
            release(&conf, &attachment, RELEASE_PATIENCE);
        }
    })?;
    let host_name = veth_name(&attachment);
    let plumbed = Plumbed {
        host_name: &host_name,
        host_mac: host_mac(&host_name),
        ifname: &attachment.ifname,
        pod_mac: pod_mac(&host_name),
        sandbox: namespace.path(),
        lease: &lease,
        dns: conf.dns.as_ref(),
    };
    let document = to_json(conf.version, &plumbed);
    let mut added = Added { document: String::new(), conf, attachment, plumbing: Some(plumbing) };
    added.document = document?;
    Ok(added)
}

/// Tells the daemon that an attachment is gone. It finds out by itself if it does not hear.
pub(crate) fn release(conf: &Conf, attachment: &Attachment, patience: Duration) {
    let request = Request::Release(attachment.clone());
    if let Err(error) = call_once(&conf.socket, &request, Instant::now() + patience) {
        log(format_args!("the daemon was not told of the release: {error}"));
    }
}

/// An interface that is there already belongs to an earlier attachment, whose owner is not to notice.
fn require_absent(attachment: &Attachment, namespace: &Namespace) -> Result<(), CniError> {
    let host_name = veth_name(attachment);
    let inside =
        || -> Result<bool, CniError> { Ok(Netlink::open()?.link_by_name(&attachment.ifname)?.is_some()) };
    let in_pod = namespace
        .enter(inside)
        .map_err(|error| CniError::new(Code::Plumbing, format!("enter {}: {error}", namespace.path())))??;
    if in_pod || Netlink::open()?.link_by_name(&host_name)?.is_some() {
        return Err(exists(attachment, namespace, &host_name));
    }
    Ok(())
}

fn build(conf: &Conf, attachment: &Attachment, namespace: &Namespace) -> Result<(Plumbing, Lease), CniError> {
    let deadline = Instant::now() + DAEMON_PATIENCE;
    let mut request = Request::Allocate(attachment.clone());
    let mut taken: Vec<IpAddr> = Vec::new();
    for _ in 0..ADDRESS_ATTEMPTS {
        let lease = leased(call(&conf.socket, &request, deadline)?)?;
        match Plumbing::build(&Blueprint { attachment, namespace, lease: &lease }) {
            Ok(plumbing) => return Ok((plumbing, lease)),
            Err(Failure::Cni(error)) => return Err(error),
            Err(Failure::Taken(addresses)) => {
                log(format_args!("{addresses:?} are in use on this host already, asking for others"));
                taken.extend(&addresses);
                request = Request::Taken { attachment: attachment.clone(), addresses };
            }
        }
    }
    let taken: Vec<String> = taken.iter().map(ToString::to_string).collect();
    let message = format!("{ADDRESS_ATTEMPTS} leases in a row had addresses with a route of somebody else");
    Err(CniError::new(Code::Plumbing, message).with_details(taken.join(", ")))
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
    fn a_refusal_keeps_the_daemons_words() {
        let reply =
            Reply::Refused { kind: RefusalKind::Exhausted, message: "no address left in 10.0.0.0/24".into() };
        let error = leased(reply).unwrap_err();
        assert_eq!(error.code, Code::TryAgainLater);
        assert_eq!(error.message, "overlayd refuses: no address left in 10.0.0.0/24");
    }
}
