//! A kernel that refuses an offload it offered costs no packet: the daemon goes on without it, and says so once.

use std::net::SocketAddr;
use std::time::Duration;

use tests::{Families, Lab, Node, Pod, Refusal, eventually};

/// Bytes of a transfer.
const BULK: u64 = 10_000_000;

/// Datagrams at once, few enough for every queue on the way.
const BURST: u64 = 100;

/// Two nodes, the second one's daemon under a kernel that refuses this, and a pod on each.
struct Refused {
    lab: Lab,
    refusal: Refusal,
    near: Pod,
    far: Pod,
}

impl Refused {
    fn start(refusal: Refusal) -> Self {
        let lab = Lab::builder().nodes(2).pods(Families::Dual).start();
        lab.node(1).start_daemon();
        // Each worker finds out for itself.
        lab.node(2).start_daemon_under(refusal, &["--workers", "1"]);
        let (near, far) = (lab.node(1).add_pod("near"), lab.node(2).add_pod("far"));
        Self { lab, refusal, near, far }
    }

    fn node(&self) -> Node {
        self.lab.node(2)
    }

    /// How often the kernel has refused.
    fn refusals(&self) -> usize {
        self.node().log().matches(self.refusal.words()).count()
    }

    /// Streams and bursts of datagrams of both families pass between the pods, both ways, whole.
    #[track_caller]
    fn all_passes(&self) {
        let (near, far) = (self.near.serve(), self.far.serve());
        let ways =
            [(&self.near, far.v4()), (&self.near, far.v6()), (&self.far, near.v4()), (&self.far, near.v6())];
        for (client, server) in ways {
            let bulk = client.tcp_upload(server, BULK);
            assert_eq!((bulk.bytes, &bulk.received_sha256), (BULK, &bulk.sent_sha256), "to {server}");
            for _ in 0..4 {
                burst_arrives(client, server);
            }
        }
    }

    /// The status names the offload and the reason, the log has both once, nothing was dropped for it.
    #[track_caller]
    fn is_told_once(&self, offload: &str, reason: &str) {
        let node = self.node();
        eventually("the status tells", Duration::from_secs(10), || {
            node.status().offloads[offload] == format!("stepped down: {reason}")
        });
        let text = node.overlayd(&["status"]).run();
        assert!(text.contains(offload) && text.contains(reason), "{text}");
        let log = node.log();
        let said: Vec<&str> = log.lines().filter(|line| line.contains("an offload is off")).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(offload) && said[0].contains(reason), "{said:?}");
        let status = node.status();
        for (other, state) in &status.offloads {
            assert!(other == offload || state == "on", "{other}: {state}");
        }
        for refused in ["tun_write_failed", "send_failed", "send_too_big"] {
            assert_eq!(status.drops[refused], 0, "{refused}");
        }
    }
}

/// A burst that one read or write may carry as a whole; datagrams carry numbers.
#[track_caller]
fn burst_arrives(client: &Pod, server: SocketAddr) {
    let flood = client.udp_flood(server, 1000, BURST, 0).unwrap();
    assert_eq!((flood.received, flood.duplicates, flood.reordered), (BURST, 0, 0), "to {server}: {flood:?}");
}

/// What the kernel gets from then on is single packets: it has nothing more to refuse.
#[track_caller]
fn steps_down(refusal: Refusal, offload: &str, reason: &str) {
    let refused = Refused::start(refusal);
    refused.all_passes();
    let before = refused.refusals();
    assert!(before > 0, "the offload was never used");
    refused.is_told_once(offload, reason);
    refused.all_passes();
    // The way out tries again once a minute.
    assert!(refused.refusals() <= before + 2, "{} after {before}", refused.refusals());
}

/// TCP would send again what was lost: what came from the peer is compared with what the device took.
#[test]
fn a_refused_tcp_super_packet_reaches_the_device_whole() {
    let refused = Refused::start(Refusal::Tso);
    let (near, far) = (refused.near.serve(), refused.far.serve());
    for (client, server) in [(&refused.near, far.v4()), (&refused.near, far.v6()), (&refused.far, near.v4())]
    {
        assert_eq!(client.tcp_upload(server, BULK).bytes, BULK);
    }
    assert!(refused.refusals() > 0, "the way in never made a super-packet");
    let node = refused.node();
    let taken = || node.read_file("/sys/class/net/ovl0/statistics/rx_bytes").trim().parse::<u64>().unwrap();
    let came = || node.status().peers[0].rx_bytes;
    eventually("both counters stand at the same number of bytes", Duration::from_secs(10), || {
        taken() == came()
    });
    assert!(taken() > 2 * BULK);
}

const AT_THE_DEVICE: &str = "the device refused a super-packet: Invalid argument (os error 22)";

#[test]
fn a_device_that_refuses_tcp_super_packets_costs_no_byte() {
    steps_down(Refusal::Tso, "tun_tso", AT_THE_DEVICE);
}

#[test]
fn a_device_that_refuses_udp_super_packets_costs_no_datagram() {
    steps_down(Refusal::Uso, "tun_uso", AT_THE_DEVICE);
}

/// It is not tried with what it did not offer.
#[track_caller]
fn gets_none(refusal: Refusal, offload: &str) -> Refused {
    let refused = Refused::start(refusal);
    assert_eq!(refused.refusals(), 1, "the daemon asked, and took no for an answer");
    refused.all_passes();
    assert_eq!(refused.refusals(), 1);
    let node = refused.node();
    assert_eq!(node.status().offloads[offload], "off: this kernel does not offer it");
    assert!(!node.log().contains("an offload is off"), "{}", node.log());
    refused
}

#[test]
fn a_kernel_that_offers_no_udp_super_packets_gets_none() {
    gets_none(Refusal::UsoUnknown, "tun_uso");
}

#[test]
fn a_link_that_refuses_segmentation_costs_no_packet() {
    steps_down(
        Refusal::UdpSegment,
        "udp_segment",
        "the kernel refused a batch: Input/output error (os error 5)",
    );
}

#[test]
fn a_device_that_refuses_tunnelled_super_packets_costs_no_byte() {
    steps_down(Refusal::TunnelGso, "tunnel_gso", AT_THE_DEVICE);
}

#[test]
fn a_kernel_that_offers_no_tunnelled_super_packets_gets_none() {
    let refused = gets_none(Refusal::TunnelGsoUnknown, "tunnel_gso");
    let links = |node: &Node| node.read_file("/proc/net/dev");
    assert!(!links(&refused.node()).contains("ovl0-tso") && links(&refused.lab.node(1)).contains("ovl0-tso"));
}
