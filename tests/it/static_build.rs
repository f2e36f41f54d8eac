//! What is shipped runs anywhere: the plugin is copied into the file system of hosts that nobody knows.

#![allow(clippy::unwrap_used, reason = "a test that cannot build or read must fail")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The size in bytes that the plugin may have: it is read for every pod.
const SIZE_LIMIT: usize = 2_000_000;

#[test]
fn the_shipped_plugin_needs_no_library_and_is_small() {
    let plugin = build_shipped("cni-shim");
    let bytes = fs::read(&plugin).unwrap();
    assert!(!names_an_interpreter(&bytes), "{} is linked dynamically", plugin.display());
    assert!(bytes.len() < SIZE_LIMIT, "{} has {} bytes", plugin.display(), bytes.len());
    // The inspector can tell: a test program is an ordinary one.
    assert!(names_an_interpreter(&fs::read(std::env::current_exe().unwrap()).unwrap()));

    let output = Command::new(&plugin).env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}

#[test]
fn the_shipped_plugin_starts_in_about_a_millisecond() {
    let plugin = build_shipped("cni-shim");
    let run = || {
        let mut plugin = Command::new(&plugin);
        let plugin = plugin.env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).stdout(Stdio::null());
        let mut running = plugin.spawn().unwrap();
        // Its program is loaded by now.
        let began = Instant::now();
        assert!(running.wait().unwrap().success());
        began.elapsed()
    };
    // The best of many is what the plugin takes, the rest is what the machine does besides.
    let best = (0..100).map(|_| run()).min().unwrap();
    assert!(best < Duration::from_millis(2), "{best:?}");
}

/// Builds one program as `cargo ship` does; where cargo put it.
fn build_shipped(program: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["static", "--package", program, "--bins", "--message-format", "json-render-diagnostics"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        // They would be used instead of those that the alias names.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} does not build: {}", output.status);
    let messages = String::from_utf8(output.stdout).unwrap();
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == program).then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.unwrap_or_else(|| panic!("cargo built no {program}:\n{messages}"))
}

/// Whether an ELF file has a program header of type `PT_INTERP` (3), as every dynamically linked program has.
/// Offsets of a 64-bit little-endian file: System V ABI, "ELF Header" and "Program Header".
fn names_an_interpreter(elf: &[u8]) -> bool {
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file");
    let half = |at: usize| usize::from(u16::from_le_bytes(*elf[at..].first_chunk().unwrap()));
    let table = usize::try_from(u64::from_le_bytes(*elf[32..].first_chunk().unwrap())).unwrap();
    let (size, count) = (half(54), half(56));
    assert!(count > 0, "no program headers");
    (0..count).any(|number| elf[table + number * size..].starts_with(&3_u32.to_le_bytes()))
}
