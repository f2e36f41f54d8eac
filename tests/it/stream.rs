//! Many bytes arrive as they were sent: over wires that lose, over wires of every kind, to and from the kernel's own
//! vxlan device.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tests::{Families, Harm, Host, Lab, Node, NodeSpec, Offloads, Pod, VxlanPeer, eventually};

/// Bytes of a long transfer.
const LONG: u64 = 100_000_000;

#[track_caller]
pub(super) fn move_both_ways(client: &Host, server: SocketAddr, bytes: u64) {
    for bulk in [client.tcp_upload(server, bytes), client.tcp_download(server, bytes)] {
        assert_eq!(bulk.bytes, bytes);
        assert_eq!(bulk.sent_sha256, bulk.received_sha256);
    }
}

/// A lab of two such nodes with pods of these families, and a pod on each.
pub(super) fn two_pods(
    families: Families,
    underlay: Families,
    node: impl Fn(NodeSpec) -> NodeSpec,
) -> (Lab, Pod, Pod) {
    let lab = Lab::builder().node(&node).node(&node).underlay(underlay).pods(families).start();
    lab.start_daemons();
    let (client, server) = (lab.node(1).add_pod("client"), lab.node(2).add_pod("server"));
    (lab, client, server)
}

/// A modest share of everything that a bad wire does.
fn bad_wire(seed: u64) -> Harm {
    Harm { drop_percent: 0.05, duplicate_percent: 0.5, reorder_percent: 0.5, seed }
}

/// 100 MB each way while the wire of one node drops, duplicates and reorders.
fn survives_a_bad_wire(families: Families, underlay: Families) {
    let mut lab =
        Lab::builder().node(|spec| spec.harm(bad_wire(7))).nodes(1).underlay(underlay).pods(families).start();
    lab.start_daemons();
    let (client, server_pod) = (lab.node(1).add_pod("client"), lab.node(2).add_pod("server"));
    let server = server_pod.serve();
    let target = if families == Families::V4 { server.v4() } else { server.v6() };
    move_both_ways(&client, target, LONG);
    let wire = lab.stop_relays()[0];
    assert!(wire.dropped > 20 && wire.duplicated > 200 && wire.reordered > 200, "{wire:?}");
}

#[test]
fn a_hundred_megabytes_survive_a_bad_ipv4_wire() {
    survives_a_bad_wire(Families::V4, Families::V4);
}

#[test]
fn a_hundred_megabytes_of_ipv6_survive_a_bad_ipv6_wire() {
    survives_a_bad_wire(Families::Dual, Families::V6);
}

/// What a daemon has dropped, by reason.
fn drops(node: &Node) -> Vec<(String, u64)> {
    node.status().drops.into_iter().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_hundred_megabytes_pass_a_clean_wire_both_ways() {
    let (lab, client, server_pod) = two_pods(Families::V4, Families::V4, |spec| spec);
    let server = server_pod.serve();
    move_both_ways(&client, server.v4(), LONG);
    // Both ways went through the daemons, which publish their numbers now and then.
    eventually("both ways are counted", Duration::from_secs(20), || {
        let peer = &lab.node(1).status().peers[0];
        peer.tx_bytes > LONG && peer.rx_bytes > LONG
    });
}

#[test]
fn four_streams_at_once_keep_their_bytes_apart() {
    let (_lab, client, server_pod) = two_pods(Families::V4, Families::V4, |spec| spec);
    let server = server_pod.serve();
    thread::scope(|scope| {
        for number in 0..4 {
            let (client, server) = (&client, server.v4());
            scope.spawn(move || {
                let bytes = 20_000_000 + number;
                let bulk = if number % 2 == 0 {
                    client.tcp_upload(server, bytes)
                } else {
                    client.tcp_download(server, bytes)
                };
                assert_eq!(bulk.bytes, bytes);
                assert_eq!(bulk.sent_sha256, bulk.received_sha256);
            });
        }
    });
}

#[test]
fn ipv6_streams_pass_both_ways() {
    let (_lab, client, server_pod) = two_pods(Families::V6, Families::V4, |spec| spec);
    let server = server_pod.serve();
    move_both_ways(&client, server.v6(), 30_000_000);
}

#[test]
fn floods_of_datagrams_arrive_once_each() {
    let (lab, client, server_pod) = two_pods(Families::Dual, Families::V4, |spec| spec);
    let server = server_pod.serve();
    for (target, size) in [(server.v4(), 64), (server.v4(), 1200), (server.v6(), 64), (server.v6(), 1200)] {
        let flood = client.udp_flood(target, size, 40_000, 0).unwrap();
        assert_eq!(flood.duplicates, 0, "{size} B to {target}: {flood:?}");
        assert_eq!(flood.reordered, 0, "{size} B to {target}: {flood:?}");
        // As fast as it goes some are lost to full queues, most are not.
        assert!(flood.received >= 4_000, "{size} B to {target}: {flood:?}");
        let paced = client.udp_flood(target, size, 2_000, 4_000).unwrap();
        let lost = [drops(&lab.node(1)), drops(&lab.node(2))];
        assert_eq!((paced.received, paced.duplicates), (2_000, 0), "{size} B to {target}: {lost:?}");
    }
}

/// TCP both ways, datagrams of the largest size that fits, and what must be fragmented.
fn everything_passes(families: Families, underlay: Families, node: impl Fn(NodeSpec) -> NodeSpec, mtu: u32) {
    let (lab, client, server_pod) = two_pods(families, underlay, node);
    let server = server_pod.serve();
    let target = if families == Families::V4 { server.v4() } else { server.v6() };
    assert_eq!(lab.node(1).status().mtu, mtu);
    move_both_ways(&client, target, 30_000_000);
    // Headers of IP and UDP.
    let headers = if target.is_ipv4() { 28 } else { 48 };
    let largest = client.udp_df(target, mtu as usize - headers);
    assert_eq!((largest.answered, largest.icmp.len()), (1, 0), "{largest:?}");
    assert_eq!(client.udp(target, 2 * mtu as usize).answered, 1);
}

#[test]
fn everything_passes_a_wire_without_tunnel_offloads() {
    everything_passes(Families::V4, Families::V4, |spec| spec.offloads(Offloads::Wire), 1450);
}

#[test]
fn everything_passes_a_wire_without_any_offload() {
    everything_passes(Families::V4, Families::V4, |spec| spec.offloads(Offloads::None), 1450);
}

#[test]
fn everything_of_ipv6_passes_an_ipv6_wire_without_tunnel_offloads() {
    everything_passes(Families::Dual, Families::V6, |spec| spec.offloads(Offloads::Wire), 1430);
}

#[test]
fn everything_passes_jumbo_frames() {
    everything_passes(Families::V4, Families::V4, |spec| spec.mtu(9000), 8950);
}

/// A node whose VXLAN is the kernel's, programmed as flannel does it, beside one of ours.
struct Mixed {
    lab: Lab,
    /// On our node.
    pod: Pod,
    /// An address among the kernel node's pods.
    kernel_pod: IpAddr,
}

impl Mixed {
    fn start() -> Self {
        let lab = Lab::builder().nodes(2).start();
        let (ours, kernel) = (lab.node(1), lab.node(2));
        kernel.add_vxlan("flannel.1", 1, 8472);
        kernel.set_link_mtu("flannel.1", 1450);
        let tunnel = kernel.tunnel_addresses()[0];
        kernel.add_address("flannel.1", tunnel.into());
        let kernel_pod: IpAddr = "10.244.2.10".parse().unwrap();
        kernel.add_address("flannel.1", kernel_pod.into());
        kernel.add_vxlan_peer(
            "flannel.1",
            &VxlanPeer {
                mac: overlayd::core::cluster::vtep_mac(ours.name()).to_string(),
                tunnel: ours.tunnel_addresses()[0],
                node: ours.v4(),
                pods: ours.pod_cidrs()[0],
            },
        );
        let mut manifests = lab.manifests();
        let mac = kernel.observe().link("flannel.1").unwrap().mac.clone().unwrap();
        let data = json!({"VNI": 1, "VtepMAC": mac}).to_string();
        manifests[1].annotations.insert("overlayd.io/backend-type".into(), "vxlan".into());
        manifests[1].annotations.insert("overlayd.io/backend-data".into(), data);
        lab.write_nodes(&manifests);
        ours.start_daemon();
        let pod = ours.add_pod("pod");
        Self { lab, pod, kernel_pod }
    }

    /// The longest packet in bytes that our node receives while the kernel's node sends a stream.
    fn longest_of_kernel(&self) -> usize {
        let server = self.pod.serve();
        let sniffer = self.lab.node(1).sniff("eth0");
        let _ = self.lab.node(2).tcp_upload(server.v4(), 1_000_000);
        let seen = sniffer.stop();
        let tunnelled = seen.iter().filter(|packet| packet.incoming && packet.destination_port == 8472);
        tunnelled.map(|packet| packet.length).max().unwrap()
    }

    fn talks(&self, bytes: u64) {
        let (kernel, pod) = (self.lab.node(2), &self.pod);
        let (there, here) = (kernel.serve(), pod.serve());
        assert_eq!(pod.ping(self.kernel_pod, 1000, 3).answered, 3);
        assert_eq!(kernel.ping(pod.v4(), 1000, 3).answered, 3);
        let target = there.at(self.kernel_pod);
        assert_eq!(pod.tcp_source(target), pod.v4());
        assert_eq!(pod.udp_source(target), pod.v4());
        assert_eq!(kernel.tcp_source(here.v4()), kernel.tunnel_addresses()[0]);
        assert_eq!(kernel.udp_source(here.v4()), kernel.tunnel_addresses()[0]);
        for size in [100, 1422, 4000] {
            assert_eq!(pod.udp(target, size).answered, 1, "{size} B to the kernel");
            assert_eq!(kernel.udp(here.v4(), size).answered, 1, "{size} B from the kernel");
        }
        move_both_ways(pod, target, bytes);
        move_both_ways(&kernel, here.v4(), bytes);
        // Nothing that the kernel sent was refused; what a full queue lost has been sent again.
        let mut drops = drops(&self.lab.node(1));
        drops.retain(|(reason, _)| !["tun_full", "send_buffer_full"].contains(&reason.as_str()));
        assert_eq!(drops, Vec::new());
    }
}

/// With the offloads of a veth the kernel hands over packets whose inner checksum is not finished, and TCP in one
/// piece of up to 64 KiB.
#[test]
fn a_kernel_vxlan_node_is_a_peer_with_all_offloads() {
    let mixed = Mixed::start();
    mixed.talks(20_000_000);
    assert!(mixed.longest_of_kernel() > 10_000);
}

#[test]
fn a_kernel_vxlan_node_is_a_peer_without_checksum_offload() {
    let mixed = Mixed::start();
    mixed.lab.node(2).set_offloads("eth0", &[("tx-checksum-ip-generic", false)]);
    mixed.talks(20_000_000);
    assert_eq!(mixed.longest_of_kernel(), 1500);
}

/// Each way a link may treat checksums and segments, at either end.
#[test]
fn a_kernel_vxlan_node_is_a_peer_whatever_the_links_offload() {
    let mixed = Mixed::start();
    let names: BTreeSet<String> = [Offloads::Wire, Offloads::None]
        .iter()
        .flat_map(|offloads| offloads.features())
        .map(|(name, _)| name)
        .collect();
    let set = |number: usize, offloads: Offloads| {
        let changed = offloads.features();
        let on = |name: &str| changed.iter().find(|(changed, _)| changed == name).is_none_or(|(_, on)| *on);
        let all: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), on(name))).collect();
        mixed.lab.node(number).set_offloads("eth0", &all);
    };
    let kinds = [Offloads::Veth, Offloads::Wire, Offloads::None];
    for (ours, kernels) in kinds.iter().flat_map(|ours| kinds.map(|kernels| (*ours, kernels))) {
        println!("our link {ours:?}, the kernel's {kernels:?}");
        set(1, ours);
        set(2, kernels);
        mixed.talks(5_000_000);
    }
}
