//! What a process says.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Everything that came out of a pipe, gathered by a thread.
#[derive(Clone, Debug)]
pub(super) struct Capture(Arc<(Mutex<Captured>, Condvar)>);

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    pub(super) fn of(mut pipe: std::io::PipeReader) -> Self {
        let capture = Self(Arc::default());
        let shared = Arc::clone(&capture.0);
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let got = pipe.read(&mut buffer).unwrap_or(0);
                let mut captured = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                captured.bytes.extend(&buffer[..got]);
                captured.ended = got == 0;
                shared.1.notify_all();
                if got == 0 {
                    return;
                }
            }
        });
        capture
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap_or_else(PoisonError::into_inner).bytes).into_owned()
    }

    pub(super) fn wait_end(&self, deadline: Instant) {
        let captured = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        drop(self.0.1.wait_timeout_while(captured, left, |captured| !captured.ended));
    }

    pub(super) fn wait_line(&self, deadline: Instant, condition: impl Fn(&str) -> bool) -> Option<String> {
        let mut captured = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let text = String::from_utf8_lossy(&captured.bytes);
            // The last piece may be half a line.
            let complete = if captured.ended { text.len() } else { text.rfind('\n').map_or(0, |at| at + 1) };
            if let Some(line) = text[..complete].lines().find(|line| condition(line)) {
                return Some(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if captured.ended || left.is_zero() {
                return None;
            }
            captured = self.0.1.wait_timeout(captured, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
