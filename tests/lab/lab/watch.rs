//! What a lab looked like when it failed, and the end of one whose time is over.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::core::Core;
use crate::host::Host;
use crate::node::Node;

/// What is needed to describe a lab.
#[derive(Debug)]
pub(super) struct Witness {
    pub(super) core: Arc<Core>,
    pub(super) nodes: Vec<Node>,
    pub(super) others: Vec<Host>,
}

impl Witness {
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let status =
                node.overlayd(&["status", "-o", "json"]).deadline(Duration::from_secs(5)).try_output();
            let status = status.map_or_else(|error| format!("{error:#}"), |output| output.stdout);
            text += &format!(
                "\n===== {}\n{}\nstatus: {}\n{}\n",
                node.name(),
                node.describe(),
                status.trim(),
                node.log_tail()
            );
        }
        for host in &self.others {
            text += &format!("\n===== {}\n{}\n", host.label(), host.describe());
        }
        text
    }
}

/// Ends a lab whose time is over: everything that waits for it then fails.
#[derive(Debug, Default)]
pub(super) struct Watchdog(Arc<(Mutex<bool>, Condvar)>);

impl Watchdog {
    pub(super) fn start(&self, deadline: Duration, witness: Witness) {
        let shared = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let stopped = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (stopped, waited) = shared
                .1
                .wait_timeout_while(stopped, deadline, |stopped| !*stopped)
                .unwrap_or_else(PoisonError::into_inner);
            drop(stopped);
            if waited.timed_out() {
                eprintln!("the lab's deadline of {deadline:?} passed:\n{}", witness.describe());
                witness.core.end();
            }
        });
    }

    pub(super) fn stop(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}
