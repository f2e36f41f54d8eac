//! Tests that need root or a second process.

mod cleanup;
mod config;
mod corpus;
mod deploy;
mod heal;
mod lab;
mod metrics;
mod nodes;
mod operate;
mod overlay;
mod readme;
mod restart;
mod tidy;
