//! What the daemon tells about itself: one value for `overlayd status`, `/readyz` and `/metrics`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::conflist::ConflistStatus;
use super::plan::Conflict;
use super::table::PeerTraffic;

/// The whole picture. The JSON of `overlayd status -o json` is exactly this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Node name.
    pub node: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Mode of egress: "island".
    pub mode: String,
    /// Whether pods can be served.
    pub ready: bool,
    /// Why not, one sentence each; empty when ready.
    pub not_ready_reasons: Vec<String>,
    /// TUN device.
    pub device: String,
    /// Inner MTU in bytes, 0 while unknown.
    pub mtu: u32,
    /// UDP port of the tunnel.
    pub port: u16,
    /// VNI.
    pub vni: u32,
    /// Own underlay addresses.
    pub underlay: Vec<String>,
    /// Own pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// Own tunnel addresses.
    pub tunnel_addresses: Vec<String>,
    /// Where the Nodes come from and how old they are, in words.
    pub source: String,
    /// The same for machines.
    #[serde(default)]
    pub nodes: SourceStatus,
    /// Datapath workers.
    pub workers: usize,
    /// Offloads in use, by name, with "on", "off" or why it was stepped down.
    pub offloads: BTreeMap<String, String>,
    /// Peers by name.
    pub peers: Vec<PeerStatus>,
    /// Nodes refused and why.
    pub refused: Vec<RefusedStatus>,
    /// Leases.
    pub leases: Vec<LeaseStatus>,
    /// Foreign objects in our way.
    pub conflicts: Vec<Conflict>,
    /// The runtime's network configuration, where it is ours to keep.
    pub conflist: Option<ConflistStatus>,
    /// Dropped packets by reason; every reason is present.
    pub drops: BTreeMap<String, u64>,
    /// Kernel changes applied since the start, and failed rounds.
    pub reconcile: ReconcileStatus,
    /// Changes of the peer table.
    #[serde(default)]
    pub table: TableStatus,
    /// Last error in words with its age, if any.
    pub last_error: Option<String>,
}

/// How the source of Nodes does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Whether a complete list came and the source is not in trouble.
    pub in_step: bool,
    /// Nodes known, our own and refused ones included.
    pub nodes: usize,
    /// Milliseconds since its last sign of life.
    pub heard_ms: Option<u64>,
    /// Age in milliseconds of the cache that serves until the first list.
    pub cached_ms: Option<u64>,
    /// What is wrong with it, in words.
    pub trouble: Option<String>,
    /// For how many milliseconds something has been wrong.
    pub trouble_ms: Option<u64>,
    /// Why our own Node object cannot be written, in words.
    pub announcement_trouble: Option<String>,
}

/// One peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Node name.
    pub name: String,
    /// Underlay addresses in use.
    pub underlay: Vec<String>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// Inner MTU towards it in bytes.
    pub mtu: u32,
    /// Inner packets sent.
    pub tx_packets: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Milliseconds since the last packet sent.
    pub tx_age_ms: Option<u64>,
    /// Inner packets received.
    pub rx_packets: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Milliseconds since the last packet received.
    pub rx_age_ms: Option<u64>,
    /// In words, when one direction is silent.
    pub trouble: Option<String>,
}

/// A refused Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStatus {
    /// Node name.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// One lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Host veth, empty while in flight.
    pub veth: String,
    /// Container id.
    pub container: String,
    /// Interface in the pod.
    pub ifname: String,
    /// Addresses.
    pub addresses: Vec<String>,
}

/// Reconcile results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileStatus {
    /// Rounds that ended without error.
    pub succeeded: u64,
    /// Rounds that ended with an error.
    pub failed: u64,
    /// Kernel changes applied.
    pub changes: u64,
    /// Conntrack entries deleted after a repair of the table.
    pub conntrack_deleted: u64,
}

/// Changes of the peer table while the datapath ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Tables handed to the workers.
    pub swaps: u64,
    /// Microseconds from the news of a Node's change to the new table, the last time.
    pub last_us: u64,
    /// The longest that it took.
    pub slowest_us: u64,
    /// How often that was measured.
    #[serde(default)]
    pub news: u64,
    /// The sum over all of them.
    #[serde(default)]
    pub sum_us: u64,
}

/// Packets in one direction without any in the other before we speak of trouble: one or two may be a
/// datagram that nobody answers.
const UNANSWERED_PACKETS: u64 = 3;

/// How long the other direction must be silent: longer than a TCP retransmission or two.
const SILENCE: Duration = Duration::from_secs(5);

/// How recent the last packet of the busy direction must be: an idle peer is not in trouble.
const RECENT: Duration = Duration::from_secs(30);

/// Watches one peer's counters for a direction that stays silent while the other one is in use: the
/// commonest trouble of every overlay is a firewall that lets the tunnel out and not in.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilenceWatch {
    /// Packets sent since the last one received.
    unanswered: Pending,
    /// Packets received since the last one sent.
    unreturned: Pending,
    seen: PeerTraffic,
}

/// Packets of one direction since the other one moved.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    packets: u64,
    since: Option<Duration>,
}

impl Pending {
    /// Takes in how many packets passed in this direction and whether the other one moved.
    fn update(&mut self, packets: u64, other_moved: bool, now: Duration) {
        if other_moved {
            *self = Self::default();
        } else if packets > 0 {
            self.packets += packets;
            self.since.get_or_insert(now);
        }
    }

    /// Whether this direction is in use and the other one has been silent for long.
    fn lasts(&self, last: Duration, now: Duration) -> bool {
        self.packets >= UNANSWERED_PACKETS
            && self.since.is_some_and(|since| now.saturating_sub(since) >= SILENCE)
            && now.saturating_sub(last) <= RECENT
    }
}

impl SilenceWatch {
    /// Takes in the counters at `now` (time since the counters' epoch) and says in words what is wrong, if
    /// anything. Call it about once a second. `port` and `underlay` name the peer's tunnel for the operator.
    pub fn observe(
        &mut self,
        traffic: PeerTraffic,
        now: Duration,
        port: u16,
        underlay: impl FnOnce() -> String,
    ) -> Option<String> {
        let sent = traffic.tx.packets.saturating_sub(self.seen.tx.packets);
        let received = traffic.rx.packets.saturating_sub(self.seen.rx.packets);
        self.seen = traffic;
        self.unanswered.update(sent, received > 0, now);
        self.unreturned.update(received, sent > 0, now);
        let at = |last_ms: Option<u64>| last_ms.map(Duration::from_millis);
        let silent = |last_ms: Option<u64>, verb: &str| match at(last_ms) {
            Some(last) => format!("nothing {verb} for {}", age(now.saturating_sub(last))),
            None => format!("nothing ever {verb}"),
        };
        if at(traffic.tx.last_ms).is_some_and(|last| self.unanswered.lasts(last, now)) {
            return Some(format!(
                "tx {} packets, {}: is UDP {port} from {} blocked on the way?",
                traffic.tx.packets,
                silent(traffic.rx.last_ms, "received"),
                underlay(),
            ));
        }
        if at(traffic.rx.last_ms).is_some_and(|last| self.unreturned.lasts(last, now)) {
            return Some(format!(
                "rx {} packets, {}: do the pods here answer, and does a firewall of this node drop what they forward?",
                traffic.rx.packets,
                silent(traffic.tx.last_ms, "sent"),
            ));
        }
        None
    }
}

/// A duration for people: the largest whole unit that says it without lying by more than a part in ten.
#[must_use]
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Traffic;
    use super::*;

    const PORT: u16 = 8472;

    fn underlay() -> String {
        "192.0.2.7".to_owned()
    }

    fn traffic(tx: (u64, Option<u64>), rx: (u64, Option<u64>)) -> PeerTraffic {
        let side = |(packets, last_ms)| Traffic { packets, last_ms, ..Traffic::default() };
        PeerTraffic { tx: side(tx), rx: side(rx) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_peer_that_never_answers_is_named_with_port_and_address() {
        let mut watch = SilenceWatch::default();
        assert_eq!(watch.observe(traffic((4, Some(1_000)), (0, None)), at(1), PORT, underlay), None);
        let words = watch.observe(traffic((1200, Some(40_000)), (0, None)), at(41), PORT, underlay);
        assert_eq!(
            words.as_deref(),
            Some("tx 1200 packets, nothing ever received: is UDP 8472 from 192.0.2.7 blocked on the way?")
        );
    }

    #[test]
    fn a_peer_that_fell_silent_is_told_with_the_time_since() {
        let mut watch = SilenceWatch::default();
        watch.observe(traffic((10, Some(1_000)), (10, Some(1_000))), at(1), PORT, underlay);
        watch.observe(traffic((20, Some(2_000)), (10, Some(1_000))), at(2), PORT, underlay);
        let words = watch.observe(traffic((30, Some(41_000)), (10, Some(1_000))), at(41), PORT, underlay);
        assert_eq!(
            words.as_deref(),
            Some("tx 30 packets, nothing received for 40 s: is UDP 8472 from 192.0.2.7 blocked on the way?")
        );
    }

    #[test]
    fn traffic_both_ways_is_no_trouble() {
        let mut watch = SilenceWatch::default();
        for second in 1..100 {
            let now = traffic((second * 10, Some(second * 1_000)), (second * 10, Some(second * 1_000)));
            assert_eq!(watch.observe(now, at(second), PORT, underlay), None);
        }
    }

    #[test]
    fn an_idle_peer_is_no_trouble() {
        let mut watch = SilenceWatch::default();
        watch.observe(traffic((50, Some(1_000)), (0, None)), at(1), PORT, underlay);
        assert!(watch.observe(traffic((50, Some(1_000)), (0, None)), at(20), PORT, underlay).is_some());
        assert_eq!(watch.observe(traffic((50, Some(1_000)), (0, None)), at(60), PORT, underlay), None);
    }

    #[test]
    fn one_unanswered_datagram_is_no_trouble() {
        let mut watch = SilenceWatch::default();
        watch.observe(traffic((1, Some(1_000)), (0, None)), at(1), PORT, underlay);
        assert_eq!(watch.observe(traffic((1, Some(1_000)), (0, None)), at(20), PORT, underlay), None);
    }

    #[test]
    fn an_answer_ends_the_trouble() {
        let mut watch = SilenceWatch::default();
        watch.observe(traffic((50, Some(1_000)), (0, None)), at(1), PORT, underlay);
        assert!(watch.observe(traffic((60, Some(10_000)), (0, None)), at(10), PORT, underlay).is_some());
        assert_eq!(
            watch.observe(traffic((61, Some(11_000)), (1, Some(11_000))), at(11), PORT, underlay),
            None
        );
    }

    #[test]
    fn a_node_that_only_receives_is_told_to_look_at_itself() {
        let mut watch = SilenceWatch::default();
        watch.observe(traffic((0, None), (5, Some(1_000))), at(1), PORT, underlay);
        let words = watch.observe(traffic((0, None), (9, Some(9_000))), at(9), PORT, underlay).unwrap();
        assert!(words.starts_with("rx 9 packets, nothing ever sent"), "{words}");
    }

    #[test]
    fn ages_read_like_people_say_them() {
        for (seconds, words) in
            [(0, "0 ms"), (59, "59 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (200_000, "2 d")]
        {
            assert_eq!(age(at(seconds)), words);
        }
    }
}
