//! How long to wait before the next attempt.

use std::time::Duration;

/// First delay.
const FIRST: Duration = Duration::from_secs(1);

/// Longest delay.
const LONGEST: Duration = Duration::from_secs(30);

/// Failures in a row after which readiness turns red.
pub const RED_AFTER: u32 = 3;

/// Doubling delays from 1 s to 30 s with jitter, reset by a success.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Notes a failure and returns how long to wait: between half and the whole of the step, so that nodes that
    /// failed together do not come back together. `jitter` is a random number in 0..1.
    pub fn failed(&mut self, jitter: f64) -> Duration {
        let step = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0).max(FIRST)
    }

    /// Notes a success.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..8).map(|_| backoff.failed(1.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn jitter_takes_away_at_most_half_and_never_goes_below_a_second() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..6).map(|_| backoff.failed(0.0).as_secs()).collect();
        assert_eq!(delays, [1, 1, 2, 4, 8, 15]);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            backoff.failed(0.5);
        }
        assert_eq!(backoff.failures(), 100);
        backoff.succeeded();
        assert_eq!(backoff.failed(1.0), FIRST);
    }
}
