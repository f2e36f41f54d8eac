//! The rig itself: the API server is a real one, gives Nodes their pod CIDRs, and keeps users apart.

use std::time::Duration;

use tests::kubernetes::ControlPlane;
use tests::{Lab, eventually};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn nodes_get_pod_cidrs_and_speak_with_tokens_of_their_own() {
    let lab = Lab::builder().nodes(2).deadline(Duration::from_secs(300)).start();
    let plane = ControlPlane::builder(&lab).user("reader", &[]).start();
    for node in lab.nodes() {
        let mut manifest = node.manifest();
        manifest.pod_cidrs.clear();
        plane.create_node(&manifest);
    }
    let mut cidrs = Vec::new();
    for node in lab.nodes() {
        let cidr = || plane.get(&["node", node.name()])["spec"]["podCIDR"].as_str().map(str::to_owned);
        eventually("the controllers give a pod CIDR", DEADLINE, || cidr().is_some());
        cidrs.extend(cidr());
    }
    cidrs.sort();
    assert_eq!(cidrs, ["10.244.0.0/24", "10.244.1.0/24"]);

    // From a node, by its own kubeconfig, with the real authority.
    let node = lab.node(1);
    let kubectl = |user: &str, args: &[&str]| {
        node.write_file("/run/kubeconfig", plane.kubeconfig(user));
        let program = tests::go::program("kubectl").unwrap();
        let command =
            node.command(&program.to_string_lossy()).env("HOME", "/run").env("KUBECONFIG", "/run/kubeconfig");
        command.args(args).deadline(DEADLINE).output()
    };
    let own = kubectl("system:node:node-1", &["get", "node", "node-1", "-o", "name"]);
    assert_eq!(own.stdout.trim(), "node/node-1", "{own}");
    let label = ["label", "node", "node-2", "touched=yes"];
    let other = kubectl("system:node:node-1", &label);
    assert!(other.stderr.contains("only its own Node object"), "{other}");
    let nobody = kubectl("reader", &["get", "nodes"]);
    assert!(nobody.stderr.contains("User \"reader\" cannot list resource \"nodes\""), "{nobody}");
    let stranger = kubectl("stranger", &["get", "nodes"]);
    assert!(stranger.stderr.contains("Unauthorized"), "{stranger}");

    plane.kubectl(&["create", "serviceaccount", "walker"]);
    plane.kubectl(&[
        "create",
        "clusterrolebinding",
        "walker",
        "--clusterrole=view",
        "--serviceaccount=default:walker",
    ]);
    let token = plane.service_account_token("default", "walker", Duration::from_secs(600));
    node.write_file("/run/account", plane.kubeconfig_with(&plane.url(), &token));
    let program = tests::go::program("kubectl").unwrap();
    let account =
        node.command(&program.to_string_lossy()).env("HOME", "/run").env("KUBECONFIG", "/run/account");
    assert_eq!(account.args(["auth", "can-i", "list", "pods"]).run().trim(), "yes");
}

#[test]
fn what_was_written_outlives_an_outage_of_the_api_server() {
    let lab = Lab::builder().nodes(1).deadline(Duration::from_secs(300)).start();
    let plane = ControlPlane::builder(&lab).without_controllers().start();
    plane.create_node(&lab.node(1).manifest());
    plane.kill_api();
    assert!(plane.try_kubectl(&["get", "nodes", "--request-timeout=2s"]).is_err());
    plane.start_api();
    let node = plane.get(&["node", "node-1"]);
    assert_eq!(node["spec"]["podCIDRs"][0], "10.244.1.0/24");
    assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.11");
}
