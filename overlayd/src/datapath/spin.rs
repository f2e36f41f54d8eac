//! When an idle worker polls and when it sleeps.
//!
//! A wake-up from sleep costs tens of microseconds, more than the whole of a packet's processing, so after some work a
//! worker keeps polling for a short while. Polling in vain is remembered: on a link where nothing follows so soon, almost every
//! attempt is skipped, and the worker costs nothing but its packets.

use std::time::{Duration, Instant};

/// The memory of one worker.
#[derive(Debug)]
pub(super) struct Spin {
    limit: Duration,
    until: Option<Instant>,
    credit: u8,
    skipped: u8,
}

/// Attempts in vain before a worker gives up polling.
const CREDIT: u8 = 16;
/// Without credit one in so many attempts is still made, to notice when traffic changed.
const PROBE_EVERY: u8 = 16;

impl Spin {
    /// Polls for at most `limit` after each piece of work; zero never polls.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, until: None, credit: CREDIT, skipped: 0 }
    }

    /// Work was found: it counts as a success if this was polling, and polling may start anew.
    pub(super) fn worked(&mut self, now: Instant) {
        if self.until.is_some() {
            self.credit = (self.credit + 2).min(CREDIT);
        }
        self.until = self.worth_it().then(|| now + self.limit);
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

    fn worth_it(&mut self) -> bool {
        if self.limit.is_zero() {
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
    fn a_limit_of_zero_never_polls() {
        assert_eq!(polled(&mut Spin::new(Duration::ZERO), Duration::ZERO, 100), 0);
    }
}
