//! The plugin against the whole contract, as any plugin binary is judged, and what is ours alone: delegation, wishes of
//! the runtime, further interfaces.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::go::cni_plugins;
use tests::node::RUN_DIR;
use tests::suite::{Subject, run, table};
use tests::{Cni, Families, Lab, Node, Output};

#[track_caller]
fn refusal(output: &Output) -> (u64, String) {
    assert!(!output.success(), "{output}");
    let document: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output}"));
    (document["code"].as_u64().unwrap(), document["msg"].as_str().unwrap().to_owned())
}

#[track_caller]
fn done(output: &Output) {
    assert!(output.success() && output.stdout.is_empty(), "{output}");
}

#[track_caller]
fn added(cni: &mut Cni) -> Value {
    let output = cni.call("ADD");
    assert!(output.success(), "{output}");
    let result: Value = serde_json::from_str(&output.stdout).unwrap();
    cni.previous = Some(result.clone());
    result
}

fn prepare(node: &Node, version: &str) -> Cni {
    let mut cni = Cni::prepare(node, "pod").unwrap();
    cni.config["cniVersion"] = json!(version);
    cni
}

#[test]
fn the_plugin_keeps_the_whole_contract() {
    let lab = Lab::builder().nodes(1).pods(Families::Dual).start();
    lab.start_daemons();
    let config = json!({"type": "overlayd", "socket": format!("{RUN_DIR}/cni.sock")});
    let subject =
        Subject { node: lab.node(1), program: "cni-shim".into(), config, plugin_path: "/opt/cni/bin".into() };
    let verdicts = run(&subject);
    assert!(verdicts.iter().all(|verdict| verdict.failure.is_none()), "\n{}", table(&verdicts));
    let score = format!("overlayd keeps {0} of {0} facts", verdicts.len());
    assert!(include_str!("../../README.md").contains(&score), "README does not say: {score}");
}

#[test]
fn a_second_interface_answers_and_check_knows_its_rule() {
    let lab = Lab::builder().nodes(2).pods(Families::Dual).start();
    lab.start_daemons();
    let pod = lab.node(1).add_pod("pod");
    let mut second = pod.cni();
    second.ifname = "net1".into();
    second.previous = None;
    let result = added(&mut second);
    let inside = second.inside(&result);
    let server = inside.serve();
    for address in [inside.v4(), inside.v6()] {
        let client = lab.node(2).add_pod("client");
        assert!(client.tcp(server.at(address)).ok, "TCP to {address} by net1");
    }
    done(&second.call("CHECK"));
    done(&pod.check());
    let rules = pod.observe().rules;
    assert_eq!(rules.len(), 2, "{rules:?}");
    for rule in &rules {
        pod.delete_rule(rule.source);
        let (code, message) = refusal(&second.call("CHECK"));
        assert!(code == 103 && message.contains("no rule"), "{code} {message}");
    }
    done(&second.call("DEL"));
    assert_eq!(pod.observe().rules, []);
    done(&pod.check());
}

#[test]
fn a_secondary_network_takes_no_default_route() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let mut cni = prepare(&node, "1.1.0");
    cni.config["default_route"] = json!(false);
    cni.config["routes"] = json!([{"dst": "10.244.0.0/16", "mtu": 1300}]);
    let result = added(&mut cni);
    assert_eq!(result["routes"], json!([{"dst": "10.244.0.0/16", "gw": "169.254.1.1", "mtu": 1300}]));
    let inside = cni.inside(&result);
    let main: Vec<_> =
        inside.observe().routes.into_iter().filter(|route| route.destination.prefix_len() == 0).collect();
    // The only default route is the one of the interface's own table, for what it answers.
    assert_eq!(main.len(), 1, "{main:?}");
    assert_eq!(node.ping(inside.v4(), 56, 1).answered, 1);
    done(&cni.call("CHECK"));
    done(&cni.call("DEL"));
}

#[test]
fn the_runtime_may_ask_for_an_address_and_a_mac() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let mut cni = prepare(&node, "1.0.0");
    cni.config["runtimeConfig"] = json!({"IPs": ["10.244.1.77/24"], "mac": "02:11:22:33:44:55"});
    let result = added(&mut cni);
    assert_eq!(result["ips"][0]["address"], "10.244.1.77/32");
    assert_eq!(result["interfaces"][1]["mac"], "02:11:22:33:44:55");
    let inside = cni.inside(&result);
    assert_eq!(node.ping(inside.v4(), 56, 1).answered, 1);
    done(&cni.call("CHECK"));
    // The daemon knows the MAC from the kernel alone, and puts back what was lost.
    node.restart_daemon();
    node.set_link_state(&cni.host_link(), tests::LinkState::Down);
    tests::eventually("the pod answers again", Duration::from_secs(20), || {
        node.ping(inside.v4(), 56, 1).answered == 1
    });
    done(&cni.call("CHECK"));

    let mut other = prepare(&node, "1.0.0");
    other.args = "IP=10.244.1.77".into();
    let (code, message) = refusal(&other.call("ADD"));
    assert!(code == 11 && message.contains("10.244.1.77 is in use"), "{code} {message}");
    other.args = "IP=10.9.9.9".into();
    let (code, message) = refusal(&other.call("ADD"));
    assert!(
        code == 7 && message.contains("10.9.9.9") && message.contains("10.244.1.0/24"),
        "{code} {message}"
    );
    done(&cni.call("DEL"));
    other.args = "IP=10.244.1.77".into();
    assert_eq!(added(&mut other)["ips"][0]["address"], "10.244.1.77/32");
}

#[test]
fn status_answers_within_a_second_whatever_the_daemon_does() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let cni = prepare(&node, "1.1.0");
    done(&cni.call("STATUS"));
    node.signal_daemon(libc::SIGSTOP);
    let begun = Instant::now();
    let (code, message) = refusal(&cni.call("STATUS"));
    // A second of the plugin; the rest is what this machine takes to start it and to tell us.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(code == 50 && message.contains("timed out"), "{code} {message}");
    node.signal_daemon(libc::SIGCONT);
    node.kill_daemon();
    let (code, message) = refusal(&cni.call("STATUS"));
    assert!(code == 50 && message.contains(&format!("{RUN_DIR}/cni.sock")), "{code} {message}");
}

/// A configuration whose addresses come from host-local, and where it is.
fn delegated(node: &Node, version: &str) -> Cni {
    let mut cni = prepare(node, version);
    cni.plugin_path = cni_plugins().unwrap().to_string_lossy().into_owned();
    cni.config["ipam"] = json!({
        "type": "host-local",
        "dataDir": "/run/ipam",
        "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.50", "rangeEnd": "10.244.1.51"}]],
        "routes": [{"dst": "10.0.0.0/8"}],
    });
    cni
}

#[test]
fn addresses_may_come_from_host_local() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let held = |address: &str| node.has_file(&format!("/run/ipam/overlay/{address}"));
    for version in tests::suite::VERSIONS {
        let mut first = delegated(&node, version);
        let result = added(&mut first);
        let inside = first.inside(&result);
        let address = inside.v4().to_string();
        assert!(["10.244.1.50", "10.244.1.51"].contains(&address.as_str()) && held(&address), "{address}");
        assert_eq!(result["routes"][1], json!({"dst": "10.0.0.0/8", "gw": "169.254.1.1"}));
        assert_eq!(node.ping(inside.v4(), 56, 1).answered, 1);
        let mut second = delegated(&node, version);
        added(&mut second);
        // Its own words and number, when there is nothing left.
        let third = delegated(&node, version);
        let ours = third.call("ADD");
        let mut direct = node.command(&format!("{}/host-local", third.plugin_path)).stdin(third.stdin("ADD"));
        for (name, value) in third.environment("ADD") {
            direct = direct.env(name, value);
        }
        assert_eq!(refusal(&ours), refusal(&direct.output()));
        if version != "0.3.1" {
            done(&first.call("CHECK"));
        }
        if version == "1.1.0" {
            let mut gc = second.clone();
            gc.previous = None;
            gc.config["cni.dev/valid-attachments"] =
                json!([{"containerID": second.container, "ifname": "eth0"}]);
            done(&gc.call("GC"));
            assert!(!held(&address), "GC frees {address} in host-local");
            assert_eq!(node.observe().link(&first.host_link()), None);
            let kept = second.inside(second.previous.as_ref().unwrap()).v4();
            assert!(held(&kept.to_string()) && node.ping(kept, 56, 1).answered == 1, "{kept} is listed");
            done(&second.call("STATUS"));
        }
        second.netns = String::new();
        for cni in [&first, &second, &second] {
            done(&cni.call("DEL"));
        }
        assert!(!held("10.244.1.50") && !held("10.244.1.51"));
        assert_eq!(node.observe().links_named("ovp"), Vec::<&str>::new());
    }
}

#[test]
fn an_address_that_was_delegated_is_given_back_when_add_fails() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let cni = delegated(&node, "1.0.0");
    node.kill_daemon();
    assert_eq!(refusal(&cni.call("ADD")).0, 11);
    // It was asked: it has made its directory. It was told: no address is held.
    assert!(node.has_file("/run/ipam/overlay/lock"));
    assert!(!node.has_file("/run/ipam/overlay/10.244.1.50"));
    let output = delegated(&node, "1.1.0").call("STATUS");
    assert_eq!(refusal(&output).0, 50);
    let mut lost = cni;
    lost.plugin_path = "/nonexistent".into();
    let (code, message) = refusal(&lost.call("ADD"));
    assert!(
        code == 7 && message.contains("host-local") && message.contains("/nonexistent"),
        "{code} {message}"
    );
}

#[test]
fn an_ipam_plugin_that_hangs_holds_up_no_verb_and_what_it_leaves_behind_neither() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    // Its child keeps standard output, which is ours, open for as long as it likes.
    let script = "#!/bin/sh\nsleep 300 &\nwait\n";
    node.try_write_program("/run/slow/host-local", script).unwrap();
    let mut cni = delegated(&node, "1.1.0");
    added(&mut cni);
    cni.plugin_path = "/run/slow".into();
    let mut fresh = delegated(&node, "1.1.0");
    fresh.plugin_path = "/run/slow".into();
    // What a loaded machine adds to the plugin's own time.
    let overhead = Duration::from_secs(3);
    for (verb, cni, seconds) in
        [("STATUS", &cni, 1), ("ADD", &fresh, 20), ("CHECK", &cni, 20), ("DEL", &cni, 5)]
    {
        let begun = Instant::now();
        let (code, message) = refusal(&cni.call(verb));
        assert!(begun.elapsed() < Duration::from_secs(seconds) + overhead, "{verb}: {:?}", begun.elapsed());
        let expected = if verb == "STATUS" { 50 } else { 11 };
        assert!(code == expected && message.contains("host-local"), "{verb}: {code} {message}");
    }
    // The rest of DEL and of the way back is done all the same.
    assert_eq!(node.observe().links_named("ovp"), Vec::<&str>::new());
    cni.plugin_path = cni_plugins().unwrap().to_string_lossy().into_owned();
    done(&cni.call("DEL"));
    assert!(
        !node.has_file("/run/ipam/overlay/10.244.1.50") && !node.has_file("/run/ipam/overlay/10.244.1.51")
    );
}

/// The rules of the node that change addresses.
fn nat_rules(node: &Node) -> usize {
    let translates =
        |object: &tests::firewall::Object| object.expressions().iter().any(|(name, _)| name == "nat");
    node.firewall().iter().filter(|object| translates(object)).count()
}

#[test]
fn portmap_and_bandwidth_follow_in_the_chain() {
    let lab = Lab::with_nodes(2);
    let (node, client) = (lab.node(1), lab.node(2));
    let reference = cni_plugins().unwrap();
    // What cnitool remembers stays in the lab.
    assert!(on_path("nft"), "portmap needs the program nft: install the package nftables");
    node.command("mount").args(["-t", "tmpfs", "tmpfs", "/var/lib"]).run();
    node.command("mkdir").args(["/run/bin", "/run/conf"]).run();
    let shim = tests::binaries::Binaries::build().unwrap().cni_shim();
    node.command("ln").arg("-s").arg(shim.display()).arg("/run/bin/overlayd").run();
    node.add_address("eth0", "192.0.2.211/24".parse().unwrap());
    for version in tests::suite::VERSIONS {
        let conflist = json!({
            "cniVersion": version,
            "name": "overlay",
            "plugins": [
                {"type": "overlayd", "socket": format!("{RUN_DIR}/cni.sock")},
                {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
                {"type": "bandwidth", "ingressRate": 50_000_000, "ingressBurst": 50_000_000, "egressRate": 50_000_000, "egressBurst": 50_000_000},
            ],
        });
        node.write_file("/run/conf/10-overlay.conflist", conflist.to_string());
        let before = nat_rules(&node);
        let tool = |cni: &Cni, verb: &str, host_ip: &str| {
            let mapping = |protocol: &str| json!({"hostPort": 18080, "containerPort": 8080, "protocol": protocol, "hostIP": host_ip});
            node.command(&reference.join("cnitool").to_string_lossy())
                .args([verb, "overlay", &cni.netns])
                .env("NETCONFPATH", "/run/conf")
                .env("CNI_PATH", format!("/run/bin:{}", reference.display()))
                .env("CAP_ARGS", json!({"portMappings": [mapping("tcp"), mapping("udp")]}))
                .output()
        };
        let pods = ["192.0.2.11", "192.0.2.211"].map(|host_ip| {
            let cni = prepare(&node, version);
            let output = tool(&cni, "add", host_ip);
            assert!(output.success(), "{output}");
            let result: Value = serde_json::from_str(&output.stdout).unwrap();
            let inside = cni.inside(&result);
            let server = inside.serve_on(8080);
            (cni, host_ip, inside, server)
        });
        for (cni, host_ip, inside, _server) in &pods {
            let target = format!("{host_ip}:18080").parse().unwrap();
            assert!(client.tcp(target).ok, "TCP to {target}");
            assert_eq!(client.udp_source(target), client.v4(), "UDP to {target}");
            let host_link = node.observe().links_named("ovp").len();
            assert_eq!(host_link, 2);
            assert_eq!(node.ping(inside.v4(), 56, 1).answered, 1);
            // CHECK came with 0.4.0.
            for verb in ["check", "status"].into_iter().filter(|verb| *verb == "status" || version != "0.3.1")
            {
                let output = tool(cni, verb, host_ip);
                assert!(output.success(), "{version} {verb}: {output}");
            }
        }
        // What bandwidth shapes by.
        assert_eq!(node.observe().links_named("bwp").len(), 2);
        let (first, second) = (&pods[0], &pods[1]);
        assert!(nat_rules(&node) > before);
        let output = tool(&first.0, "del", first.1);
        assert!(output.success(), "{output}");
        assert!(client.tcp("192.0.2.211:18080".parse().unwrap()).ok, "the other pod keeps its port");
        let output = if version == "1.1.0" {
            tool(&second.0, "gc", second.1)
        } else {
            tool(&second.0, "del", second.1)
        };
        assert!(output.success(), "{output}");
        assert_eq!(nat_rules(&node), before);
        for prefix in ["ovp", "bwp"] {
            assert_eq!(node.observe().links_named(prefix), Vec::<&str>::new(), "{version}");
        }
    }
}

#[test]
fn status_tells_a_node_that_lost_its_tunnel_from_one_that_is_not_ready() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let cni = prepare(&node, "1.1.0");
    node.add_vxlan("foreign0", 9, 8472);
    node.launch_daemon(&[]);
    let mut told = (0, String::new());
    tests::eventually("the tunnel is given up", Duration::from_secs(20), || {
        let output = cni.call("STATUS");
        told = refusal(&output);
        told.0 == 51
    });
    assert!(told.1.contains("foreign0"), "{}", told.1);
    node.delete_link("foreign0");
    tests::eventually("the node is whole", Duration::from_secs(40), || cni.call("STATUS").success());
}

#[test]
fn status_says_that_no_address_is_left() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let mut manifest = node.manifest();
    manifest.pod_cidrs = vec!["10.244.1.0/30".parse().unwrap()];
    node.write_nodes(&[manifest]);
    node.start_daemon();
    let mut cni = prepare(&node, "1.1.0");
    added(&mut prepare(&node, "1.1.0"));
    done(&cni.call("STATUS"));
    added(&mut cni);
    let (code, message) = refusal(&cni.call("STATUS"));
    assert!(code == 50 && message.contains("10.244.1.0/30"), "{code} {message}");
    done(&cni.call("DEL"));
    tests::eventually("there is room again", Duration::from_secs(20), || cni.call("STATUS").success());
}

/// Whether there is such a program.
fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // As in a root shell, whatever the path of the test's caller is.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}
