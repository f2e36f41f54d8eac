//! GC: frees the attachments of this network that the runtime does not list.
//!
//! Without a list nothing is freed: that no container was named does not mean that there is none. A link without alias
//! is of an ADD that was killed half way; it says nothing of its network, and the daemon deletes it.

use std::time::{Duration, Instant};

use wire::ipc::Attachment;
use wire::tag::{Alias, network_hash, veth_name};

use crate::add::release;
use crate::conf::Conf;
use crate::delegate::Delegate;
use crate::delete::{RELEASE_PATIENCE, detach, is_of};
use crate::environment::{Hints, Target};
use crate::error::{CniError, Code};
use crate::netlink::{Link, Netlink};
use crate::version::Version;

/// How long all calls of the IPAM plugin may take together.
const DELEGATE_PATIENCE: Duration = Duration::from_secs(10);

/// How long telling the daemon may take, of all of them together, before one that hangs is only told and no more listened to.
const TELLING_PATIENCE: Duration = Duration::from_secs(2);

/// Enough to tell it.
const TELLING_LEAST: Duration = Duration::from_millis(20);

/// Frees what is stale, also in the IPAM plugin, all of it even if some cannot be.
///
/// # Errors
/// Code 1 before version 1.1.0; 100 naming everything that could not be freed.
pub fn gc(conf: &Conf, hints: &Hints) -> Result<(), CniError> {
    conf.require(Version::V1_1_0, "GC")?;
    let delegate = Delegate::find(conf, hints.plugin_path.as_deref())?;
    let Some(valid) = &conf.valid else { return Ok(()) };
    let links = Netlink::open()?.links()?;
    let mut failures = Vec::new();
    let deadline = Instant::now() + DELEGATE_PATIENCE;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut telling = TELLING_PATIENCE;
    for attachment in stale(&links, &conf.network, valid) {
        let freed = detach(&attachment).and_then(|is_free| {
            if is_free {
                let begun = Instant::now();
                release(conf, &attachment, RELEASE_PATIENCE.min(telling).max(TELLING_LEAST));
                telling = telling.saturating_sub(begun.elapsed());
            }
            // Not every plugin has a GC; all have a DEL.
            match &delegate {
                Some(delegate) => delegate.called_for(&attachment).call("DEL", left()).map(drop),
                None => Ok(()),
            }
        });
        if let Err(error) = freed {
            failures.push(format!("{} {}: {error}", attachment.container, attachment.ifname));
        }
    }
    if let Some(delegate) = delegate
        && let Err(error) = delegate.call("GC", left())
    {
        if failures.is_empty() {
            return Err(error);
        }
        failures.push(error.to_string());
    }
    if failures.is_empty() {
        return Ok(());
    }
    let message = format!("some stale attachments could not be freed: {}", failures.join("; "));
    Err(CniError::new(Code::Plumbing, message))
}

/// The attachments of a network, by the links of their host ends, that are not on the list.
fn stale(links: &[Link], network: &str, valid: &[Target]) -> Vec<Attachment> {
    let hash = network_hash(network);
    let attachment = |link: &Link| {
        let alias = Alias::parse(link.alias.as_deref()?)?;
        let attachment =
            Attachment { network: network.to_owned(), container: alias.container, ifname: alias.ifname };
        let is_ours =
            alias.network_hash == hash && link.name == veth_name(&attachment) && is_of(link, &attachment);
        is_ours.then_some(attachment)
    };
    let is_valid = |attachment: &Attachment| {
        valid
            .iter()
            .any(|target| target.container == attachment.container && target.ifname == attachment.ifname)
    };
    links.iter().filter_map(attachment).filter(|attachment| !is_valid(attachment)).collect()
}

#[cfg(test)]
mod tests {
    use wire::tag::VETH_GROUP;

    use super::*;

    fn attachment(network: &str, container: &str, ifname: &str) -> Attachment {
        Attachment { network: network.into(), container: container.into(), ifname: ifname.into() }
    }

    fn link(attachment: &Attachment) -> Link {
        Link {
            index: 7,
            name: veth_name(attachment),
            kind: "veth".into(),
            mtu: 1450,
            up: true,
            loopback: false,
            mac: None,
            group: VETH_GROUP,
            alias: Some(Alias::new(attachment, &["10.0.0.1".parse().unwrap()]).emit()),
            altnames: vec![],
            tx_queue_len: 1000,
            vxlan_port: None,
            vxlan_vni: None,
        }
    }

    #[test]
    fn stale_is_what_is_ours_and_not_listed() {
        let (kept, gone) = (attachment("net", "c1", "eth0"), attachment("net", "c1", "eth1"));
        let other = attachment("other", "c2", "eth0");
        let links = [link(&kept), link(&gone), link(&other)];
        let valid = [Target { container: "c1".into(), ifname: "eth0".into() }];
        assert_eq!(stale(&links, "net", &valid), std::slice::from_ref(&gone));
        assert_eq!(stale(&links, "net", &[]), [kept, gone]);
        assert_eq!(stale(&links, "other", &[]), [other]);
    }

    #[test]
    fn what_only_looks_like_ours_stays() {
        let whole = link(&attachment("net", "c1", "eth0"));
        for odd in [
            Link { name: "veth0".into(), ..whole.clone() },
            Link { kind: "dummy".into(), ..whole.clone() },
            Link { group: 0, ..whole.clone() },
            Link { alias: None, ..whole.clone() },
            Link { alias: Some("somebody's".into()), ..whole.clone() },
        ] {
            assert_eq!(stale(&[odd], "net", &[]), []);
        }
    }
}
