//! Tests that need root or a second process.

mod corpus;
mod lab;
mod overlay;
mod readme;
mod tidy;
