//! Tests that need root or a second process.

mod corpus;
mod egress;
mod hostile;
mod lab;
mod mtu;
mod overlay;
mod readme;
mod tidy;
