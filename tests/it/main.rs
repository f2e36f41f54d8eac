//! Tests that need root or a second process.

mod cni;
mod corpus;
mod lab;
mod overlay;
mod static_build;
mod stream;
mod tidy;
