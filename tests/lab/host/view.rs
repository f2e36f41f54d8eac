//! What a host's network looks like.

use std::time::Duration;

use super::Host;
use crate::firewall;
use crate::must;
use crate::observe::Observed;

impl Host {
    /// Links, addresses and routes here, as values.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn observe(&self) -> Observed {
        self.tool("observe").json()
    }

    /// Links, addresses, routes, permanent neighbours, rules, set elements and sysctls, one line each, without anything
    /// that changes by itself or goes with the daemon: to compare two moments by.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn objects(&self) -> Vec<String> {
        self.tool("objects").arg("ovl0").run().lines().map(ToOwned::to_owned).collect()
    }

    /// Every nf_tables table, chain, rule and set, in the kernel's order.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    #[track_caller]
    pub fn firewall(&self) -> Vec<firewall::Object> {
        must(self.tool("firewall-dump").try_json())
    }

    /// Links, addresses, routes, rules and counters, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.tool("dump").deadline(Duration::from_secs(5)).try_output() {
            Ok(output) if output.success() => output.stdout,
            Ok(output) => output.to_string(),
            Err(error) => format!("{error:#}"),
        }
    }
}
