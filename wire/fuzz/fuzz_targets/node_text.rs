//! libFuzzer's door to `node_entries::node_text`.

#![no_main]

#[path = "../node_entries.rs"]
mod node_entries;

libfuzzer_sys::fuzz_target!(|data: &[u8]| node_entries::node_text(data));
