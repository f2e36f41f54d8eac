//! When an idle worker polls and when it sleeps.
//!
//! A wake-up from sleep costs tens of microseconds, more than the whole of a packet's processing, so after some work a
//! worker keeps polling for a short while. Polling in vain is remembered: on a link where nothing follows so soon, almost every
//! attempt is skipped, and the worker costs nothing but its packets.
//!
//! Between two polls the worker yields its CPU. Where others want it, a yield gives away a whole slice of time, milliseconds in which packets
//! wait, while a thread that sleeps is woken at once. So a yield that took long ends polling for a while.

use std::time::{Duration, Instant};

/// The memory of one worker.
#[derive(Debug)]
pub(super) struct Spin {
    limit: Duration,
    until: Option<Instant>,
    credit: u8,
    skipped: u8,
    resting: Option<Instant>,
    rest: Duration,
}

/// Attempts in vain before a worker gives up polling.
const CREDIT: u8 = 16;
/// Without credit one in so many attempts is still made, to notice when traffic changed.
const PROBE_EVERY: u8 = 16;
/// A yield that took longer gave the CPU to somebody who had work for it, not only an answer: a slice is 3 ms by default
/// (`sysctl_sched_base_slice` in kernel/sched/fair.c), a round trip's share some 20 us.
const CONTENDED: Duration = Duration::from_micros(500);
/// How long a worker goes without polling after one such yield: a moment's neighbour is soon gone. Each further one doubles it.
const REST_MIN: Duration = Duration::from_millis(4);
/// The longest rest: where others want the CPU all the time, one slice is lost in so much time.
const REST_MAX: Duration = Duration::from_millis(250);

impl Spin {
    /// Polls for at most `limit` after each piece of work; zero never polls.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, until: None, credit: CREDIT, skipped: 0, resting: None, rest: REST_MIN }
    }

    /// Work was found: it counts as a success if this was polling, and polling may start anew.
    pub(super) fn worked(&mut self, now: Instant) {
        if self.until.is_some() {
            self.credit = (self.credit + 2).min(CREDIT);
        }
        self.until = self.worth_it(now).then(|| now + self.limit);
    }

    /// Whether a worker without work polls on at `now`, or sleeps.
    pub(super) fn polls(&mut self, now: Instant) -> bool {
        match self.until {
            Some(until) if now < until => true,
            Some(_) => {
                self.credit = self.credit.saturating_sub(1);
                self.until = None;
                false
            }
            None => false,
        }
    }

    /// The CPU was yielded from `before` to `now`.
    pub(super) fn yielded(&mut self, before: Instant, now: Instant) {
        if now.saturating_duration_since(before) <= CONTENDED {
            return;
        }
        self.until = None;
        // Polling that went well for longer than the last rest ends a series.
        let went_well = self.resting.is_none_or(|until| now.saturating_duration_since(until) > self.rest);
        self.rest = if went_well { REST_MIN } else { (self.rest * 2).min(REST_MAX) };
        self.resting = Some(now + self.rest);
    }

    fn worth_it(&mut self, now: Instant) -> bool {
        if self.limit.is_zero() || self.resting.is_some_and(|until| now < until) {
            return false;
        }
        if self.credit > 0 {
            return true;
        }
        self.skipped = (self.skipped + 1) % PROBE_EVERY;
        self.skipped == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);
    const LONG: Duration = Duration::from_millis(10);

    /// One piece of work each `gap`; returns how often the worker polled.
    fn polled(spin: &mut Spin, gap: Duration, pieces: u32) -> u32 {
        let mut now = Instant::now();
        let mut polled = 0;
        for _ in 0..pieces {
            spin.worked(now);
            polled += u32::from(spin.polls(now));
            now += gap;
            if gap > LIMIT {
                spin.polls(now);
            }
        }
        polled
    }

    #[test]
    fn work_that_follows_soon_keeps_a_worker_polling() {
        assert_eq!(polled(&mut Spin::new(LIMIT), Duration::from_micros(20), 1000), 1000);
    }

    #[test]
    fn work_that_follows_late_ends_polling_but_for_a_rare_probe() {
        let polled = polled(&mut Spin::new(LIMIT), LONG, 1600);
        assert!(polled <= 16 + 100, "{polled}");
    }

    #[test]
    fn polling_returns_when_traffic_becomes_dense() {
        let mut spin = Spin::new(LIMIT);
        polled(&mut spin, LONG, 100);
        let after = polled(&mut spin, Duration::from_micros(20), 1000);
        assert!(after > 950, "{after}");
    }

    #[test]
    fn a_cpu_that_others_want_is_left_to_them_for_a_while() {
        let (mut spin, begin) = (Spin::new(LIMIT), Instant::now());
        spin.worked(begin);
        spin.yielded(begin, begin + Duration::from_micros(10));
        assert!(spin.polls(begin + Duration::from_micros(10)), "others had but an answer to give");

        let lost = begin + Duration::from_millis(3);
        spin.yielded(begin, lost);
        assert!(!spin.polls(lost));
        spin.worked(lost);
        assert!(!spin.polls(lost));

        let later = lost + REST_MIN;
        spin.worked(later);
        assert!(spin.polls(later));
    }

    #[test]
    fn rests_grow_while_others_want_the_cpu_and_shrink_when_they_are_gone() {
        let (mut spin, slice) = (Spin::new(LIMIT), Duration::from_millis(3));
        let mut now = Instant::now();
        let mut contend = |spin: &mut Spin| {
            spin.yielded(now, now + slice);
            now += slice;
            let rest = spin.rest;
            now += rest;
            rest
        };
        let rests: Vec<Duration> = (0..10).map(|_| contend(&mut spin)).collect();
        assert_eq!((rests[0], rests[1], rests[9]), (REST_MIN, REST_MIN * 2, REST_MAX));
        let lost = now + REST_MAX * 2;
        spin.yielded(lost, lost + slice);
        assert_eq!(spin.rest, REST_MIN);
    }

    #[test]
    fn a_limit_of_zero_never_polls() {
        assert_eq!(polled(&mut Spin::new(Duration::ZERO), Duration::ZERO, 100), 0);
    }
}
