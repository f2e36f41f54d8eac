//! The process that lives inside the lab.

fn main() {}
