//! A wire that drops, duplicates and reorders: frames go from one interface to the other and back, by the toss
//! of a seeded die. It stands in for netem, which not every kernel has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use socket2::{Socket, Type};
use tests::traffic::RelayCounters;

use super::sniff::{open, packet_type};
use super::{report, told_to_stop};

/// Shares in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Harm {
    pub(crate) drop: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    pub(crate) seed: u64,
}

/// Relays until standard input ends, then reports what it did.
pub(crate) fn relay(left: &str, right: &str, harm: Harm) -> Result<()> {
    let stop = told_to_stop();
    let (a, b) = (Arc::new(open(Type::RAW, left)?), Arc::new(open(Type::RAW, right)?));
    println!("relaying");
    let back = {
        let (a, b, stop) = (Arc::clone(&a), Arc::clone(&b), Arc::clone(&stop));
        std::thread::spawn(move || carry(&b, &a, Harm { seed: harm.seed ^ 0x5555, ..harm }, &stop))
    };
    let there = carry(&a, &b, harm, &stop)?;
    let back = back.join().map_err(|_| anyhow!("a relay thread panicked"))??;
    report(&RelayCounters {
        seen: there.seen + back.seen,
        dropped: there.dropped + back.dropped,
        duplicated: there.duplicated + back.duplicated,
        reordered: there.reordered + back.reordered,
    })
}

fn carry(from: &Socket, to: &Socket, harm: Harm, stop: &AtomicBool) -> Result<RelayCounters> {
    let mut dice = fastrand::Rng::with_seed(harm.seed);
    let mut toss = move |percent: f64| dice.f64() * 100.0 < percent;
    let (mut counters, mut buffer) = (RelayCounters::default(), vec![0; 65536]);
    let mut held: Option<Vec<u8>> = None;
    while !stop.load(Ordering::Relaxed) {
        // A held frame that nothing overtakes is let go after this pause.
        let pause = Duration::from_millis(if held.is_some() { 5 } else { 20 });
        from.set_read_timeout(Some(pause))?;
        let length = match super::raw::receive(from, &mut buffer) {
            Ok((_, sender)) if packet_type(&sender) == libc::PACKET_OUTGOING => continue,
            Ok((length, _)) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if let Some(frame) = held.take() {
                    let _ = to.send(&frame);
                }
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
            Err(error) => return Err(error).context("receive frame"),
        };
        counters.seen += 1;
        if toss(harm.drop) {
            counters.dropped += 1;
            continue;
        }
        if held.is_none() && toss(harm.reorder) {
            counters.reordered += 1;
            held = Some(buffer[..length].to_vec());
            continue;
        }
        // A frame that the other side has no room for is a loss, as on any wire.
        let _ = to.send(&buffer[..length]);
        if toss(harm.duplicate) {
            counters.duplicated += 1;
            let _ = to.send(&buffer[..length]);
        }
        if let Some(frame) = held.take() {
            let _ = to.send(&frame);
        }
    }
    Ok(counters)
}
