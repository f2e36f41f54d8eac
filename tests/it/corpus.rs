//! Replays the committed corpus of the fuzz targets that need the daemon's core.

#![allow(clippy::unwrap_used, reason = "a missing corpus must fail")]

use std::fs;
use std::path::Path;

#[path = "../../wire/fuzz/node_entries.rs"]
mod node_entries;

#[test]
fn corpus_of_node_text_holds() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/fuzz/corpus/node_text");
    let mut count = 0;
    for file in fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        eprintln!("{}", path.display());
        node_entries::node_text(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 3, "the corpus of node_text has {count} files");
}
