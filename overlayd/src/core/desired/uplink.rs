//! Super-packets that leave whole: the way from the TAP device to the uplinks, and who may be sent some.
//!
//! A frame written to the TAP device is a TCP super-packet with the tunnel's headers in front. A rule at the device's ingress sends
//! it out by the uplink, before routing, filters and connection tracking; the kernel resolves the neighbour. So only
//! peers on a network of the uplink itself are reached this way, and only an uplink that segments below a tunnel's headers
//! (in hardware, or as a veth that passes super-packets on) makes it worth while: for the others the kernel would cut up what we
//! cut up as fast. The table has an owner, so that nobody's `nft flush ruleset` takes it away under a stream.

use std::net::IpAddr;

use super::{Inputs, link_of};
use crate::core::config::{Config, TunnelGso};
use crate::core::plan::ruleset::Family;
use crate::core::plan::{ForeignLink, UplinkTable};
use crate::core::table::Direct;

/// Longest name of a link: `IFNAMSIZ` of `linux/if.h` less the terminator.
const NAME_MAX: usize = 15;

/// Name of the TAP device that goes with a TUN device.
#[must_use]
pub fn tap_name(device: &str) -> String {
    const SUFFIX: &str = "-tso";
    let kept: String = device.chars().take(NAME_MAX - SUFFIX.len()).collect();
    kept + SUFFIX
}

/// Why super-packets are cut up although the datapath could send them whole: no uplink is fit for it.
#[must_use]
pub fn why_none(config: &Config) -> &'static str {
    match config.tunnel_gso {
        TunnelGso::Always => {
            "no uplink has tx-udp_tnl-segmentation and tx-udp_tnl-csum-segmentation (ethtool -k)"
        }
        _ => "no uplink is a veth with tx-udp_tnl-segmentation and tx-udp_tnl-csum-segmentation (ethtool -k)",
    }
}

/// Each underlay's uplink.
fn uplinks<'a>(inputs: Inputs<'a>) -> impl Iterator<Item = (Family, &'a ForeignLink)> {
    let Inputs { own, actual, .. } = inputs;
    let addresses = [own.underlay_v4.map(IpAddr::V4), own.underlay_v6.map(IpAddr::V6)];
    addresses
        .into_iter()
        .flatten()
        .filter_map(|address| link_of(actual, address).map(|link| (Family::of(address), link)))
}

/// The table that this node should have, whether or not the uplinks are fit for it now: none without a TAP device.
pub(super) fn table(inputs: Inputs<'_>) -> Option<UplinkTable> {
    let tap = inputs.actual.tap.as_ref()?;
    let links: Vec<(Family, u32)> = uplinks(inputs).map(|(family, link)| (family, link.index)).collect();
    (!links.is_empty()).then(|| UplinkTable { device: tap.name.clone(), links })
}

/// Whether an uplink cuts up what is given to it, and is trusted to.
fn is_fit(config: &Config, link: &ForeignLink) -> bool {
    let trusted = match config.tunnel_gso {
        TunnelGso::Auto => link.kind == "veth",
        TunnelGso::Always => true,
        TunnelGso::Never => false,
    };
    link.up && link.tunnel_gso && trusted
}

/// Who may be sent super-packets now: neighbours on the uplinks, once the kernel holds the table.
#[must_use]
pub fn direct(inputs: Inputs<'_>) -> Direct {
    let Inputs { config, actual, .. } = inputs;
    let stands = actual.tap.as_ref().is_some_and(|tap| tap.up);
    let mut direct = Direct::default();
    if !stands || actual.uplink_table.is_none() || actual.uplink_table != table(inputs) {
        return direct;
    }
    for (family, uplink) in uplinks(inputs).filter(|(_, link)| is_fit(config, link)) {
        for route in
            actual.foreign_routes.iter().filter(|route| Family::of(route.destination.addr()) == family)
        {
            let on_link = !route.gateway && route.link.as_ref() == Some(&uplink.name);
            let nets = if on_link { &mut direct.on_link } else { &mut direct.elsewhere };
            nets.push(route.destination);
        }
    }
    // Only these could decide otherwise.
    let Direct { on_link, elsewhere } = &mut direct;
    elsewhere.retain(|net| on_link.iter().any(|wide| wide.contains(net)));
    direct
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::desired::desired;
    use crate::core::desired::tests::{World, peer};
    use crate::core::plan::{Device, ForeignRoute, Op, plan};

    fn world() -> World {
        let peers = vec![peer("b", "192.0.2.2", &["10.244.2.0/24"])];
        let mut world = World::new(&["10.244.1.0/24"], peers);
        let tap = Device { index: 9, name: tap_name("ovl0"), mtu: 1500, tx_queue_len: 1000, up: false };
        world.actual.tap = Some(tap);
        world.actual.foreign_links[0].tunnel_gso = true;
        world.route("192.0.2.0/24", Some("eth0"), false);
        world.route("192.0.2.128/25", Some("eth1"), false);
        world.route("198.51.100.0/24", Some("eth0"), true);
        world
    }

    impl World {
        fn route(&mut self, destination: &str, link: Option<&str>, gateway: bool) {
            let (destination, link) = (destination.parse().unwrap(), link.map(str::to_owned));
            self.actual.foreign_routes.push(ForeignRoute { destination, metric: 0, link, gateway });
        }

        /// Makes the uplink operations of one round.
        fn settle(&mut self) {
            let want = desired(self.inputs());
            for op in plan(&want, &self.actual) {
                if let Op::OpenUplinks(_) = op {
                    assert!(self.actual.take_in(&op));
                }
            }
        }

        fn reaches(&self, address: &str) -> bool {
            direct(self.inputs()).reaches(address.parse().unwrap())
        }
    }

    #[test]
    fn neighbours_of_the_uplink_are_reached_once_the_kernel_holds_the_way() {
        let mut world = world();
        assert!(!world.reaches("192.0.2.2"), "the rule is not there yet");
        world.settle();
        assert!(world.reaches("192.0.2.2"));
        for (address, why) in [
            ("192.0.2.200", "a more specific route leads elsewhere"),
            ("198.51.100.1", "behind a router"),
            ("203.0.113.1", "behind the default route"),
            ("2001:db8::2", "no route of that family"),
        ] {
            assert!(!world.reaches(address), "{why}");
        }
    }

    #[test]
    fn without_the_uplinks_consent_the_way_is_not_used_and_stays_for_what_is_on_it() {
        let mut world = world();
        world.settle();
        let table = world.actual.uplink_table.clone();
        world.actual.foreign_links[0].tunnel_gso = false;
        assert!(!world.reaches("192.0.2.2"));
        world.settle();
        assert!(table.is_some() && world.actual.uplink_table == table);
        world.actual.foreign_links[0].tunnel_gso = true;
        assert!(world.reaches("192.0.2.2"));
        world.actual.tap = None;
        assert!(!world.reaches("192.0.2.2"), "the device is gone");
    }

    #[test]
    fn a_network_card_must_be_asked_for() {
        let mut world = world();
        world.actual.foreign_links[0].kind = String::new();
        for (wish, reached) in [
            (TunnelGso::Auto, false),
            (TunnelGso::Always, true),
            (TunnelGso::Never, false),
            (TunnelGso::Always, true),
        ] {
            world.config.tunnel_gso = wish;
            world.settle();
            assert_eq!(world.reaches("192.0.2.2"), reached, "{wish:?}");
        }
    }

    #[test]
    fn an_uplink_that_was_made_anew_gets_another_table() {
        let mut world = world();
        world.settle();
        world.actual.foreign_links[0].index = 12;
        assert!(!world.reaches("192.0.2.2"), "the rule names the old one");
        world.settle();
        assert!(world.reaches("192.0.2.2"));
    }

    #[test]
    fn the_devices_name_fits() {
        assert_eq!(tap_name("ovl0"), "ovl0-tso");
        assert_eq!(tap_name("abcdefghijklmno"), "abcdefghijk-tso");
    }
}
