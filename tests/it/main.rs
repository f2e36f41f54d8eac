//! Tests that need root or a second process.

mod cleanup;
mod corpus;
mod lab;
mod metrics;
mod operate;
mod overlay;
mod tidy;
