//! The difference between wish and reality, as ordered operations.

use std::net::IpAddr;

use super::desired::Desired;
use super::leases::ObservedVeth;

/// What the kernel holds: our own objects, and the facts about others' that decisions need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Our veths.
    pub veths: Vec<ObservedVeth>,
    /// Every /32 and /128 host destination in table main, whoever owns it, that lies on a link (not the TUN).
    pub routed_hosts: Vec<IpAddr>,
}

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {}

/// A foreign object that stands where ours should.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conflict {
    /// What stands there, named as an operator would find it.
    pub object: String,
    /// What to do about it, with the exact command where there is one.
    pub remedy: String,
}

/// Ordered operations that turn `have` into `want`: creations before deletions.
#[must_use]
pub fn plan(want: &Desired, have: &Actual) -> Vec<Op> {
    let _ = (want, have);
    todo!()
}

/// Foreign objects in our way.
#[must_use]
pub fn conflicts(want: &Desired, have: &Actual) -> Vec<Conflict> {
    let _ = (want, have);
    todo!()
}
