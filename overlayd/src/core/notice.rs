//! What an operator must know, as Kubernetes Events on our own Node; here, which of it is told and how often.
//!
//! Losing one never hurts: status, log and metrics hold the same.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// How long the same words are not said again.
const SAME: Duration = Duration::from_secs(3600);

/// Notices of one reason that may follow one another at once.
const BURST: f64 = 5.0;

/// Time in which one more is allowed.
const REFILL: Duration = Duration::from_secs(300);

/// Most bytes of the words: an Event's note has 1 KiB (`ValidateEventCreate` of Kubernetes).
const LONGEST: usize = 1000;

/// Most notes remembered; beyond, the same may be said again early.
const REMEMBERED: usize = 256;

/// How many nodes of a large cluster tell what all of them see.
const SPEAKERS: u64 = 20;

/// The word that operators filter by: the Event's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Another Node, or a part of it, is not believed.
    PeerRefused,
    /// Two Nodes claim the same addresses.
    AddressConflict,
    /// Our nftables table was changed by somebody and put back.
    EgressRewritten,
    /// The API server could not be reached for long.
    ApiWasAway,
    /// A foreign object stands in our way.
    ForeignObject,
    /// Our Node has other pod CIDRs than before.
    PodCidrsChanged,
}

impl Reason {
    /// The text, in camel case as Kubernetes has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PeerRefused => "PeerRefused",
            Self::AddressConflict => "AddressConflict",
            Self::EgressRewritten => "EgressRewritten",
            Self::ApiWasAway => "ApiWasAway",
            Self::ForeignObject => "ForeignObject",
            Self::PodCidrsChanged => "PodCidrsChanged",
        }
    }
}

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub reason: Reason,
    /// The words.
    pub note: String,
}

/// Lets through what is worth an Event.
#[derive(Clone, Debug, Default)]
pub struct NoticeGate {
    told: BTreeMap<(Reason, String), Duration>,
    buckets: BTreeMap<Reason, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
    held_back: u64,
}

impl NoticeGate {
    /// The notice as it shall be sent, if it shall. `now` is time since any fixed moment.
    pub fn pass(&mut self, notice: Notice, now: Duration) -> Option<Notice> {
        let Notice { reason, mut note } = notice;
        self.told.retain(|_, at| now.saturating_sub(*at) < SAME);
        let key = (reason, note.clone());
        let bucket = self.buckets.entry(reason).or_insert(Bucket { tokens: BURST, at: now, held_back: 0 });
        let gained = now.saturating_sub(bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + gained).min(BURST);
        bucket.at = now;
        if self.told.contains_key(&key) || bucket.tokens < 1.0 {
            bucket.held_back += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        let held_back = std::mem::take(&mut bucket.held_back);
        if self.told.len() < REMEMBERED {
            self.told.insert(key, now);
        }
        let more = if held_back > 0 {
            format!(" (and {held_back} more of this kind since the last)")
        } else {
            String::new()
        };
        note.truncate(note.floor_char_boundary(LONGEST - more.len()));
        Some(Notice { reason, note: note + &more })
    }
}

/// Whether this node tells what all nodes see: in a large cluster one bad Node would make thousands of Events.
#[must_use]
pub fn speaks(own: &str, subject: &str, nodes: usize) -> bool {
    let digest: [u8; 32] =
        Sha256::new().chain_update(own).chain_update([0]).chain_update(subject).finalize().into();
    let [a, b, c, d, ..] = digest;
    u64::from(u32::from_be_bytes([a, b, c, d])) * (nodes as u64) < SPEAKERS << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(note: &str) -> Notice {
        Notice { reason: Reason::PeerRefused, note: note.to_owned() }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_same_words_are_said_once_an_hour() {
        let mut gate = NoticeGate::default();
        assert_eq!(gate.pass(notice("a"), at(0)), Some(notice("a")));
        assert_eq!(gate.pass(notice("a"), at(3599)), None);
        assert_eq!(
            gate.pass(notice("a"), at(3600)),
            Some(notice("a (and 1 more of this kind since the last)"))
        );
    }

    #[test]
    fn a_flood_is_a_few_and_a_count() {
        let mut gate = NoticeGate::default();
        let passed = (0..500).filter(|i| gate.pass(notice(&format!("n{i}")), at(10)).is_some()).count();
        assert_eq!(passed, 5);
        let next = gate.pass(notice("later"), at(310)).unwrap();
        assert_eq!(next.note, "later (and 495 more of this kind since the last)");
        assert_eq!(gate.pass(notice("even later"), at(311)), None);
    }

    #[test]
    fn one_reason_does_not_silence_another() {
        let mut gate = NoticeGate::default();
        for i in 0..50 {
            gate.pass(notice(&format!("n{i}")), at(0));
        }
        let other = Notice { reason: Reason::ApiWasAway, note: "x".into() };
        assert_eq!(gate.pass(other.clone(), at(0)), Some(other));
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let note = gate_one(&"\u{e4}".repeat(900));
        assert!(note.len() <= 1000 && note.chars().all(|c| c == '\u{e4}'), "{}", note.len());
    }

    fn gate_one(note: &str) -> String {
        NoticeGate::default().pass(notice(note), at(0)).unwrap().note
    }

    #[test]
    fn all_speak_in_a_small_cluster_and_some_in_a_large_one() {
        assert!((0..20).all(|i| speaks(&format!("node-{i}"), "bad", 20)));
        let speakers = (0..5000).filter(|i| speaks(&format!("node-{i}"), "bad", 5000)).count();
        assert!((5..60).contains(&speakers), "{speakers}");
    }
}
