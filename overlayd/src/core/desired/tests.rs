//! What the wish looks like, case by case.

use std::time::Duration;

use wire::packet::MacAddr;

use super::*;
use crate::core::cluster::{Peer, PeerPath};
use crate::core::config::{LogFormat, Mode, TunnelGso};
use crate::core::plan::{Device as Tun, ForeignLink};

pub(crate) fn config() -> Config {
    Config {
        node_name: "a".to_owned(),
        nodes_file: None,
        kubeconfig: None,
        api_server: None,
        annotation_prefix: "overlayd.io".to_owned(),
        mode: Mode::Island,
        device: "ovl0".to_owned(),
        vni: 1,
        port: 8472,
        mtu: None,
        cluster_cidrs: Vec::new(),
        no_masquerade_cidrs: vec!["172.16.0.0/12".parse().unwrap()],
        masquerade_fully_random: true,
        masquerade_mark: 0x4000,
        forward_accept: false,
        take_over: false,
        workers: 2,
        queue_length: 2000,
        tunnel_gso: TunnelGso::Auto,
        spin: Duration::from_micros(50),
        run_dir: "/run/overlayd".into(),
        cni_conf_dir: None,
        cni_bin_dir: "/opt/cni/bin".into(),
        cni_version: "1.0.0".into(),
        sysctl_dir: "/proc/sys".into(),
        admin_listen: None,
        log: "info".to_owned(),
        log_format: LogFormat::Text,
    }
}

pub(crate) fn own(cidrs: &[&str]) -> Own {
    Own {
        name: "a".to_owned(),
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        underlay_v4: Some("192.0.2.1".parse().unwrap()),
        underlay_v6: Some("2001:db8::1".parse().unwrap()),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
    }
}

pub(crate) fn peer(name: &str, underlay: &str, cidrs: &[&str]) -> Peer {
    let path = PeerPath {
        underlay: underlay.parse().unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, 2]),
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    };
    Peer { name: name.to_owned(), paths: vec![path] }
}

pub(crate) fn cluster(peers: Vec<Peer>) -> Cluster {
    Cluster { peers, ..Cluster::default() }
}

/// An uplink of 1500 bytes with both underlay addresses, and the TUN device as it is when new.
pub(crate) fn machine() -> Actual {
    let uplink = ForeignLink {
        index: 2,
        name: "eth0".to_owned(),
        mtu: 1500,
        up: true,
        kind: "veth".to_owned(),
        addresses: vec!["192.0.2.1/24".parse().unwrap(), "2001:db8::1/64".parse().unwrap()],
        ..ForeignLink::default()
    };
    let device = Tun { index: 3, name: "ovl0".to_owned(), mtu: 1500, tx_queue_len: 500, up: false };
    Actual { device: Some(device), foreign_links: vec![uplink], ..Actual::default() }
}

pub(crate) struct World {
    pub(crate) config: Config,
    own: Own,
    cluster: Cluster,
    path_mtus: BTreeMap<IpAddr, u32>,
    pub(crate) actual: Actual,
}

impl World {
    pub(crate) fn new(cidrs: &[&str], peers: Vec<Peer>) -> Self {
        let (config, own, cluster) = (config(), own(cidrs), cluster(peers));
        Self { config, own, cluster, path_mtus: BTreeMap::new(), actual: machine() }
    }

    fn desired(&self) -> Desired {
        desired(self.inputs())
    }

    pub(crate) fn inputs(&self) -> Inputs<'_> {
        let Self { config, own, cluster, path_mtus, actual } = self;
        Inputs { config, own, cluster, path_mtus, actual }
    }

    fn tunnel_mtu(&self, cidr: &str) -> Option<u32> {
        let cidr: IpNet = cidr.parse().unwrap();
        let want = self.desired();
        want.routes.iter().find(|route| route.destination == cidr && route.via == Via::Link(3)).unwrap().mtu
    }

    fn sysctl(&mut self, key: &str, value: &str) {
        self.actual.sysctls.insert(key.to_owned(), value.to_owned());
    }

    fn wanted_sysctls(&self) -> Vec<String> {
        self.desired().sysctls.iter().map(|sysctl| format!("{}={}", sysctl.key, sysctl.value)).collect()
    }
}

#[test]
fn a_peer_route_has_the_tunnel_address_as_source_and_the_mtu_of_its_underlay() {
    let peers = vec![
        peer("b", "192.0.2.2", &["10.244.2.0/24", "fd00:2::/64"]),
        peer("c", "2001:db8::3", &["10.244.3.0/24"]),
    ];
    let world = World::new(&["10.244.1.0/24", "fd00:1::/64"], peers);
    let want = world.desired();
    let by_tun: Vec<&Route> = want.routes.iter().filter(|route| route.via == Via::Link(3)).collect();
    assert_eq!(by_tun.len(), 3);
    for route in by_tun {
        let source = if route.destination.addr().is_ipv4() { "10.244.1.0" } else { "fd00:1::" };
        assert_eq!(route.source, Some(source.parse().unwrap()));
    }
    assert_eq!(want.mtu, Some(1450));
    assert_eq!(world.tunnel_mtu("10.244.2.0/24"), Some(1450));
    assert_eq!(world.tunnel_mtu("fd00:2::/64"), Some(1450));
    assert_eq!(world.tunnel_mtu("10.244.3.0/24"), Some(1430));
}

#[test]
fn a_learnt_path_mtu_lowers_the_route_of_that_peer_only() {
    let peers = vec![peer("b", "192.0.2.2", &["10.244.2.0/24"]), peer("c", "192.0.2.3", &["10.244.3.0/24"])];
    let mut world = World::new(&["10.244.1.0/24"], peers);
    world.path_mtus.insert("192.0.2.2".parse().unwrap(), 1400);
    assert_eq!(world.tunnel_mtu("10.244.2.0/24"), Some(1350));
    assert_eq!(world.tunnel_mtu("10.244.3.0/24"), Some(1450));
    world.path_mtus.insert("192.0.2.2".parse().unwrap(), 9000);
    assert_eq!(world.tunnel_mtu("10.244.2.0/24"), Some(1450));
}

#[test]
fn a_configured_mtu_never_exceeds_what_the_underlay_carries() {
    let mut world = World::new(&["10.244.1.0/24"], Vec::new());
    for (configured, expected) in [(Some(1400), 1400), (Some(8950), 1450), (None, 1450)] {
        world.config.mtu = configured;
        assert_eq!(inner_mtu(&world.config, &world.own, &world.actual), Some(expected));
    }
    world.actual.foreign_links.clear();
    assert_eq!(inner_mtu(&world.config, &world.own, &world.actual), None);
    world.config.mtu = Some(1400);
    assert_eq!(inner_mtu(&world.config, &world.own, &world.actual), Some(1400));
}

#[test]
fn every_pod_cidr_and_configured_cidr_is_unreachable_beneath() {
    let mut world =
        World::new(&["10.244.1.0/24"], vec![peer("b", "192.0.2.2", &["10.244.2.0/24", "fd00:2::/64"])]);
    world.config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let want = world.desired();
    let unreachable: Vec<String> = want
        .routes
        .iter()
        .filter(|route| route.via == Via::Unreachable)
        .map(|route| route.destination.to_string())
        .collect();
    assert_eq!(unreachable, ["10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24"]);
}

#[test]
fn without_an_ipv6_pod_cidr_nothing_of_ipv6_is_touched() {
    let mut world = World::new(&["10.244.1.0/24"], vec![peer("b", "192.0.2.2", &["fd00:2::/64"])]);
    world.sysctl(FORWARDING_V6, "0");
    world.sysctl(FORWARDING_V4, "0");
    world.actual.advertised_defaults.insert("eth0".to_owned());
    world.sysctl(&accept_ra("eth0"), "1");
    assert_eq!(world.wanted_sysctls(), ["net/ipv4/ip_forward=1"]);
    let want = world.desired();
    assert!(want.routes.iter().all(|route| route.destination.addr().is_ipv4()));
    assert!(want.table.sets.iter().all(|set| set.family == Family::V4));
}

#[test]
fn accept_ra_is_raised_before_ipv6_forwarding() {
    let mut world = World::new(&["fd00:1::/64"], Vec::new());
    world.sysctl(FORWARDING_V6, "0");
    world.sysctl(&accept_ra("eth0"), "1");
    assert_eq!(
        world.wanted_sysctls(),
        ["net/ipv6/conf/all/forwarding=1"],
        "no router-advertised default route"
    );
    world.actual.advertised_defaults.insert("eth0".to_owned());
    assert_eq!(world.wanted_sysctls(), ["net/ipv6/conf/eth0/accept_ra=2", "net/ipv6/conf/all/forwarding=1"]);
}

#[test]
fn reverse_path_filter_is_loosened_only_where_it_is_strict() {
    for (all, device, loosened) in
        [("0", "0", false), ("1", "0", true), ("0", "1", true), ("2", "1", false), ("1", "2", false)]
    {
        let mut world = World::new(&["10.244.1.0/24"], Vec::new());
        world.sysctl(&rp_filter("all"), all);
        world.sysctl(&rp_filter("ovl0"), device);
        let wanted = world.wanted_sysctls();
        assert_eq!(wanted.contains(&"net/ipv4/conf/ovl0/rp_filter=2".to_owned()), loosened, "{all} {device}");
    }
}

#[test]
fn a_settled_veth_gets_its_host_routes_back_and_an_unsettled_one_is_left_alone() {
    let mut world = World::new(&["10.244.1.0/24"], Vec::new());
    let alias = tag::Alias {
        network_hash: "0123456789abcdef".to_owned(),
        container: "c".to_owned(),
        ifname: "eth0".to_owned(),
        addresses: vec!["10.244.1.7".parse().unwrap()],
    };
    let veth = |index, name: &str| ObservedVeth {
        name: name.to_owned(),
        index,
        alias: Some(alias.clone()),
        pod_mac: None,
        mtu: 1450,
        up: false,
    };
    world.actual.veths = vec![veth(7, "ovp000000000001")];
    assert!(world.desired().links_up.is_empty());
    world.actual.settled.insert(7);
    let want = world.desired();
    let host = Route {
        destination: "10.244.1.7/32".parse().unwrap(),
        metric: tag::POD_ROUTE_METRIC,
        via: Via::Link(7),
        source: None,
        mtu: None,
    };
    assert!(want.routes.contains(&host));
    assert!(want.links_up.contains(&7));
    let mac = tag::pod_mac("ovp000000000001");
    let neighbour = Neighbour { link: 7, address: "10.244.1.7".parse().unwrap(), mac };
    assert_eq!(want.neighbours, BTreeSet::from([neighbour]));
    assert!(want.gateways.is_empty(), "no IPv6 address");
    let asked = MacAddr([2, 0, 0, 0, 0, 9]);
    world.actual.veths[0].pod_mac = Some(asked);
    let macs: Vec<MacAddr> = world.desired().neighbours.iter().map(|neighbour| neighbour.mac).collect();
    assert_eq!(macs, [asked]);
}

#[test]
fn the_masquerade_rules_come_after_every_exemption() {
    let want = World::new(&["10.244.1.0/24"], Vec::new()).desired();
    let chain = &want.table.chains[0];
    let comments: Vec<&str> = chain.rules.iter().map(|rule| rule.comment.as_str()).collect();
    assert_eq!(
        comments,
        [
            "kube-proxy masquerades it",
            "to a pod of this node",
            "foreign source into the tunnel",
            "pod to pod",
            "pod to an exempted destination",
            "pod to outside",
        ]
    );
    assert!(want.table.ranges("bypass4").iter().any(|range| range.to_string() == "224.0.0.0/4"));
}

#[test]
fn pods_cannot_send_to_the_tunnel_port_of_the_underlay_addresses_of_peers() {
    let peers =
        vec![peer("b", "192.0.2.2", &["10.244.2.0/24"]), peer("c", "2001:db8::3", &["10.244.3.0/24"])];
    let want = World::new(&["10.244.1.0/24", "fd00:1::/64"], peers).desired();
    let nodes = |name| want.table.ranges(name).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        (nodes("nodes4"), nodes("nodes6")),
        (vec!["192.0.2.2/32".into()], vec!["2001:db8::3/128".into()])
    );
    let guard = want.table.chains.iter().find(|chain| chain.name == "tunnel_guard").unwrap();
    assert_eq!(guard.rules.len(), 2);
    for rule in &guard.rules {
        assert!(rule.parts.contains(&Part::DestinationPort(8472)) && rule.parts.contains(&Part::Drop));
    }
}

#[test]
fn the_mark_check_can_be_turned_off() {
    let mut world = World::new(&["10.244.1.0/24"], Vec::new());
    world.config.masquerade_mark = 0;
    let want = world.desired();
    let marks = |rule: &Rule| rule.parts.iter().any(|part| matches!(part, Part::MarkBits(_)));
    assert!(!want.table.chains.iter().flat_map(|chain| &chain.rules).any(marks));
}
