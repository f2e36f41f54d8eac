//! The CNI plugin as a library: validation, plumbing, and the small synchronous netlink layer that
//! the daemon's `kernel` module uses too.

pub mod netlink;
