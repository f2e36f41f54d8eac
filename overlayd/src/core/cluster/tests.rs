//! Laws and examples of what is believed.

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::core::config::{MachineFacts, RawConfig};

/// With Nodes from a file, unless the settings say otherwise.
pub(super) fn config(settings: &[(&str, &str)]) -> Config {
    let mut values: BTreeMap<String, String> =
        settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    values.entry("node_name".into()).or_insert_with(|| "own".into());
    if !values.contains_key("api_server") {
        values.insert("nodes_file".into(), "/nodes.yaml".into());
    }
    let machine = MachineFacts { hostname: "host".into(), cpus: 1, memory: 0 };
    Config::resolve(None, &BTreeMap::new(), &RawConfig { values }, &machine).unwrap()
}

pub(super) fn node(name: &str, cidrs: &[&str], ips: &[&str]) -> NodeObject {
    NodeObject {
        name: name.into(),
        created: "2026-01-01T00:00:00Z".into(),
        pod_cidrs: cidrs.iter().map(|text| (*text).to_owned()).collect(),
        internal_ips: ips.iter().map(|text| (*text).to_owned()).collect(),
        ..NodeObject::default()
    }
}

fn own() -> NodeObject {
    node("own", &["10.244.0.0/24"], &["192.0.2.1"])
}

trait Edit {
    fn with(self, key: &str, text: &str) -> Self;
    fn born(self, created: &str) -> Self;
}

impl Edit for NodeObject {
    fn with(mut self, key: &str, text: &str) -> Self {
        let key = if key.contains('/') { key.to_owned() } else { format!("overlayd.io/{key}") };
        self.annotations.insert(key, text.to_owned());
        self
    }

    fn born(self, created: &str) -> Self {
        Self { created: created.to_owned(), ..self }
    }
}

fn fold(config: &Config, nodes: &[NodeObject]) -> Cluster {
    let mut book = Book::default();
    book.apply(NodeEvent::Listed(nodes.to_vec()));
    derived(&mut book, config)
}

fn derived(book: &mut Book, config: &Config) -> Cluster {
    let _ = book.derive(config);
    book.cluster().clone()
}

/// The cluster of our own node and these.
fn with_own(nodes: &[NodeObject]) -> Cluster {
    let mut all = vec![own()];
    all.extend_from_slice(nodes);
    fold(&config(&[]), &all)
}

fn reasons(cluster: &Cluster) -> Vec<String> {
    cluster.refused.iter().map(|refusal| format!("{}: {}", refusal.node, refusal.reason)).collect()
}

fn peer_names(cluster: &Cluster) -> Vec<&str> {
    cluster.peers.iter().map(|peer| peer.name.as_str()).collect()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `bad` is refused once, for `why`, and costs a good node nothing.
fn refused(bad: NodeObject, why: &str) {
    let good = node("good", &["10.244.9.0/24"], &["192.0.2.9"]);
    let name = bad.name.clone();
    let cluster = with_own(&[bad, good]);
    assert_eq!(peer_names(&cluster), ["good"], "{:?}", reasons(&cluster));
    assert_eq!(cluster.refused.len(), 1, "{:?}", reasons(&cluster));
    assert!(cluster.refused.iter().all(|refusal| refusal.node == name), "{:?}", reasons(&cluster));
    assert!(cluster.refused.iter().any(|refusal| refusal.reason.contains(why)), "{:?}", reasons(&cluster));
}

#[test]
fn a_peer_is_one_path_with_the_mac_of_its_name() {
    let cluster = with_own(&[node("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.2"])]);
    assert_eq!(
        cluster.peers,
        [Peer {
            name: "a".into(),
            paths: vec![PeerPath {
                underlay: ip("192.0.2.2"),
                mac: vtep_mac("a"),
                pod_cidrs: nets(&["10.244.1.0/24", "fd00:1::/64"]),
            }],
        }]
    );
    let own = cluster.own.unwrap();
    assert_eq!(
        (own.underlay_v4, own.underlay_v6, own.mac),
        (Some([192, 0, 2, 1].into()), None, vtep_mac("own"))
    );
    assert_eq!(own.tunnel_addresses(), [ip("10.244.0.0")]);
    assert!(cluster.refused.is_empty() && cluster.own_problem.is_none());
}

/// Every node computes it of every other, across versions.
#[test]
fn the_mac_of_a_name_never_changes() {
    assert_eq!(vtep_mac("worker-1").to_string(), "12:02:9f:9e:83:d1");
}

#[test]
fn annotations_come_before_spec_and_status() {
    let a = node("a", &["10.9.9.0/24"], &["192.0.2.2"])
        .with("pod-cidrs", "fd00:1::/64, 10.244.1.0/24")
        .with("public-ip", "198.51.100.2")
        .with("backend-data", r#"{"VNI":1,"VtepMAC":"c2:11:22:33:44:55"}"#);
    let path = PeerPath {
        underlay: ip("198.51.100.2"),
        mac: "c2:11:22:33:44:55".parse().unwrap(),
        pod_cidrs: nets(&["10.244.1.0/24", "fd00:1::/64"]),
    };
    assert_eq!(with_own(std::slice::from_ref(&a)).peers[0].paths, std::slice::from_ref(&path));
    let a = a.with("public-ip-overwrite", "203.0.113.5");
    assert_eq!(with_own(&[a]).peers[0].paths, [PeerPath { underlay: ip("203.0.113.5"), ..path }]);
}

#[test]
fn our_sockets_are_not_bound_to_an_overwriting_address() {
    let nat = own().with("public-ip", "203.0.113.5").with("public-ip-overwrite", "203.0.113.5");
    let cluster = fold(&config(&[]), &[nat, node("a", &["10.244.1.0/24"], &["203.0.113.5"])]);
    assert_eq!(cluster.own.as_ref().unwrap().underlay_v4, Some([192, 0, 2, 1].into()));
    assert!(reasons(&cluster).concat().contains("203.0.113.5 is that of this node"), "{cluster:?}");
}

#[test]
fn the_first_common_ip_version_carries_everything() {
    let dual = NodeObject { internal_ips: vec!["192.0.2.1".into(), "2001:db8::1".into()], ..own() };
    let nodes = [
        dual,
        node("both", &["10.244.1.0/24"], &["2001:db8::2", "192.0.2.2"]),
        node("six", &["10.244.2.0/24"], &["2001:db8::3"]),
    ];
    let cluster = fold(&config(&[]), &nodes);
    let underlays: Vec<IpAddr> = cluster.peers.iter().map(|peer| peer.paths[0].underlay).collect();
    assert_eq!(underlays, [ip("192.0.2.2"), ip("2001:db8::3")]);
    refused(node("six", &["10.244.2.0/24"], &["2001:db8::3"]), "no usable address of our IP version");
}

#[test]
fn underlay_addresses_that_cannot_be_are_refused() {
    for address in ["0.0.0.0", "127.0.0.1", "224.0.0.9", "255.255.255.255", "0.1.2.3", "240.0.0.1"] {
        refused(node("bad", &["10.244.1.0/24"], &[address]), address);
        refused(node("bad", &["10.244.1.0/24"], &["192.0.2.2"]).with("public-ip", address), address);
    }
    for address in ["::", "::1", "ff02::1", "fe80::1", "::ffff:192.0.2.2"] {
        refused(node("bad", &["10.244.1.0/24"], &[address]), "InternalIP");
    }
    refused(node("bad", &["10.244.1.0/24"], &[]), "no usable address at all");
    refused(node("bad", &["10.244.1.0/24"], &["192.0.2.2"]).with("public-ip", "x"), "not an IP address");
    refused(node("bad", &["10.244.1.0/24"], &["192.0.2.2"]).with("public-ip", "fd00::1"), "other IP version");
    refused(node("bad", &["10.244.1.0/24"], &["192.0.2.1"]), "192.0.2.1 is that of this node (own)");
}

#[test]
fn pod_cidrs_that_cannot_be_are_refused() {
    for (cidr, why) in [
        ("10.244.1.0", "is not a CIDR"),
        ("10.244.1.7/24", "host bits"),
        ("0.0.0.0/0", "too wide"),
        ("128.0.0.0/1", "too wide"),
        ("::/0", "too wide"),
        ("127.1.0.0/16", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("239.1.0.0/24", "multicast"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "multicast"),
        ("::1/128", "loopback"),
        ("10.244.0.0/16", "overlaps 10.244.0.0/24 of this node"),
        ("10.244.0.128/25", "overlaps 10.244.0.0/24 of this node"),
        ("192.0.2.0/29", "covers 192.0.2.1, the address of this node"),
    ] {
        refused(node("bad", &[cidr], &["192.0.2.77"]), why);
    }
    refused(node("bad", &["192.0.2.64/26"], &["192.0.2.77"]), "covers 192.0.2.77, the address of node bad");
    refused(node("bad", &[], &["192.0.2.2"]), "has no pod CIDR yet");
}

#[test]
fn good_cidrs_of_a_node_survive_its_bad_ones() {
    let cluster =
        with_own(&[node("a", &["10.244.1.0/24", "10.244.0.0/24", "x", "10.244.2.0/24"], &["192.0.2.2"])]);
    assert_eq!(cluster.peers[0].paths[0].pod_cidrs, nets(&["10.244.1.0/24", "10.244.2.0/24"]));
    assert_eq!(cluster.refused.len(), 2);
}

#[test]
fn between_two_claims_the_older_is_believed() {
    let old = node("z-old", &["10.244.1.0/24"], &["192.0.2.2"]).born("2025-01-01T00:00:00Z");
    let young = node("a-young", &["10.244.1.0/25"], &["192.0.2.3"]).born("2026-01-01T00:00:00Z");
    let cluster = with_own(&[young.clone(), old.clone()]);
    assert_eq!(peer_names(&cluster), ["z-old"]);
    assert_eq!(reasons(&cluster), ["a-young: pod CIDR 10.244.1.0/25 overlaps 10.244.1.0/24 of node z-old"]);

    let same_age = NodeObject { created: old.created.clone(), ..young.clone() };
    assert_eq!(peer_names(&with_own(&[same_age, old.clone()])), ["a-young"]);
    let ageless = old.clone().born("");
    assert_eq!(peer_names(&with_own(&[young, ageless])), ["a-young"]);

    let thief = node("a", &["10.244.7.0/24"], &["192.0.2.2"]);
    let cluster = with_own(&[thief, old]);
    assert_eq!(peer_names(&cluster), ["z-old"]);
    assert!(reasons(&cluster).concat().contains("address 192.0.2.2 is that of node z-old"));
}

#[test]
fn what_a_refused_node_claims_is_free_for_others() {
    let good = || node("good", &["10.244.1.0/24"], &["192.0.2.2"]);
    for bad in [
        node("bad", &["10.244.1.0/24"], &["0.0.0.0"]),
        node("bad", &["10.244.1.0/24"], &[]),
        node("bad", &["10.244.1.0/24"], &["192.0.2.3"]).with("backend-data", r#"{"VNI":7}"#),
        node("bad", &[], &["192.0.2.2"]),
        node("bad", &["224.1.0.0/24"], &["192.0.2.2"]),
    ] {
        let cluster = with_own(&[bad.born("2025-01-01T00:00:00Z"), good()]);
        assert_eq!(peer_names(&cluster), ["good"], "{:?}", reasons(&cluster));
        assert_eq!(cluster.refused.len(), 1, "{:?}", reasons(&cluster));
    }
}

#[test]
fn an_address_inside_an_older_nodes_cidr_is_refused_and_a_cidr_over_an_older_address_too() {
    let old = node("old", &["10.244.1.0/24"], &["192.0.2.2"]).born("2025-01-01T00:00:00Z");
    let inside = node("in", &["10.244.5.0/24"], &["10.244.1.7"]);
    let over = node("over", &["192.0.2.2/32"], &["192.0.2.3"]);
    let cluster = with_own(&[inside, over, old]);
    assert_eq!(peer_names(&cluster), ["old"]);
    let reasons = reasons(&cluster).join("\n");
    assert!(
        reasons.contains("in: address 10.244.1.7 lies in pod CIDR 10.244.1.0/24 of node old"),
        "{reasons}"
    );
    assert!(
        reasons.contains("over: pod CIDR 192.0.2.2/32 covers 192.0.2.2, the address of node old"),
        "{reasons}"
    );
}

#[test]
fn foreign_tunnels_are_refused() {
    let a = || node("bad", &["10.244.1.0/24"], &["192.0.2.2"]);
    refused(a().with("backend-type", "host-gw"), r#"overlayd.io/backend-type is "host-gw", not vxlan"#);
    refused(a().with("backend-data", r#"{"VNI":2,"VtepMAC":"c2:11:22:33:44:55"}"#), "VNI 2 is not ours (1)");
    refused(a().with("backend-data", r#"{"VtepMAC":"01:00:5e:00:00:01"}"#), "no unicast Ethernet address");
    refused(a().with("backend-data", "{"), "is not JSON");
}

fn flannel(name: &str, cidrs: &[&str], ips: &[&str]) -> NodeObject {
    node(name, cidrs, ips)
        .with("flannel.alpha.coreos.com/kube-subnet-manager", "true")
        .with("flannel.alpha.coreos.com/backend-type", "vxlan")
        .with("flannel.alpha.coreos.com/backend-data", r#"{"VNI":1,"VtepMAC":"c2:00:00:00:00:04"}"#)
        .with("flannel.alpha.coreos.com/backend-v6-data", r#"{"VNI":1,"VtepMAC":"c2:00:00:00:00:06"}"#)
}

#[test]
fn with_flannels_prefix_each_ip_version_has_its_own_path() {
    let config = config(&[("annotation_prefix", "flannel.alpha.coreos.com")]);
    let own = node("own", &["10.244.0.0/24", "fd00::/64"], &["192.0.2.1", "2001:db8::1"]);
    let dual = flannel("dual", &["10.244.1.0/24", "fd00:0:0:1::/64"], &["192.0.2.2", "2001:db8::2"])
        .with("flannel.alpha.coreos.com/public-ip", "198.51.100.2");
    let four = flannel("four", &["10.244.2.0/24", "fd00:0:0:2::/64"], &["192.0.2.3"]);
    let silent = node("silent", &["10.244.3.0/24"], &["192.0.2.4"]);
    let mut bare = flannel("bare", &["10.244.4.0/24", "fd00:0:0:4::/64"], &["192.0.2.5", "2001:db8::5"]);
    bare.annotations.remove("flannel.alpha.coreos.com/backend-data");
    let cluster = fold(&config, &[own, dual, four, silent, bare]);
    let v4 = |underlay: &str, cidr: &str| PeerPath {
        underlay: ip(underlay),
        mac: "c2:00:00:00:00:04".parse().unwrap(),
        pod_cidrs: nets(&[cidr]),
    };
    let v6 = |underlay: &str, cidr: &str| PeerPath {
        mac: "c2:00:00:00:00:06".parse().unwrap(),
        ..v4(underlay, cidr)
    };
    let paths: Vec<_> = cluster.peers.into_iter().map(|peer| (peer.name, peer.paths)).collect();
    assert_eq!(
        paths,
        [
            ("bare".to_owned(), vec![v6("2001:db8::5", "fd00:0:0:4::/64")]),
            (
                "dual".to_owned(),
                vec![v4("198.51.100.2", "10.244.1.0/24"), v6("2001:db8::2", "fd00:0:0:1::/64")]
            ),
            ("four".to_owned(), vec![v4("192.0.2.3", "10.244.2.0/24")]),
        ]
    );
    let named: Vec<&str> = cluster.refused.iter().map(|refusal| refusal.node.as_str()).collect();
    assert_eq!(named, ["bare", "four"]);
}

#[test]
fn our_own_problem_is_told_with_its_remedy() {
    let problem = |nodes: &[NodeObject]| {
        let cluster = fold(&config(&[]), nodes);
        assert!(cluster.own.is_none() && cluster.peers.is_empty());
        cluster.own_problem.unwrap()
    };
    assert!(problem(&[]).contains("there are no Nodes"));
    assert!(problem(&[node("a", &["10.0.0.0/24"], &["192.0.2.2"])]).contains("the 1 known: a"));
    let no_cidr = problem(&[node("own", &[], &["192.0.2.1"])]);
    assert!(no_cidr.contains("--allocate-node-cidrs") && no_cidr.contains("--cluster-cidr"), "{no_cidr}");
    assert!(problem(&[node("own", &["10.0.0.0/24"], &["127.0.0.1"])]).contains("InternalIP"));
    assert!(
        derived(&mut Book::default(), &config(&[]))
            .own_problem
            .unwrap()
            .contains("no Nodes have been read yet")
    );
    let six = node("own", &["fd00::/64"], &["192.0.2.1"]);
    assert!(fold(&config(&[("mtu", "1279")]), &[six]).own_problem.unwrap().contains("1280"));
}

#[test]
fn all_of_our_cidrs_are_used_and_a_bad_one_costs_only_itself() {
    let own = node("own", &["fd00::/64", "10.1.0.0/24", "10.2.0.0/24", "x"], &["192.0.2.1"]);
    let cluster = fold(&config(&[]), &[own]);
    assert_eq!(cluster.own.unwrap().pod_cidrs, nets(&["10.1.0.0/24", "10.2.0.0/24", "fd00::/64"]));
    assert_eq!(cluster.refused.len(), 1);
}

#[test]
fn events_change_the_book_only_when_something_changed() {
    let mut book = Book::default();
    assert!(book.apply(NodeEvent::Applied(Box::new(own()))));
    assert!(!book.synced());
    assert!(!book.apply(NodeEvent::Applied(Box::new(own()))));
    assert!(book.apply(NodeEvent::Listed(vec![own()])), "the first list is news even if it says the same");
    assert!(book.synced());
    assert!(!book.apply(NodeEvent::Listed(vec![own()])));
    assert!(!book.apply(NodeEvent::Trouble("connection refused".into())));
    assert_eq!(book.nodes(), [own()]);
    assert!(book.apply(NodeEvent::Deleted("own".into())));
    assert!(!book.apply(NodeEvent::Deleted("own".into())));
}

#[test]
fn five_thousand_nodes_are_all_believed() {
    let mut nodes = vec![own()];
    for n in 1..=5000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let cidr = format!("10.{}.{low}.0/24", 128 + u32::from(high));
        nodes.push(node(&format!("n{n}"), &[&cidr], &[&format!("172.16.{high}.{low}")]));
    }
    nodes[0].pod_cidrs = vec!["10.1.0.0/24".into()];
    let cluster = fold(&config(&[]), &nodes);
    assert_eq!((cluster.peers.len(), cluster.refused.len()), (5000, 0));
}

prop_compose! {
    /// Nodes that contradict one another often.
    fn hostile(name: &'static str)(
        created in prop::sample::select(vec!["", "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]),
        cidrs in subsequence(
            vec!["10.244.0.0/24", "10.244.1.0/24", "10.244.0.0/23", "10.244.1.128/25", "192.0.2.0/24", "192.0.2.2/32",
                 "fd00::/64", "fd00::/48", "0.0.0.0/0", "junk"], 0..4),
        ips in subsequence(vec!["192.0.2.1", "192.0.2.2", "192.0.2.3", "10.244.1.5", "2001:db8::1", "127.0.0.1"], 0..3),
        annotation in prop::option::of(prop::sample::select(vec![
            ("public-ip", "192.0.2.3"), ("pod-cidrs", "10.244.1.0/24"), ("backend-data", r#"{"VNI":2}"#),
            ("backend-type", "ipip")])),
    ) -> NodeObject {
        let node = node(name, &cidrs, &ips).born(created);
        match annotation {
            Some((key, text)) => node.with(key, text),
            None => node,
        }
    }
}

/// What may happen to one of the nodes; most of the time they do not contradict one another.
fn step() -> impl Strategy<Value = NodeEvent> {
    let peaceful =
        (prop::sample::select(vec!["a", "b", "c", "d", "e", "f", "g"]), 0..3_u8).prop_map(|(name, at)| {
            let place = at + 3 * (name.as_bytes()[0] - b'a');
            flannel(name, &[&format!("10.244.{}.0/24", place + 10)], &[&format!("192.0.2.{}", place + 10)])
        });
    let applied = |node| NodeEvent::Applied(Box::new(node));
    prop_oneof![
        8 => peaceful.prop_map(applied),
        2 => prop_oneof![hostile("own"), hostile("a"), hostile("e"), hostile("f")].prop_map(applied),
        2 => prop::sample::select(vec!["a", "b", "c", "d", "e", "f", "g"]).prop_map(|name| NodeEvent::Deleted(name.into())),
    ]
}

/// The peers after these changes.
fn follow(mut peers: Vec<Peer>, changes: &[PeerChange]) -> Vec<Peer> {
    for change in changes {
        assert_ne!(change.before, change.after);
        if let Some(before) = &change.before {
            let at = peers.iter().position(|peer| peer == before).expect("a peer that was there");
            peers.remove(at);
        }
        peers.extend(change.after.clone());
    }
    peers.sort_by(|one, other| one.name.cmp(&other.name));
    peers
}

fn hostile_nodes() -> impl Strategy<Value = Vec<NodeObject>> {
    ["own", "a", "b", "c", "d"].map(hostile).into_iter().collect::<Vec<_>>()
}

proptest! {
    #[test]
    fn the_order_of_events_makes_no_difference(
        (nodes, shuffled) in hostile_nodes().prop_flat_map(|nodes| (Just(nodes.clone()), Just(nodes).prop_shuffle())),
    ) {
        let mut book = Book::default();
        book.apply(NodeEvent::Applied(Box::new(node("gone", &["10.244.0.0/16"], &["192.0.2.1"]))));
        for node in shuffled {
            book.apply(NodeEvent::Applied(Box::new(node)));
        }
        book.apply(NodeEvent::Deleted("gone".into()));
        let mut listed = Book::default();
        listed.apply(NodeEvent::Listed(nodes));
        prop_assert_eq!(derived(&mut book, &config(&[])), derived(&mut listed, &config(&[])));
    }

    #[test]
    fn a_picture_that_is_revised_is_the_one_made_anew(
        first in hostile_nodes(),
        steps in proptest::collection::vec(proptest::collection::vec(step(), 1..4), 1..12),
        flannel in any::<bool>(),
    ) {
        let config = if flannel { config(&[("annotation_prefix", "flannel.alpha.coreos.com")]) } else { config(&[]) };
        let mut book = Book::default();
        book.apply(NodeEvent::Listed(first));
        let mut told = Cluster::default();
        for events in std::iter::once(Vec::new()).chain(steps) {
            for event in events {
                book.apply(event);
            }
            let change = book.derive(&config);
            prop_assert_eq!(book.cluster(), &fold(&config, &book.nodes()));
            let now = book.cluster();
            let fresh = now.refused.iter().filter(|refusal| !told.refused.contains(refusal));
            prop_assert_eq!(change.refused, fresh.cloned().collect::<Vec<_>>());
            prop_assert_eq!(change.own, (&told.own, &told.own_problem) != (&now.own, &now.own_problem));
            prop_assert_eq!(&follow(told.peers, &change.peers), &now.peers);
            told = now.clone();
        }
    }

    #[test]
    fn what_is_believed_is_free_of_contradiction(nodes in hostile_nodes()) {
        let cluster = fold(&config(&[]), &nodes);
        prop_assert_eq!(cluster.own.is_none(), cluster.own_problem.is_some());
        let Some(own) = cluster.own else { return Ok(()) };
        let mut underlays: Vec<IpAddr> = own.underlay_v4.map(IpAddr::from).into_iter().collect();
        underlays.extend(own.underlay_v6.map(IpAddr::from));
        let mut cidrs = own.pod_cidrs;
        for path in cluster.peers.iter().flat_map(|peer| &peer.paths) {
            underlays.push(path.underlay);
            cidrs.extend(&path.pod_cidrs);
            prop_assert!(path.mac.is_unicast() && !path.pod_cidrs.is_empty());
        }
        for (n, cidr) in cidrs.iter().enumerate() {
            prop_assert!(underlays.iter().all(|address| !cidr.contains(address)));
            prop_assert!(cidrs.iter().skip(n + 1).all(|other| !cidr.contains(other) && !other.contains(cidr)));
        }
        underlays.sort();
        let count = underlays.len();
        underlays.dedup();
        prop_assert_eq!(underlays.len(), count);
    }
}
