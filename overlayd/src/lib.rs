//! The node daemon of a user-space VXLAN overlay.
//!
//! Layers, each importing only what stands above it: `core` decides (pure), `datapath` moves packets,
//! `kernel` reads and writes kernel state, `edge` talks to the outside, `control` owns all mutable
//! state and introduces them to one another, `cli` is what an operator types.

#[cfg(test)]
mod allocations;
pub mod cli;
pub mod control;
pub mod core;
pub mod datapath;
pub mod edge;
pub mod kernel;
