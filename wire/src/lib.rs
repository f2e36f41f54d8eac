//! What travels: packet formats, the arithmetic of offloads, IPC frames, and the names that the
//! daemon and the CNI plugin must agree on.
//!
//! Everything here is pure: no socket, no clock, no thread, no file. No function panics on any input.

#![forbid(unsafe_code)]

pub mod ipc;
pub mod offload;
pub mod packet;
pub mod tag;
