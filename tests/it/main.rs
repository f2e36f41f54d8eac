//! Tests that need root or a second process.

mod lab;
mod overlay;
