//! What is in `deploy/` works with the binary as it is.

#![expect(clippy::unwrap_used, reason = "what surprises a test's helper fails the test")]

use std::path::Path;
use std::time::Duration;

use tests::node::{NODES_FILE, RUN_DIR};
use tests::{Lab, eventually};

const SOON: Duration = Duration::from_secs(30);
/// `CAP_NET_ADMIN` of `linux/capability.h`.
const NET_ADMIN: u32 = 12;

/// Values of a key in a unit file, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('=')).collect()
}

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/overlayd.service");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_systemd_unit_starts_a_daemon_that_gets_ready() {
    let unit = unit();
    let [line] = values(&unit, "ExecStart")[..] else { panic!("one ExecStart in\n{unit}") };
    let words: Vec<&str> = line.split_whitespace().collect();
    let [program, arguments @ ..] = words.as_slice() else { panic!("{line}") };
    assert!(program.ends_with("/overlayd"), "{line}");
    // Node name and run directory are the defaults, the source of Nodes is what the operator writes into the file.
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    node.write_file("/run/lab/config.yaml", format!("nodes_file: {NODES_FILE}\n"));
    assert_eq!(values(&unit, "CapabilityBoundingSet"), ["CAP_NET_ADMIN"]);
    let daemon = node
        .command("overlayd")
        .args(arguments)
        .env("OVERLAYD_CONFIG", "/run/lab/config.yaml")
        .bounded(NET_ADMIN)
        .spawn();
    eventually(&format!("{line} gets ready: {}", daemon.stderr()), SOON, || {
        assert!(daemon.running(), "{line} ended: {}", daemon.stderr());
        node.try_status().is_ok_and(|status| status.ready)
    });
    let held = node.read_file(&format!("/proc/{}/status", node.status().pid));
    assert!(held.contains("CapBnd:\t0000000000001000\n"), "{held}");
    assert_eq!(node.status().node, "node-1");
    let (one, two) = (node.add_pod("one"), node.add_pod("two"));
    assert_eq!(one.tcp_source(two.serve().v4()), one.v4());
    assert_eq!(node.status().reconcile.failed, 0, "{}", daemon.stderr());
    // systemd makes the run directory under /run: it must be the one that the daemon uses.
    assert_eq!(values(&unit, "RuntimeDirectory"), [RUN_DIR.strip_prefix("/run/").unwrap()]);
    assert!(node.has_file(&format!("{RUN_DIR}/lock")));
    let patience: u64 = values(&unit, "TimeoutStopSec")[0].parse().unwrap();
    assert!(patience > 2, "the daemon takes up to 2 s");
    assert_eq!(daemon.terminate(Duration::from_secs(patience)).code, Some(0));
}
