//! Replays the committed corpus of every fuzz target that needs nothing but `wire`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken law or a missing corpus must fail")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/entries.rs"]
mod entries;

fn replay(target: &str, entry: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = file.unwrap().path();
        eprintln!("{}", path.display());
        entry(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 3, "the corpus of {target} has {count} files");
}

#[test]
fn corpus_of_ipc_frame_holds() {
    replay("ipc_frame", entries::ipc_frame);
}

#[test]
fn corpus_of_alias_holds() {
    replay("alias", entries::alias);
}

#[test]
fn corpus_of_tun_frame_holds() {
    replay("tun_frame", entries::tun_frame);
}

#[test]
fn corpus_of_giant_holds() {
    replay("giant", entries::giant);
}

#[test]
fn corpus_of_decap_holds() {
    replay("decap", entries::decap);
}
