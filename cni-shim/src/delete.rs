//! DEL: needs neither the namespace nor the daemon, and succeeds for what is not there.

use std::time::Duration;

use wire::ipc::Attachment;
use wire::tag::{Alias, VETH_GROUP, network_hash, veth_name};

use crate::add::release;
use crate::attach::delete_own_rules;
use crate::conf::Conf;
use crate::delegate::Delegate;
use crate::environment::{Hints, Sandbox, Target};
use crate::error::CniError;
use crate::log;
use crate::netlink::{Link, Netlink};
use crate::netns::Namespace;

/// How long telling the daemon may take.
pub(crate) const RELEASE_PATIENCE: Duration = Duration::from_millis(800);

/// How long the IPAM plugin may take.
const DELEGATE_PATIENCE: Duration = Duration::from_secs(3);

/// Detaches a container.
///
/// # Errors
/// Only if the kernel refuses to delete a link that is there and ours, or the IPAM plugin fails.
pub fn delete(conf: &Conf, target: Target, sandbox: Option<&Sandbox>, hints: &Hints) -> Result<(), CniError> {
    let attachment =
        Attachment { network: conf.network.clone(), container: target.container, ifname: target.ifname };
    if detach(&attachment)? {
        release(conf, &attachment, RELEASE_PATIENCE);
    }
    if let Some(sandbox) = sandbox {
        forget_rules(sandbox, &attachment);
    }
    let Some(delegate) = Delegate::find(conf, hints.plugin_path.as_deref())? else { return Ok(()) };
    delegate.call("DEL", DELEGATE_PATIENCE).map(drop)
}

/// Rules stay in the namespace when the link goes. One that cannot be entered has none any more.
fn forget_rules(sandbox: &Sandbox, attachment: &Attachment) {
    let Ok(namespace) = Namespace::open(sandbox) else { return };
    let container = &attachment.container;
    match namespace.enter(|| delete_own_rules(&veth_name(attachment))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log(format_args!("rules of {container} stay: {error}")),
        Err(error) => log(format_args!("rules of {container} stay: enter {}: {error}", namespace.path())),
    }
}

/// Deletes an attachment's link, if it is there and of this attachment. False if a link of somebody else has its name.
pub(crate) fn detach(attachment: &Attachment) -> Result<bool, CniError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link_by_name(&veth_name(attachment))? else { return Ok(true) };
    if !is_of(&link, attachment) {
        log(format_args!("link {} is not of this attachment and stays", link.name));
        return Ok(false);
    }
    match netlink.delete_link(link.index) {
        Err(error) if error.errno() == Some(libc::ENODEV) => {}
        other => other?,
    }
    Ok(true)
}

/// Whether a link with the derived name is the host end of this attachment. One without alias is of a plugin that was
/// killed before it wrote it.
pub(crate) fn is_of(link: &Link, attachment: &Attachment) -> bool {
    if link.kind != "veth" || link.group != VETH_GROUP {
        return false;
    }
    let Some(text) = link.alias.as_deref().filter(|text| !text.is_empty()) else { return true };
    Alias::parse(text).is_some_and(|alias| {
        alias.network_hash == network_hash(&attachment.network)
            && alias.container == attachment.container
            && alias.ifname == attachment.ifname
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment { network: "net".into(), container: "c1".into(), ifname: "eth0".into() }
    }

    fn link() -> Link {
        Link {
            index: 7,
            name: veth_name(&attachment()),
            kind: "veth".into(),
            mtu: 1450,
            up: true,
            loopback: false,
            mac: None,
            group: VETH_GROUP,
            alias: Some(Alias::new(&attachment(), &["10.0.0.1".parse().unwrap()]).emit()),
            altnames: vec![],
            tx_queue_len: 1000,
            vxlan_port: None,
            vxlan_vni: None,
        }
    }

    #[test]
    fn our_link_has_kind_group_and_alias() {
        assert!(is_of(&link(), &attachment()));
        assert!(is_of(&Link { alias: None, ..link() }, &attachment()));
        assert!(is_of(&Link { alias: Some(String::new()), ..link() }, &attachment()));
    }

    #[test]
    fn a_link_of_others_is_not_ours() {
        assert!(!is_of(&Link { kind: "bridge".into(), ..link() }, &attachment()));
        assert!(!is_of(&Link { group: 0, ..link() }, &attachment()));
        assert!(!is_of(&Link { alias: Some("uplink".into()), ..link() }, &attachment()));
        for other in [
            Attachment { network: "other".into(), ..attachment() },
            Attachment { container: "c2".into(), ..attachment() },
            Attachment { ifname: "eth1".into(), ..attachment() },
        ] {
            assert!(!is_of(&link(), &other));
        }
    }
}
