//! Micro-benches of the packet path.

fn main() {
    divan::main();
}
