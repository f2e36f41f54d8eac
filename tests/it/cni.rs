//! The real plugin against the real daemon, called as a container runtime calls it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};
use tests::node::RUN_DIR;
use tests::protocol::Step;
use tests::{Cni, Families, Host, Lab, LinkState, Node, Output, Pod, eventually};

/// What a plugin is told by environment variables.
type Environment = Vec<(&'static str, String)>;

const SOON: Duration = Duration::from_secs(20);

fn prepare(node: &Node, name: &str) -> Cni {
    Cni::prepare(node, name).unwrap()
}

/// The code and message of a failure, which is exactly one document on standard output.
#[track_caller]
fn refusal(output: &Output) -> (u64, String) {
    assert_eq!(output.exit.code, Some(1), "{output}");
    // Anything but white space behind the document is an error here.
    let document: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output}"));
    let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    let known = ["cniVersion", "code", "details", "msg"];
    assert!(keys.iter().all(|key| known.contains(key)), "{output}");
    assert!(document["cniVersion"].is_string() && output.stdout.lines().count() == 1, "{output}");
    (document["code"].as_u64().unwrap(), document["msg"].as_str().unwrap().to_owned())
}

/// Success without a word on standard output.
#[track_caller]
fn done(output: &Output) {
    assert!(output.success() && output.stdout.is_empty(), "{output}");
}

#[track_caller]
fn added(output: &Output) -> Value {
    assert!(output.success(), "{output}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output}"))
}

fn whole(address: IpAddr) -> IpNet {
    address.into()
}

/// That nothing of this attachment is left on the node, and the daemon knows it.
#[track_caller]
fn assert_gone(node: &Node, cni: &Cni, addresses: &[IpAddr]) {
    let seen = node.observe();
    assert_eq!(seen.link(&cni.host_link()), None);
    for address in addresses {
        assert_eq!(seen.routes_to(whole(*address)), Vec::<&tests::observe::ObservedRoute>::new());
    }
    eventually("the lease ends", SOON, || {
        !node
            .status()
            .leases
            .iter()
            .any(|lease| lease.container == cni.container && lease.ifname == cni.ifname)
    });
}

#[track_caller]
fn assert_reachable(from: &Host, pod: &Host) {
    assert_eq!(from.ping(pod.v4(), 64, 1).answered, 1, "{} from {}", pod.v4(), from.label());
}

#[test]
fn the_result_of_add_has_the_exact_shape_of_its_version() {
    let lab = Lab::builder().nodes(1).pods(Families::Dual).start();
    lab.start_daemons();
    let node = lab.node(1);
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let mut cni = prepare(&node, "pod");
        cni.config["cniVersion"] = json!(version);
        cni.config["dns"] = json!({"nameservers": ["10.96.0.10"]});
        // The runtime finds its interface by the very text that it gave.
        cni.netns = cni.netns.replace("/run/", "/run/./");
        let output = cni.call("ADD");
        let result = added(&output);
        assert_eq!(output.stdout.lines().count(), 1, "{output}");
        let (pod, host) = (cni.inside(&result).observe(), node.observe());
        let of_family = |v6: bool| {
            let found = pod.addresses.iter().find(|address| {
                address.link == "eth0"
                    && address.net.addr().is_ipv6() == v6
                    && address.net.prefix_len() == address.net.max_prefix_len()
            });
            found.unwrap().net.to_string()
        };
        let mut ips = json!([
            {"interface": 1, "address": of_family(false), "gateway": "169.254.1.1"},
            {"interface": 1, "address": of_family(true), "gateway": "fe80::1"},
        ]);
        assert!(of_family(false).starts_with("10.244.1.") && of_family(false).ends_with("/32"));
        assert!(of_family(true).starts_with("fd00:10:244:1:") && of_family(true).ends_with("/128"));
        if version != "1.0.0" {
            ips[0]["version"] = json!("4");
            ips[1]["version"] = json!("6");
        }
        let host_link = host.link(&cni.host_link()).unwrap();
        let expected = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": host_link.name, "mac": host_link.mac},
                {"name": "eth0", "mac": pod.link("eth0").unwrap().mac, "sandbox": cni.netns},
            ],
            "ips": ips,
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "::/0", "gw": "fe80::1"},
            ],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        assert_eq!(result, expected);
        cni.previous = Some(result);
        if version != "0.3.1" {
            done(&cni.call("CHECK"));
        }
        done(&cni.call("DEL"));
    }
}

#[test]
fn version_needs_neither_daemon_nor_a_sane_environment() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let answer = |variables: &[(&str, &str)], input: &str| {
        let mut command = node.command("cni-shim").env("CNI_COMMAND", "VERSION").stdin(input);
        for (name, value) in variables {
            command = command.env(name, value);
        }
        added(&command.output())
    };
    let supported = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let newest = json!({"cniVersion": "1.1.0", "supportedVersions": supported});
    assert_eq!(answer(&[], ""), newest);
    let dummy =
        [("CNI_CONTAINERID", ""), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "d/u:m my"), ("CNI_PATH", "dummy")];
    assert_eq!(answer(&dummy, "{\"cniVersion\":\"1.1.0\"}"), newest);
    let older = json!({"cniVersion": "0.4.0", "supportedVersions": supported});
    assert_eq!(answer(&dummy, "{\"cniVersion\":\"0.4.0\"}"), older);
}

#[test]
fn check_names_every_kind_of_damage() {
    let lab = Lab::builder().nodes(1).pods(Families::Dual).start();
    lab.start_daemons();
    let node = lab.node(1);
    type Harm = fn(&Node, &Pod);
    let harms: [(&str, Harm); 18] = [
        ("has mtu 1400", |node, pod| node.set_link_mtu(&pod.host_link(), 1400)),
        ("is down", |node, pod| node.set_link_state(&pod.host_link(), LinkState::Down)),
        ("has no route to 10.244.1.", |node, pod| node.delete_route(whole(pod.v4()))),
        ("has the alias \"mine\"", |node, pod| node.set_alias(&pod.host_link(), "mine")),
        ("eth0 has no address 10.244.1.", |_, pod| pod.delete_address("eth0", whole(pod.v4()))),
        ("no default route via 169.254.1.1", |_, pod| pod.delete_route("0.0.0.0/0".parse().unwrap())),
        ("interface eth0 is down", |_, pod| pod.set_link_state("eth0", LinkState::Down)),
        ("has no route to fd00:10:244:1:", |node, pod| node.delete_route(whole(pod.v6()))),
        ("has no permanent neighbour entry for 10.244.1.", |node, pod| {
            node.delete_neighbour(&pod.host_link(), pod.v4());
        }),
        ("has no permanent neighbour entry for fd00:10:244:1:", |node, pod| {
            node.delete_neighbour(&pod.host_link(), pod.v6());
        }),
        ("does not forward ipv4", |node, pod| {
            node.sysctl(&format!("net/ipv4/conf/{}/forwarding", pod.host_link()), "0");
        }),
        ("does not forward ipv6", |node, pod| {
            node.sysctl(&format!("net/ipv6/conf/{}/forwarding", pod.host_link()), "0");
        }),
        ("a route of somebody else takes 10.244.1.", |node, pod| node.add_unreachable(whole(pod.v4()), 0)),
        ("eth0 has no address fd00:10:244:1:", |_, pod| pod.delete_address("eth0", whole(pod.v6()))),
        ("no default route via fe80::1", |_, pod| pod.delete_route("::/0".parse().unwrap())),
        ("no permanent neighbour entry for 169.254.1.1", |_, pod| {
            pod.delete_neighbour("eth0", "169.254.1.1".parse().unwrap());
        }),
        ("no permanent neighbour entry for fe80::1", |_, pod| {
            pod.delete_neighbour("eth0", "fe80::1".parse().unwrap());
        }),
        ("is missing", |_, pod| pod.delete_link("eth0")),
    ];
    let sound = node.add_pod("sound");
    let pods: Vec<Pod> = harms.iter().map(|_| node.add_pod("harmed")).collect();
    for pod in &pods {
        done(&pod.check());
    }
    // What the daemon would mend stays as it is while the daemon stands still.
    node.signal_daemon(libc::SIGSTOP);
    for ((words, harm), pod) in harms.iter().zip(&pods) {
        harm(&node, pod);
        let (code, message) = refusal(&pod.check());
        assert_eq!(code, 103, "{words}: {message}");
        assert!(message.contains(words) && message.contains(pod.container_id()), "{words}: {message}");
    }
    // Ours are as they were told, but another was promised.
    let mut promised = sound.cni();
    promised.previous.as_mut().unwrap()["interfaces"][1]["mac"] = json!("02:00:00:00:00:07");
    let (code, message) = refusal(&promised.call("CHECK"));
    assert!(code == 103 && message.contains("not 02:00:00:00:00:07"), "{code} {message}");
    node.signal_daemon(libc::SIGCONT);
    done(&sound.check());
    for pod in &pods {
        done(&pod.del());
    }
}

#[test]
fn check_needs_a_previous_result_and_a_version_that_has_it() {
    let lab = Lab::with_nodes(1);
    let pod = lab.node(1).add_pod("pod");
    let mut cni = pod.cni();
    cni.previous = None;
    assert_eq!(refusal(&cni.call("CHECK")).0, 7);
    let mut old = pod.cni();
    old.config["cniVersion"] = json!("0.3.1");
    assert_eq!(refusal(&old.call("CHECK")).0, 1);
}

#[test]
fn del_succeeds_in_every_form() {
    let lab = Lab::builder().nodes(1).pods(Families::Dual).start();
    lab.start_daemons();
    let node = lab.node(1);
    node.write_file("/run/plain", "not a namespace");
    type Form = fn(&mut Cni);
    let forms: [(&str, Form); 9] = [
        ("as it was added", |_| {}),
        ("without netns", |cni| cni.netns = String::new()),
        ("without netns and prevResult", |cni| (cni.netns, cni.previous) = (String::new(), None)),
        ("after the namespace went", |cni| cni.remove_netns()),
        ("with a plain file as netns", |cni| cni.netns = "/run/plain".into()),
        ("with a relative netns", |cni| cni.netns = "netns".into()),
        ("without prevResult", |cni| cni.previous = None),
        ("with an empty prevResult", |cni| cni.previous = Some(json!({}))),
        ("with a prevResult of another version", |cni| {
            cni.previous = Some(json!({"cniVersion": "0.2.0", "ip4": {"ip": "192.0.2.7/24"}}));
        }),
    ];
    for (form, bend) in forms {
        let pod = node.add_pod("pod");
        let mut cni = pod.cni();
        bend(&mut cni);
        for _ in 0..2 {
            let output = cni.call("DEL");
            assert!(output.success() && output.stdout.is_empty(), "{form}: {output}");
            assert_gone(&node, &cni, pod.addresses());
        }
    }
    let stranger = prepare(&node, "never added");
    done(&stranger.call("DEL"));
    let mut long = stranger.clone();
    long.container = "x".repeat(200);
    done(&long.call("DEL"));
}

/// DEL ends itself with an error when it takes more than some seconds, so success also says that it was quick.
#[test]
fn del_succeeds_without_the_daemon_and_with_one_that_hangs() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let (hung, down) = (node.add_pod("hung"), node.add_pod("down"));
    node.signal_daemon(libc::SIGSTOP);
    done(&hung.cni().call("DEL"));
    assert_eq!(node.observe().link(&hung.host_link()), None);
    node.signal_daemon(libc::SIGCONT);
    assert_gone(&node, &hung.cni(), hung.addresses());

    node.kill_daemon();
    done(&down.cni().call("DEL"));
    done(&down.cni().call("DEL"));
    assert_eq!(node.observe().link(&down.host_link()), None);
    node.restart_daemon();
    assert_gone(&node, &down.cni(), down.addresses());
}

#[test]
fn del_never_touches_what_belongs_to_another() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pod = node.add_pod("pod");
    // Another attachment in the same namespace, as after the failed ADD of a container that shares it.
    let mut other = pod.cni();
    other.container = "another".into();
    done(&other.call("DEL"));
    other.config["name"] = json!("another-network");
    other.container = pod.container_id().into();
    done(&other.call("DEL"));
    assert_reachable(&node, &pod);

    // Somebody's link that happens to have the name that is derived for us.
    let stranger = prepare(&node, "stranger");
    let name = stranger.host_link();
    node.change(Step::Bridge { space: node.name().into(), name: name.clone(), mtu: 1500 });
    done(&stranger.call("DEL"));
    assert_eq!(node.observe().link(&name).unwrap().kind, "bridge");
    let (code, message) = refusal(&stranger.call("ADD"));
    assert_eq!(code, 101, "{message}");
    assert_eq!(node.observe().link(&name).unwrap().kind, "bridge");

    // Our own kind of link, but labelled as that of somebody else.
    node.set_alias(&pod.host_link(), "uplink of the storage network");
    done(&pod.cni().call("DEL"));
    assert!(node.observe().link(&pod.host_link()).is_some());
}

#[test]
fn an_interface_that_exists_is_an_error_that_changes_nothing() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pod = node.add_pod("pod");
    eventually("the lease shows", SOON, || node.status().leases.iter().any(|lease| !lease.veth.is_empty()));
    let before = (node.observe(), pod.observe(), node.status().leases);
    let mut another = pod.cni();
    another.container = "another".into();
    for cni in [pod.cni(), another.clone()] {
        let (code, message) = refusal(&cni.call("ADD"));
        assert_eq!(code, 101, "{message}");
        assert!(message.contains("already has an interface eth0"), "{message}");
        assert_eq!((node.observe(), pod.observe(), node.status().leases), before);
    }
    // A runtime deletes what it failed to add.
    done(&another.call("DEL"));
    assert_eq!((node.observe(), pod.observe()), (before.0, before.1));
    assert_reachable(&node, &pod);
    done(&pod.check());
}

#[test]
fn a_container_may_have_a_second_interface() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pod = node.add_pod("pod");
    let mut second = pod.cni();
    second.ifname = "net1".into();
    let result = added(&second.call("ADD"));
    assert_eq!(result["interfaces"][1]["name"], "net1");
    second.previous = Some(result.clone());
    let address = second.inside(&result).v4();
    assert_ne!(address, pod.v4());
    assert!(pod.observe().has_address("net1", whole(address)));
    done(&second.call("CHECK"));
    done(&pod.check());
    assert_reachable(&node, &pod);
    done(&second.call("DEL"));
    assert_gone(&node, &second, &[address]);
    assert_reachable(&node, &pod);
    done(&pod.check());
}

#[test]
fn add_without_a_daemon_names_its_socket_and_leaves_nothing() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let cni = prepare(&node, "pod");
    let begin = Instant::now();
    let (code, message) = refusal(&cni.call("ADD"));
    assert_eq!(code, 11, "{message}");
    assert!(message.contains(&format!("{RUN_DIR}/cni.sock: no such socket")), "{message}");
    // The runtime's patience is minutes, that of people is not: 5 s and what a loaded machine adds.
    assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
    assert_eq!(node.observe().links_named("ovp"), Vec::<&str>::new());
    done(&cni.call("DEL"));
}

#[test]
fn add_and_del_beside_a_daemon_that_hangs_end_by_themselves() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pod = node.add_pod("pod");
    node.signal_daemon(libc::SIGSTOP);
    // What a loaded machine adds to the plugin's own time.
    let overhead = Duration::from_secs(3);
    let cni = prepare(&node, "new");
    let begin = Instant::now();
    let (code, message) = refusal(&cni.call("ADD"));
    assert!(code == 11 && message.contains("timed out"), "{code} {message}");
    assert!(begin.elapsed() < Duration::from_secs(20) + overhead, "{:?}", begin.elapsed());
    for cni in [cni, pod.cni()] {
        let begin = Instant::now();
        done(&cni.call("DEL"));
        assert!(begin.elapsed() < Duration::from_secs(5) + overhead, "{:?}", begin.elapsed());
        assert_eq!(node.observe().link(&cni.host_link()), None);
    }
    node.signal_daemon(libc::SIGCONT);
    eventually("every lease ends", SOON, || node.status().leases.is_empty());
}

#[test]
fn gc_beside_a_daemon_that_hangs_frees_all_that_is_stale_and_ends_by_itself() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pods: Vec<Pod> = (0..30).map(|_| node.add_pod("pod")).collect();
    let mut gc = pods[0].cni();
    gc.previous = None;
    gc.config["cniVersion"] = json!("1.1.0");
    gc.config["cni.dev/valid-attachments"] =
        json!([{"containerID": pods[0].container_id(), "ifname": "eth0"}]);
    node.signal_daemon(libc::SIGSTOP);
    let begin = Instant::now();
    done(&gc.call("GC"));
    // A second for each would be half a minute.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(node.observe().links_named("ovp"), [pods[0].host_link()]);
    assert_reachable(&node, &pods[0]);
    node.signal_daemon(libc::SIGCONT);
    eventually("the leases end", SOON, || node.status().leases.len() == 1);
}

#[test]
fn add_while_the_daemon_restarts_succeeds() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    for _ in 0..3 {
        let cni = prepare(&node, "pod");
        node.kill_daemon();
        let adding = cni.spawn("ADD");
        node.restart_daemon();
        let result = added(&adding.finish());
        assert_reachable(&node, &cni.inside(&result));
    }
    assert_eq!(node.observe().links_named("ovp").len(), 3);
}

#[test]
fn faults_of_a_call_are_judged_in_the_order_of_the_specification() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    node.write_file("/run/plain", "not a namespace");
    let call = |bend: &dyn Fn(&mut Environment), input: &str| {
        let cni = prepare(&node, "pod");
        let mut environment = cni.environment("ADD");
        bend(&mut environment);
        let mut command = node.command("cni-shim").stdin(input);
        for (name, value) in environment {
            command = command.env(name, value);
        }
        command.output()
    };
    let set = |name: &'static str, value: &'static str| {
        move |environment: &mut Vec<(&'static str, String)>| {
            let variable = environment.iter_mut().find(|(known, _)| *known == name).unwrap();
            variable.1 = value.into();
        }
    };
    let same = |_: &mut Vec<(&'static str, String)>| {};
    let good = r#"{"cniVersion":"1.0.0","name":"overlay","type":"overlayd"}"#;

    let unnamed = |environment: &mut Vec<(&'static str, String)>| environment.truncate(1);
    let (code, message) = refusal(&call(&unnamed, "not JSON"));
    assert_eq!(code, 4, "{message}");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert!(message.contains(name), "{message}");
    }
    for (name, value) in [
        ("CNI_CONTAINERID", "../etc"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_NETNS", "netns/pod"),
        ("CNI_COMMAND", "UPDATE"),
        ("CNI_COMMAND", "add"),
    ] {
        let (code, message) = refusal(&call(&set(name, value), "not JSON"));
        assert!(code == 4 && message.contains(name), "{name}={value}: {code} {message}");
    }
    for (input, expected) in [
        ("", 6),
        ("not JSON", 6),
        ("[]", 6),
        (r#"{"cniVersion":"9","name":7}"#, 6),
        (r#"{"cniVersion":"9"}"#, 7),
        (r#"{"cniVersion":"9","name":"a/b"}"#, 7),
        (r#"{"cniVersion":"9","name":"overlay"}"#, 1),
        (r#"{"cniVersion":"1.0","name":"overlay"}"#, 1),
        (r#"{"name":"overlay"}"#, 1),
        (r#"{"cniVersion":"1.0.0","name":"overlay","ipam":{"type":"host-local"}}"#, 7),
    ] {
        // The namespace is judged last: this one is none.
        let (code, message) = refusal(&call(&set("CNI_NETNS", "/run/plain"), input));
        assert_eq!(code, expected, "{input}: {message}");
    }
    for netns in ["/run/plain", "/run/nothing", "/proc/self/ns/net", "/proc/self/ns/mnt"] {
        let (code, message) = refusal(&call(&set("CNI_NETNS", netns), good));
        assert!(code == 8 && message.contains(netns), "{netns}: {code} {message}");
    }
    // Not a call at all: a person who tries it out.
    let output = call(&set("CNI_COMMAND", ""), "");
    done(&output);
    assert!(output.stderr.contains("CNI plugin"), "{output}");
    assert_eq!(refusal(&call(&same, good)).0, 11);
}

#[test]
fn a_full_pool_says_so_and_recovers() {
    let lab = Lab::builder().nodes(1).start();
    let node = lab.node(1);
    let mut manifests = lab.manifests();
    manifests[0].pod_cidrs = vec!["10.244.1.0/29".parse().unwrap()];
    lab.write_nodes(&manifests);
    lab.start_daemons();
    let early: Vec<Pod> = (0..3).map(|_| node.add_pod("early")).collect();
    let freed = early[0].v4();
    done(&early[0].del());
    let mut pods: Vec<Pod> = (0..3).map(|_| node.add_pod("later")).collect();
    assert!(pods.iter().all(|pod| pod.v4() != freed), "the freed {freed} was given again at once");
    pods.extend(early.into_iter().skip(1));
    pods.push(node.add_pod("last"));
    let addresses: BTreeSet<String> = pods.iter().map(|pod| pod.v4().to_string()).collect();
    // Neither the network's address nor that of broadcast.
    let usable = (1..=6).map(|host| format!("10.244.1.{host}")).collect();
    assert_eq!(addresses, usable);

    let one_more = prepare(&node, "one more");
    let before = node.observe();
    let (code, message) = refusal(&one_more.call("ADD"));
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("all 6 addresses of 10.244.1.0/29 are in use"), "{message}");
    assert_eq!(node.observe(), before);
    done(&one_more.call("DEL"));

    done(&pods[2].del());
    let result = added(&one_more.call("ADD"));
    let pod = one_more.inside(&result);
    assert_eq!(pod.v4(), pods[2].v4());
    assert_reachable(&node, &pod);
}

#[test]
fn a_namespace_deleted_without_del_frees_its_lease() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let pod = node.add_pod("pod");
    // One that no observation has shown as a veth counts as in flight, for a minute.
    let attached = || node.status().leases.iter().any(|lease| !lease.veth.is_empty());
    eventually("the daemon sees the veth", SOON, attached);
    pod.cni().remove_netns();
    eventually("the link goes", SOON, || node.observe().link(&pod.host_link()).is_none());
    assert_gone(&node, &pod.cni(), pod.addresses());
}

#[test]
fn the_socket_is_for_root_alone_and_bad_clients_hold_up_nobody() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let socket = format!("{RUN_DIR}/cni.sock");
    assert_eq!(node.file_mode(&socket), "600 0");
    assert_eq!(node.file_mode(RUN_DIR), "700 0");

    let garbage = node.loiter(&socket, 20, b"GET / HTTP/1.1\r\nHost: overlayd\r\n\r\n");
    let _ = node.add_pod("beside garbage");
    drop(garbage);
    // A server that serves one after the other would have closed the slow ones first, every time.
    let overtakes = || {
        let slow = node.loiter(&socket, 50, b"\x01");
        let _ = node.add_pod("beside slow clients");
        let output = slow.finish();
        assert!(output.success(), "{output}");
        output.stdout.lines().last() == Some("50")
    };
    assert!((0..5).any(|_| overtakes()), "no ADD was done before the slow clients were shut out");
}
