//! The house keeps its shape: `wire` and `overlayd::core` reach no clock, descriptor or thread, modules
//! import one another in one direction only, and nothing is left unfinished.
//!
//! Sources are parsed, so comments, strings and test code cannot mislead. Imports are resolved: a name is
//! judged by the full path that it stands for, however it was brought into scope. What a macro expands to
//! is not seen, but the names among its arguments are.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the sources must fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, UseTree};

/// What pure code may not name, by the beginning of the full path.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::os",
    "std::process",
    "std::thread",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::sync::mpsc",
    "std::time::Instant",
    "std::time::SystemTime",
    "arc_swap",
    "axum",
    "cni_shim",
    "fastrand",
    "futures",
    "k8s_openapi",
    "kube",
    "libc",
    "log",
    "netlink_packet_core",
    "netlink_packet_netfilter",
    "netlink_packet_route",
    "netlink_sys",
    "nix",
    "notify",
    "prometheus_client",
    "rustix",
    "socket2",
    "tokio",
    "tracing",
    "tracing_subscriber",
    "tun",
    "dbg",
    "eprint",
    "eprintln",
    "print",
    "println",
];

/// The modules of `overlayd`, each with those that it may import besides itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("datapath", &["core"]),
    ("kernel", &["core"]),
    ("edge", &["core"]),
    ("control", &["core", "datapath", "kernel", "edge"]),
    ("cli", &["core", "datapath", "kernel", "edge", "control"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn wire_and_core_are_pure() {
    let mut faults = Vec::new();
    for dir in ["wire/src", "overlayd/src/core"] {
        for file in product_files(&root().join(dir)) {
            faults.extend(impurities(&file.paths()).into_iter().map(|path| format!("{}: {path}", file.name)));
        }
    }
    assert_eq!(faults, Vec::<String>::new(), "impure names");
}

#[test]
fn modules_of_the_daemon_import_in_one_direction() {
    let dir = root().join("overlayd/src");
    let mut faults = Vec::new();
    for file in product_files(&dir) {
        faults.extend(
            wrong_arrows(&file.module, &file.paths()).into_iter().map(|p| format!("{}: {p}", file.name)),
        );
    }
    assert_eq!(faults, Vec::<String>::new(), "imports against the arrows");
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        // The allocator is the unit tests' alone.
        let known = ARROWS.iter().any(|(from, _)| *from == module)
            || matches!(module, "lib" | "main" | "allocations");
        assert!(known, "overlayd/src/{name} has no place among the arrows");
    }
}

#[test]
fn crates_depend_in_one_direction() {
    let of_ours = |package: &str| -> BTreeSet<String> {
        let ours = ["wire", "cni-shim", "overlayd", "tests", "benches"];
        dependencies(package, "1")
            .into_iter()
            .filter(|name| name != package && ours.contains(&&**name))
            .collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(of_ours("wire"), set(&[]));
    assert_eq!(of_ours("cni-shim"), set(&["wire"]));
    assert_eq!(of_ours("overlayd"), set(&["wire", "cni-shim"]));

    for (package, banned) in [
        (
            "wire",
            ["tokio", "libc", "nix", "rustix", "socket2", "tracing", "netlink-sys", "fastrand"].as_slice(),
        ),
        ("cni-shim", ["tokio", "mio", "tracing", "axum", "hyper", "clap", "kube", "notify"].as_slice()),
    ] {
        let all = dependencies(package, "100");
        assert!(all.contains("serde"), "cargo tree listed {all:?}");
        let found: Vec<_> = banned.iter().filter(|name| all.contains(**name)).collect();
        assert!(found.is_empty(), "{package} depends on {found:?}");
    }
}

#[test]
fn every_file_says_what_it_is_and_nothing_is_unfinished() {
    let mut faults = Vec::new();
    for dir in ["wire", "cni-shim", "overlayd", "tests", "benches"] {
        let files = rust_files(&root().join(dir));
        assert!(!files.is_empty(), "no sources in {dir}");
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            faults.extend(untidy(&text).into_iter().map(|fault| format!("{}: {fault}", path.display())));
        }
    }
    assert_eq!(faults, Vec::<String>::new(), "untidy files");
}

#[test]
fn bincode_is_named_in_one_module() {
    for dir in ["wire/src", "cni-shim/src", "overlayd/src"] {
        for file in product_files(&root().join(dir)) {
            let names_it = file.paths().iter().any(|path| path.starts_with("bincode"));
            assert!(
                !names_it || file.name.ends_with("wire/src/ipc/message.rs"),
                "{} names bincode",
                file.name
            );
        }
    }
}

/// A planted fault of each kind is found, and what only looks like one is not.
#[test]
fn the_inspector_sees_what_it_should() {
    let judge = |source: &str| impurities(&parse("x.rs", &["core", "x"], source).paths());
    for (planted, found) in [
        ("use std::{net::{IpAddr, UdpSocket}};", "std::net::UdpSocket"),
        ("fn f() { let _ = std::time::Instant::now(); }", "std::time::Instant::now"),
        ("use std::time; fn f() { time::SystemTime::now(); }", "std::time::SystemTime"),
        ("use std::fs as disk; fn f() { disk::read(\"a\"); }", "std::fs"),
        ("fn f() { println!(\"x\"); }", "println"),
        ("fn f() { assert!(::std::fs::exists(\"a\").is_ok()); }", "std::fs::exists"),
        ("mod inner { use tokio::*; }", "tokio"),
        ("fn f(_: &libc::c_int) {}", "libc::c_int"),
    ] {
        assert!(judge(planted).iter().any(|path| path.starts_with(found)), "{planted}: {:?}", judge(planted));
    }
    for innocent in [
        "// std::fs::read\n/// tokio\nfn f() -> &'static str { \"std::thread::spawn\" }",
        "#[cfg(test)] mod tests { use std::fs; }",
        "#[cfg(test)] use std::fs;",
        "use std::net::{IpAddr, Ipv4Addr}; use std::time::Duration;",
        "fn f(log: u8) -> u8 { log.count_ones() as u8 }",
        "mod log { pub fn x() {} }",
    ] {
        assert_eq!(judge(innocent), Vec::<String>::new(), "{innocent}");
    }

    let arrows = |module: &[&str], source: &str| {
        let owned: Vec<String> = module.iter().map(|part| (*part).to_owned()).collect();
        wrong_arrows(&owned, &parse("x.rs", module, source).paths())
    };
    assert_eq!(arrows(&["datapath", "tun"], "use crate::kernel::Kernel;").len(), 1);
    assert_eq!(arrows(&["kernel"], "use super::edge::Api;").len(), 1);
    assert_eq!(arrows(&["core", "plan"], "fn f() { crate::control::run() }").len(), 1);
    assert_eq!(arrows(&["edge", "api"], "use cni_shim::netlink::Socket;").len(), 1);
    assert_eq!(arrows(&["core", "plan"], "use super::super::cli::main;").len(), 1);
    assert!(arrows(&["core", "plan"], "use super::leases::Leases; use crate::core::node;").is_empty());
    assert!(arrows(&["kernel"], "use cni_shim::netlink::Socket; use crate::core::plan::Op;").is_empty());
    assert!(arrows(&["control"], "use crate::{kernel, edge}; use crate::datapath;").is_empty());

    assert_eq!(untidy("fn f() {}").len(), 1);
    assert_eq!(untidy("//! Doc.\nfn f() { todo!() }").len(), 1);
    assert_eq!(untidy("//! Doc.\nfn f() { if x { unimplemented!(\"later\") } }").len(), 1);
    assert_eq!(untidy("//! Doc.\n#[test]\n#[ignore = \"slow\"]\nfn f() {}").len(), 1);
    assert!(untidy("//! Doc.\n// todo!()\nfn f() -> &'static str { \"todo!()\" }").is_empty());
}

/// One source file without its test code.
struct Source {
    name: String,
    module: Vec<String>,
    items: Vec<Item>,
}

impl Source {
    /// The full path of every name used.
    fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        collect(&self.module, &self.items, &mut paths);
        paths
    }
}

/// Full paths of the names in these items of this module; nested modules have scopes of their own.
fn collect(module: &[String], items: &[Item], paths: &mut Vec<String>) {
    let mut scope = BTreeMap::new();
    let local: BTreeSet<String> = items
        .iter()
        .filter_map(|item| match item {
            Item::Mod(inner) => Some(inner.ident.to_string()),
            Item::Fn(function) => Some(function.sig.ident.to_string()),
            _ => None,
        })
        .collect();
    for item in items {
        if let Item::Use(import) = item {
            for (name, path) in imports(&import.tree, &mut Vec::new()) {
                let path = absolute(module, &path);
                paths.push(path.join("::"));
                scope.insert(name, path);
            }
        }
    }
    for item in items {
        match item {
            Item::Use(_) => {}
            Item::Mod(inner) => {
                let name: Vec<String> = module.iter().cloned().chain([inner.ident.to_string()]).collect();
                if let Some((_, inner)) = &inner.content {
                    collect(&name, &without_tests(inner), paths);
                }
            }
            other => {
                for path in token_paths(other.to_token_stream()) {
                    let (first, rest) = path.split_first().unwrap();
                    let full = match scope.get(first) {
                        Some(target) => target.iter().cloned().chain(rest.iter().cloned()).collect(),
                        None if local.contains(first) => continue,
                        None => absolute(module, &path),
                    };
                    paths.push(full.join("::"));
                }
            }
        }
    }
}

/// Name in scope and path, for each leaf of a `use`.
fn imports(tree: &UseTree, prefix: &mut Vec<String>) -> Vec<(String, Vec<String>)> {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            let leaves = imports(&path.tree, prefix);
            prefix.pop();
            leaves
        }
        UseTree::Group(group) => group.items.iter().flat_map(|tree| imports(tree, prefix)).collect(),
        UseTree::Glob(_) => vec![("*".into(), prefix.clone())],
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            let mut path = prefix.clone();
            if name == "self" {
                return vec![(path.last().cloned().unwrap_or_default(), path)];
            }
            path.push(name.clone());
            vec![(name, path)]
        }
        UseTree::Rename(rename) => {
            let mut path = prefix.clone();
            if rename.ident != "self" {
                path.push(rename.ident.to_string());
            }
            vec![(rename.rename.to_string(), path)]
        }
    }
}

/// `self` and `super` replaced by `crate` and the names of modules.
fn absolute(module: &[String], path: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = path;
    let mut relative = false;
    while let Some((first, after)) = rest.split_first() {
        match first.as_str() {
            "self" => {}
            "super" => {
                base.pop();
            }
            _ => break,
        }
        relative = true;
        rest = after;
    }
    if relative {
        ["crate".to_owned()].into_iter().chain(base).chain(rest.iter().cloned()).collect()
    } else {
        rest.to_vec()
    }
}

/// Every `a::b::c` and `name!` among the tokens; single names that are neither are left out.
fn token_paths(tokens: TokenStream) -> Vec<Vec<String>> {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut paths = Vec::new();
    let mut at = 0;
    let is_colon = |tree: Option<&TokenTree>| matches!(tree, Some(TokenTree::Punct(p)) if p.as_char() == ':');
    while let Some(tree) = trees.get(at) {
        match tree {
            TokenTree::Group(group) => paths.extend(token_paths(group.stream())),
            TokenTree::Ident(first) => {
                let mut path = vec![first.to_string()];
                while is_colon(trees.get(at + 1)) && is_colon(trees.get(at + 2)) {
                    let Some(TokenTree::Ident(next)) = trees.get(at + 3) else { break };
                    path.push(next.to_string());
                    at += 3;
                }
                let is_macro = matches!(trees.get(at + 1), Some(TokenTree::Punct(p)) if p.as_char() == '!')
                    && !matches!(trees.get(at + 2), Some(TokenTree::Punct(p)) if p.as_char() == '=');
                if path.len() > 1 || is_macro {
                    paths.push(path);
                }
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

fn impurities(paths: &[String]) -> Vec<String> {
    let bad = |path: &&String| {
        let path = path.strip_prefix("core::").map_or_else(|| (*path).clone(), |rest| format!("std::{rest}"));
        IMPURE.iter().any(|banned| path == *banned || path.starts_with(&format!("{banned}::")))
    };
    paths.iter().filter(bad).cloned().collect()
}

fn wrong_arrows(module: &[String], paths: &[String]) -> Vec<String> {
    let Some(from) = module.first() else { return Vec::new() };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == from) else { return Vec::new() };
    let wrong = |path: &&String| {
        let mut parts = path.split("::");
        match (parts.next(), parts.next()) {
            (Some("cni_shim"), _) => from != "kernel",
            (Some("crate" | "overlayd"), Some(to)) => {
                let is_module = ARROWS.iter().any(|(name, _)| *name == to);
                is_module && to != from && !allowed.contains(&to)
            }
            _ => false,
        }
    };
    paths.iter().filter(wrong).cloned().collect()
}

fn untidy(text: &str) -> Vec<String> {
    let file = match syn::parse_file(text) {
        Ok(file) => file,
        Err(error) => return vec![format!("does not parse: {error}")],
    };
    let mut faults = Vec::new();
    let is_doc = |attribute: &Attribute| {
        matches!(attribute.style, syn::AttrStyle::Inner(_)) && attribute.path().is_ident("doc")
    };
    if !file.attrs.iter().any(is_doc) {
        faults.push("begins without a //! that says what it is".to_owned());
    }
    unfinished(file.into_token_stream(), &mut faults);
    faults
}

fn unfinished(tokens: TokenStream, faults: &mut Vec<String>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    for pair in trees.windows(2) {
        match pair {
            [TokenTree::Ident(name), TokenTree::Punct(bang)]
                if bang.as_char() == '!' && (name == "todo" || name == "unimplemented") =>
            {
                faults.push(format!("{name}! is left"));
            }
            [TokenTree::Punct(hash), TokenTree::Group(attribute)]
                if hash.as_char() == '#'
                    && attribute
                        .stream()
                        .into_iter()
                        .next()
                        .is_some_and(|first| first.to_string() == "ignore") =>
            {
                faults.push("a test is ignored".to_owned());
            }
            _ => {}
        }
    }
    for tree in trees {
        if let TokenTree::Group(group) = tree {
            unfinished(group.stream(), faults);
        }
    }
}

fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg") && attribute.to_token_stream().to_string().contains("(test)")
    })
}

fn without_tests(items: &[Item]) -> Vec<Item> {
    let kept = items.iter().filter(|item| {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            _ => return true,
        };
        !is_test_only(attributes)
    });
    kept.cloned().collect()
}

fn parse(name: &str, module: &[&str], text: &str) -> Source {
    let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let module = module.iter().map(|part| (*part).to_owned()).collect();
    Source { name: name.to_owned(), module, items: without_tests(&file.items) }
}

/// The sources below a directory, less the files that only tests include.
fn product_files(dir: &Path) -> Vec<Source> {
    let source_root = dir.ancestors().find(|dir| dir.ends_with("src")).unwrap();
    let mut sources = Vec::new();
    let mut test_modules = BTreeSet::new();
    for path in rust_files(dir) {
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(source_root).unwrap().with_extension("");
        let mut module: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        if module.last().is_some_and(|last| matches!(*last, "mod" | "lib" | "main")) {
            module.pop();
        }
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for item in &file.items {
            if let Item::Mod(inner) = item
                && inner.content.is_none()
                && is_test_only(&inner.attrs)
            {
                let name = inner.ident.to_string();
                test_modules.insert(module.iter().map(|p| (*p).to_owned()).chain([name]).collect::<Vec<_>>());
            }
        }
        sources.push(parse(path.to_str().unwrap(), &module, &text));
    }
    sources.retain(|source| !test_modules.iter().any(|module| source.module.starts_with(module)));
    assert!(!sources.is_empty(), "no sources in {}", dir.display());
    sources
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Names of the packages that a product build of this package needs, down to this depth.
fn dependencies(package: &str, depth: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--package", package, "--depth", depth])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}
