//! Tests that need root or a second process.

mod corpus;
mod heal;
mod lab;
mod nodes;
mod overlay;
mod restart;
mod tidy;
