//! What a node gets so that container runtimes use this network: plugin, network configuration, a daemon with few rights.

#![expect(clippy::unwrap_used, reason = "what surprises a test's helper fails the test")]

use std::time::Duration;

use serde_json::{Value, json};
use tests::go::cni_plugins;
use tests::node::RUN_DIR;
use tests::{Cni, Lab, Node, Output, eventually};

const SOON: Duration = Duration::from_secs(30);
const CONF_DIR: &str = "/run/cni/net.d";
const BIN_DIR: &str = "/run/cni/bin";
const CONFLIST: &str = "/run/cni/net.d/10-overlay.conflist";
const PLUGIN: &str = "/run/cni/bin/overlayd";
const FLAGS: [&str; 4] = ["--cni-conf-dir", CONF_DIR, "--cni-bin-dir", BIN_DIR];
/// `CAP_NET_ADMIN` of `linux/capability.h`.
const NET_ADMIN: u32 = 12;

fn install(node: &Node, args: &[&str], code: i32) -> Output {
    let output = node.overlayd(&[&["install", "--cni-bin-dir", BIN_DIR], args].concat()).output();
    assert_eq!(output.exit.code, Some(code), "install {args:?}: {output}");
    output
}

fn uninstall(node: &Node, args: &[&str], code: i32) -> Output {
    let output = node.overlayd(&[&["uninstall"], FLAGS.as_slice(), args].concat()).output();
    assert_eq!(output.exit.code, Some(code), "uninstall {args:?}: {output}");
    output
}

/// A node that a runtime could use, without a daemon yet.
fn prepared(nodes: usize) -> Lab {
    let lab = Lab::builder().nodes(nodes).start();
    for node in lab.nodes() {
        node.command("mkdir").args(["-p", CONF_DIR]).run();
        install(node, &[], 0);
    }
    lab
}

fn plugins(node: &Node) -> Vec<String> {
    let conflist: Value = serde_json::from_str(&node.read_file(CONFLIST)).unwrap();
    assert_eq!((&conflist["cniVersion"], &conflist["name"]), (&json!("1.0.0"), &json!("overlay")));
    let plugins = conflist["plugins"].as_array().unwrap();
    plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_network_configuration_comes_when_pods_can_be_served_and_outlives_the_daemon() {
    let lab = prepared(1);
    let node = lab.node(1);
    node.write_nodes(&[]);
    node.launch_daemon(&FLAGS);
    eventually("the daemon has looked", SOON, || {
        node.try_status().is_ok_and(|status| status.conflist.is_some())
    });
    let status = node.status();
    assert!(!status.ready && !status.conflist.unwrap().written);
    assert!(!node.has_file(CONFLIST), "our own Node is not known: no pod can be served");
    node.write_nodes(&[node.manifest()]);
    node.wait_ready();
    assert_eq!(plugins(&node), ["overlayd"]);
    assert_eq!(node.file_mode(CONFLIST), "644 0");
    let status = node.status().conflist.unwrap();
    assert!(status.written && status.missing == ["portmap", "bandwidth", "loopback"], "{status:?}");

    let whole = node.read_file(CONFLIST);
    node.stop_daemon();
    assert_eq!(node.read_file(CONFLIST), whole);
    node.restart_daemon();
    node.kill_daemon();
    assert_eq!(node.read_file(CONFLIST), whole);
}

#[test]
fn the_network_configuration_heals_and_a_foreign_one_that_wins_is_named_and_left() {
    let lab = prepared(1);
    let node = lab.node(1);
    node.start_daemon_with(&FLAGS);
    let whole = node.read_file(CONFLIST);
    let healed = || node.has_file(CONFLIST) && node.read_file(CONFLIST) == whole;
    node.remove_file(CONFLIST);
    eventually("it is back", SOON, healed);
    node.write_file(CONFLIST, r#"{"name": "other"}"#);
    eventually("it is ours again", SOON, healed);

    let foreign = format!("{CONF_DIR}/10-flannel.conflist");
    node.write_file(&foreign, "{}");
    let conflicts = || node.status().conflicts;
    eventually("it is in the status", SOON, || {
        conflicts()
            .iter()
            .any(|conflict| conflict.object.contains(&foreign) && conflict.remedy.contains("rm "))
    });
    node.wait_log("10-flannel.conflist");
    assert!(node.overlayd(&["status"]).run().contains(&foreign));
    assert_eq!(node.read_file(&foreign), "{}");
    assert!(node.status().ready, "what others do there is theirs");
    node.write_file(&format!("{CONF_DIR}/87-podman.conflist"), "{}");
    node.remove_file(&foreign);
    eventually("none sorts first any more", SOON, || conflicts().is_empty());
}

#[test]
fn a_plugin_that_vanishes_is_told_with_its_remedy() {
    let lab = prepared(1);
    let node = lab.node(1);
    node.start_daemon_with(&FLAGS);
    node.remove_file(PLUGIN);
    eventually("it is missed", SOON, || {
        node.status()
            .not_ready_reasons
            .iter()
            .any(|reason| reason.contains(PLUGIN) && reason.contains("overlayd install"))
    });
    assert!(node.has_file(CONFLIST));
    install(&node, &[], 0);
    node.wait_ready();
}

#[test]
fn portmap_is_chained_when_it_comes_and_a_runtime_uses_the_file_as_it_is() {
    let lab = prepared(2);
    let (node, client) = (lab.node(1), lab.node(2));
    let reference = cni_plugins().unwrap();
    client.start_daemon();
    node.start_daemon_with(&FLAGS);
    assert_eq!(plugins(&node), ["overlayd"]);
    for plugin in ["bandwidth", "portmap"] {
        node.command("cp").arg(reference.join(plugin).display()).arg(BIN_DIR).run();
    }
    eventually("both are chained", SOON, || plugins(&node) == ["overlayd", "portmap", "bandwidth"]);
    assert_eq!(node.status().conflist.unwrap().missing, ["loopback"]);

    // What cnitool remembers stays in the lab.
    node.command("mount").args(["-t", "tmpfs", "tmpfs", "/var/lib"]).run();
    let cni = Cni::prepare(&node, "web").unwrap();
    let mapping = json!({"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"});
    let tool = |verb: &str| {
        node.command(&reference.join("cnitool").to_string_lossy())
            .args([verb, "overlay", &cni.netns])
            .env("NETCONFPATH", CONF_DIR)
            .env("CNI_PATH", BIN_DIR)
            .env("CAP_ARGS", json!({"portMappings": [mapping], "bandwidth": {"ingressRate": 50_000_000, "ingressBurst": 50_000_000}}))
            .run()
    };
    let result: Value = serde_json::from_str(&tool("add")).unwrap();
    let _server = cni.inside(&result).serve_on(8080);
    assert!(client.tcp("192.0.2.11:18080".parse().unwrap()).ok, "the port of the host");
    tool("check");
    tool("del");
    assert_eq!(node.observe().links_named("ovp").len(), 0);
    cni.remove_netns();
}

#[test]
fn the_plugin_is_installed_whole_while_it_is_in_use() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let first = install(&node, &[], 0);
    assert_eq!(first.stdout, format!("installed {PLUGIN}\n"));
    assert!(first.stderr.contains(&format!("{BIN_DIR}/loopback is missing")), "{first}");
    assert_eq!(node.file_mode(PLUGIN), "755 0");
    assert_eq!(install(&node, &[], 0).stdout, format!("{PLUGIN} is up to date\n"));
    // What follows the program in the file makes another file of the same program.
    let shim = tests::binaries::Binaries::build().unwrap().cni_shim();
    node.command("sh").arg("-c").arg(format!("(cat {}; echo more) > /run/other", shim.display())).run();
    let using = node
        .command("sh")
        .arg("-c")
        .arg(format!("for round in $(seq 300); do CNI_COMMAND=VERSION {PLUGIN} < /dev/null || exit 1; done"))
        .spawn();
    let mut installed = 0;
    while using.running() {
        install(&node, &["--plugin", "/run/other"], 0);
        install(&node, &[], 0);
        installed += 2;
    }
    let used = using.finish();
    assert!(used.success() && installed > 2, "{installed} installations beside {used}");
    assert_eq!(node.command("ls").args(["-A", BIN_DIR]).run(), "overlayd\n", "nothing beside it");
}

#[test]
fn what_cannot_be_installed_is_told_in_words() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let absent = install(&node, &["--plugin", "/run/absent"], 1);
    assert!(absent.stderr.contains("read the plugin /run/absent"), "{absent}");
    node.write_file("/run/text", "#!/bin/sh\n");
    let text = install(&node, &["--plugin", "/run/text"], 1);
    assert!(text.stderr.contains("/run/text is not a program"), "{text}");
    assert!(!node.has_file(PLUGIN));
    let blocked = node.overlayd(&["install", "--cni-bin-dir", "/run/text/bin"]).output();
    assert!(blocked.exit.code == Some(1) && blocked.stderr.contains("/run/text/bin"), "{blocked}");
    let relative = node.overlayd(&["install", "--cni-bin-dir", "bin"]).output();
    assert!(relative.exit.code == Some(2) && relative.stderr.contains("absolute path"), "{relative}");
}

#[test]
fn uninstall_takes_all_of_it_off_the_node_and_can_be_repeated() {
    let lab = prepared(2);
    let node = lab.node(1);
    let foreign = format!("{CONF_DIR}/99-other.conflist");
    node.write_file(&foreign, "{}");
    let objects = || -> Vec<String> {
        // That the node forwards is left as it is, others may rely on it by now.
        node.objects().into_iter().filter(|line| !line.starts_with("sysctl ")).collect()
    };
    let before = objects();
    lab.node(2).start_daemon();
    node.start_daemon_with(&FLAGS);
    let pod = node.add_pod("one");
    let running = uninstall(&node, &["--with-pods"], 1);
    assert!(running.stderr.contains(&format!("process {}", node.status().pid)), "{running}");
    node.stop_daemon();
    let attached = uninstall(&node, &[], 1);
    assert!(
        attached.stderr.contains("1 pods are attached") && attached.stderr.contains(pod.container_id()),
        "{attached}"
    );
    assert!(node.has_file(CONFLIST) && node.has_file(PLUGIN), "a refusal changes nothing");

    uninstall(&node, &["--with-pods"], 0);
    assert_eq!(objects(), before);
    let files = |directory: &str| node.command("ls").args(["-A", directory]).run();
    assert_eq!((files(CONF_DIR).as_str(), files(BIN_DIR).as_str()), ("99-other.conflist\n", ""));
    let again = uninstall(&node, &[], 0);
    assert!(again.stdout.contains("removed 0 kernel objects"), "{again}");
    // For a DaemonSet the same program stays, and ends when it is told.
    let staying = node.overlayd(&[&["uninstall", "--stay"], FLAGS.as_slice()].concat()).spawn();
    eventually("it is done", SOON, || staying.stdout().contains("removed 0"));
    assert!(staying.running());
    assert_eq!(staying.terminate(SOON).code, Some(0));

    install(&node, &[], 0);
    node.start_daemon_with(&FLAGS);
    let (one, two) = (node.add_pod("one"), lab.node(2).add_pod("two"));
    assert_eq!(one.tcp_source(two.serve().v4()), one.v4());
}

#[test]
fn a_container_with_net_admin_alone_and_read_only_sysctls_serves_pods() {
    let lab = prepared(2);
    let (node, other) = (lab.node(1), lab.node(2));
    other.start_daemon();
    node.sysctl("net/ipv4/ip_forward", "0");
    node.sysctl("net/ipv4/conf/all/rp_filter", "1");
    let contained = |args: &[&str]| {
        node.daemon_command().args(FLAGS).args(args).contained(NET_ADMIN, "/run/host-sys/net").spawn()
    };
    let refused = contained(&[]);
    eventually("it says what it cannot set", SOON, || {
        node.try_status().is_ok_and(|status| {
            let reasons = status.not_ready_reasons.join("; ");
            reasons.contains("ip_forward") && reasons.contains("read-only") && reasons.contains("sysctl_dir")
        })
    });
    assert!(!node.has_file(CONFLIST));
    assert_eq!(refused.terminate(SOON).code, Some(0));

    let daemon = contained(&["--sysctl-dir", "/run/host-sys"]);
    eventually("it gets ready", SOON, || {
        assert!(daemon.running(), "{}", daemon.stderr());
        node.try_status().is_ok_and(|status| status.ready)
    });
    assert_eq!(plugins(&node), ["overlayd"]);
    let (one, two) = (node.add_pod("one"), other.add_pod("two"));
    assert_eq!(one.tcp_source(two.serve().v4()), one.v4());
    assert_eq!(two.tcp_source(one.serve().v4()), two.v4());
    assert_eq!(node.status().reconcile.failed, 0, "{}", daemon.stderr());
    // Strict reverse-path filtering came back for the pod's link: mended through the same mount.
    let filter = format!("net/ipv4/conf/{}/rp_filter", one.host_link());
    node.sysctl(&filter, "1");
    eventually("it is loose again", SOON, || node.read_file(&format!("/proc/sys/{filter}")).trim() == "2");
    assert_eq!(node.file_mode(&format!("{RUN_DIR}/cni.sock")), "600 0");
}

#[test]
fn a_tun_that_the_runtime_forbids_is_told_with_the_versions_that_do() {
    let lab = prepared(1);
    let node = lab.node(1);
    // The mount is the node's own. A device that its mount forbids looks as one that the control group forbids, but for the number.
    node.command("mount").args(["--bind", "/dev/net/tun", "/dev/net/tun"]).run();
    node.command("mount").args(["-o", "remount,bind,nodev", "/dev/net/tun"]).run();
    node.launch_daemon(&FLAGS);
    eventually("the cause is named", SOON, || {
        node.try_status().is_ok_and(|status| {
            let reasons = status.not_ready_reasons.join("; ");
            ["/dev/net/tun", "runc 1.2.0 to 1.2.3", "crun before 1.20", "privileged variant"]
                .iter()
                .all(|part| reasons.contains(part))
        })
    });
    assert!(!node.has_file(CONFLIST));
    node.command("umount").arg("/dev/net/tun").run();
    node.wait_ready();
    assert!(node.has_file(CONFLIST));
}
