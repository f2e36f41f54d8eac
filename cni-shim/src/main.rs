//! The plugin binary: one verb per process.

fn main() {
    todo!()
}
