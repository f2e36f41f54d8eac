//! Load for measurements: see `tests::load`.

mod client;
mod server;
mod usage;

use std::time::Duration;

pub(crate) use client::run;
pub(crate) use server::serve;
pub(crate) use usage::pin;

/// Bytes of one read or write of a stream.
const CHUNK: usize = 128 << 10;

/// First bytes of every datagram: its kind and the key of its load; the sequence number follows.
const DATAGRAM: usize = 1 + 8 + 8;
/// To be counted.
const COUNTED: u8 = b'C';
/// To be sent back.
const ECHOED: u8 = b'E';

/// A stretch of the machine's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    begin: u64,
    end: u64,
}

impl Window {
    fn holds(self, now: u64) -> bool {
        now >= self.begin && now < self.end
    }
}

/// The machine's monotonic clock, the same in every process of the lab.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn sleep_until(when: u64) {
    std::thread::sleep(Duration::from_nanos(when.saturating_sub(now())));
}
