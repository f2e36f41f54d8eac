//! The main job, shown.

fn main() {}
