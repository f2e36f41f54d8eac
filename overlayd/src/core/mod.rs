//! Decisions. No clock, descriptor, thread or logger is reachable from here: time is an argument.

pub mod backoff;
pub mod cluster;
pub mod config;
pub mod conflist;
pub mod desired;
pub mod forward;
pub mod leases;
pub mod node;
pub mod notice;
pub mod plan;
pub mod status;
pub mod table;
