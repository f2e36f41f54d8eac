//! Tests that need root or a second process.

mod cleanup;
mod config;
mod corpus;
mod deploy;
mod egress;
mod heal;
mod hostile;
mod lab;
mod metrics;
mod mtu;
mod nodes;
mod operate;
mod overlay;
mod readme;
mod restart;
mod tidy;
