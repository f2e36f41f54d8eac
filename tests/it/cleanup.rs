//! `overlayd cleanup` removes all that is ours and nothing else.

#![expect(clippy::unwrap_used, reason = "what surprises a test's helper fails the test")]

use tests::protocol::{NftChange, NftFamily};
use tests::{Lab, Node, Output, Pod};

/// Kernel objects without sysctls: that the node forwards is left as it is, others may rely on it by now.
fn objects(node: &Node) -> Vec<String> {
    node.objects().into_iter().filter(|line| !line.starts_with("sysctl ")).collect()
}

fn cleanup(node: &Node, args: &[&str], code: i32) -> Output {
    let output = node.overlayd(&[&["cleanup"], args].concat()).output();
    assert_eq!(output.exit.code, Some(code), "cleanup {args:?}: {output}");
    output
}

/// What others have on the node, close to ours in kind and place.
fn add_foreign(node: &Node) {
    node.add_vxlan("vxlan7", 7, 4789);
    node.add_link_route("10.96.0.0/16".parse().unwrap(), "eth0");
    node.add_link_route("10.244.77.0/24".parse().unwrap(), "eth0");
    node.add_address("eth0", "198.18.0.1/32".parse().unwrap());
    node.nft(NftChange::AddForwardDrop {
        family: NftFamily::Ip,
        table: "filter".into(),
        chain: "FORWARD".into(),
    });
}

fn run_dir_is_gone(node: &Node) -> bool {
    let look = node.command("lab-agent").args(["cat", tests::node::RUN_DIR]).output();
    look.stderr.contains("No such file")
}

#[test]
fn cleanup_refuses_while_the_daemon_runs_and_names_it() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let before = objects(&node);
    let pid = node.status().pid;
    for args in [&[][..], &["--with-pods"]] {
        let output = cleanup(&node, args, 1);
        assert!(output.stderr.contains(&format!("process {pid}")), "{output}");
    }
    assert_eq!(objects(&node), before);
    assert!(node.status().ready);
}

#[test]
fn cleanup_refuses_while_pods_are_attached_and_lists_them() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pods = [node.add_pod("one"), node.add_pod("two")];
    node.stop_daemon();
    let before = objects(&node);
    let output = cleanup(&node, &[], 1);
    assert!(output.stderr.contains("2 pods are attached"), "{output}");
    for pod in &pods {
        for part in [&pod.v4().to_string(), &pod.host_link(), pod.container_id()] {
            assert!(output.stderr.contains(part), "{part} is not in {output}");
        }
    }
    assert_eq!(objects(&node), before);
    assert_eq!(pods[0].tcp_source(pods[1].serve().v4()), pods[0].v4(), "the pods still talk");
}

#[test]
fn cleanup_with_pods_removes_all_that_is_ours_and_nothing_else() {
    let lab = Lab::builder().nodes(2).pods(tests::Families::Dual).start();
    let node = lab.node(1);
    add_foreign(&node);
    let before = objects(&node);
    node.start_daemon_with(&["--forward-accept", "true"]);
    let _pods: Vec<Pod> = ["one", "two"].iter().map(|name| node.add_pod(name)).collect();
    assert_ne!(objects(&node), before);
    node.stop_daemon();
    cleanup(&node, &["--with-pods"], 0);
    assert_eq!(objects(&node), before);
    assert!(run_dir_is_gone(&node));
    let again = cleanup(&node, &["--with-pods"], 0);
    assert_eq!(again.stdout, "removed 0 kernel objects\n");
    assert_eq!(objects(&node), before);
    assert!(run_dir_is_gone(&node));
}

#[test]
fn cleanup_follows_a_killed_daemon_once_its_pods_are_gone_and_a_new_start_works() {
    let lab = Lab::builder().nodes(2).start();
    let node = lab.node(1);
    let before = objects(&node);
    lab.start_daemons();
    let pod = node.add_pod("one");
    node.kill_daemon();
    assert!(pod.del().success());
    cleanup(&node, &[], 0);
    assert_eq!(objects(&node), before);
    node.restart_daemon();
    let (one, two) = (node.add_pod("one"), lab.node(2).add_pod("two"));
    assert_eq!(one.tcp_source(two.serve().v4()), one.v4());
}

#[test]
fn cleanup_of_a_node_that_never_had_anything_does_nothing() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let before = node.objects();
    assert_eq!(cleanup(&node, &[], 0).stdout, "removed 0 kernel objects\n");
    assert_eq!(node.objects(), before);
    assert!(run_dir_is_gone(&node));
}
