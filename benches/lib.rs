//! Inputs shared by the micro-benches.
