//! Load for measurements: see `tests::load`.

mod client;
mod server;
mod usage;

use std::io::Read;
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

    /// Reads until the window or the stream is over; how many bytes came within the window.
    fn drain(self, mut stream: impl Read) -> u64 {
        let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
        while let Ok(got @ 1..) = stream.read(&mut buffer) {
            let now = now();
            if self.holds(now) {
                bytes += got as u64;
            } else if now >= self.end {
                break;
            }
        }
        bytes
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
