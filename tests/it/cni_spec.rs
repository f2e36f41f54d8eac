//! The plugin against the whole contract, as any plugin binary is judged, and what is ours alone: delegation, wishes of
//! the runtime, further interfaces.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
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
