//! Tests that need root or a second process.

mod cleanup;
mod config;
mod corpus;
mod deploy;
mod lab;
mod metrics;
mod operate;
mod overlay;
mod readme;
mod tidy;
