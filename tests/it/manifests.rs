//! The manifests of `deploy/` say what the program understands, and give it no more than it needs.

#![expect(clippy::unwrap_used, reason = "what surprises a test's helper fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use overlayd::core::config::{Config, ENVIRONMENT_PREFIX, KEYS, MachineFacts, RawConfig};
use serde_json::{Value, json};
use tests::binaries::Binaries;
use tests::go::program;
use tests::kubernetes::ControlPlane;
use tests::{Lab, Output, eventually};

const NAME: &str = "ghcr.io/overlayd/overlayd";

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)).unwrap()
}

fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// The object of this kind; there must be one.
#[track_caller]
fn only(objects: &[Value], kind: &str) -> Value {
    let found: Vec<&Value> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "one {kind} in {objects:?}");
    found[0].clone()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn named<'a>(items: &'a [Value], name: &str) -> &'a Value {
    items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name} in {items:?}"))
}

/// What the container's variables say, with an example for what Kubernetes fills in.
fn variables(container: &Value) -> BTreeMap<String, String> {
    let value = |variable: &Value| {
        let example = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("spec.nodeName") => "node-1",
            Some("status.hostIP") => "192.0.2.7",
            None => variable["value"].as_str().unwrap(),
            Some(other) => panic!("what is {other}?"),
        };
        (variable["name"].as_str().unwrap().to_owned(), example.to_owned())
    };
    list(container, "env").iter().map(value).collect()
}

/// Where each volume is mounted, and whether it can be written.
fn mounts(container: &Value) -> BTreeMap<String, (String, bool)> {
    let mount = |mount: &Value| {
        let volume = mount["name"].as_str().unwrap().to_owned();
        (mount["mountPath"].as_str().unwrap().to_owned(), (volume, mount["readOnly"] != json!(true)))
    };
    list(container, "volumeMounts").iter().map(mount).collect()
}

struct Shipped {
    objects: Vec<Value>,
    pod: Value,
    daemon: Value,
    install: Value,
    config: Config,
}

fn shipped() -> Shipped {
    let objects = objects(&read("overlayd.yaml"));
    let pod = only(&objects, "DaemonSet")["spec"]["template"]["spec"].clone();
    let daemon = named(list(&pod, "containers"), "overlayd").clone();
    let install = named(list(&pod, "initContainers"), "install").clone();
    let text = only(&objects, "ConfigMap")["data"]["config.yaml"].as_str().unwrap().to_owned();
    let machine = MachineFacts { hostname: "other".into(), cpus: 2, memory: 4 << 30 };
    let resolved =
        Config::resolve(Some(("config.yaml", &text)), &variables(&daemon), &RawConfig::default(), &machine);
    let config = resolved.unwrap_or_else(|faults| panic!("{faults:?}"));
    Shipped { objects, pod, daemon, install, config }
}

#[test]
fn the_settings_of_the_manifest_are_understood_and_fit_the_mounts() {
    let Shipped { pod, daemon, install, config, .. } = shipped();
    assert_eq!(config.node_name, "node-1");
    assert_eq!(config.admin_listen.unwrap().to_string(), "192.0.2.7:9472");
    let at = |path: &Path| path.to_str().unwrap().to_owned();
    let conf_dir = at(config.cni_conf_dir.as_deref().unwrap());
    let expected: BTreeMap<String, (String, bool)> = [
        ("/etc/overlayd".to_owned(), ("config".to_owned(), false)),
        (at(&config.run_dir), ("run".to_owned(), true)),
        (conf_dir.clone(), ("cni-conf".to_owned(), true)),
        (at(&config.cni_bin_dir), ("cni-bin".to_owned(), false)),
        (at(&config.sysctl_dir.join("net")), ("sysctl-net".to_owned(), true)),
        ("/dev/net/tun".to_owned(), ("tun".to_owned(), true)),
    ]
    .into();
    assert_eq!(mounts(&daemon), expected);
    let of_install: BTreeMap<String, (String, bool)> = [
        ("/etc/overlayd".to_owned(), ("config".to_owned(), false)),
        (at(&config.cni_bin_dir), ("cni-bin".to_owned(), true)),
    ]
    .into();
    assert_eq!(mounts(&install), of_install);
    // What a volume is on the host: where runtimes look by default, and where the plugin looks for the daemon.
    let volumes = list(&pod, "volumes");
    let host = |name: &str| named(volumes, name)["hostPath"].clone();
    let run_dir = Path::new(wire::tag::DEFAULT_SOCKET).parent().unwrap();
    assert_eq!(host("run"), json!({"path": run_dir, "type": "DirectoryOrCreate"}));
    assert_eq!(host("cni-conf"), json!({"path": "/etc/cni/net.d", "type": "DirectoryOrCreate"}));
    assert_eq!(host("cni-bin"), json!({"path": "/opt/cni/bin", "type": "DirectoryOrCreate"}));
    assert_eq!(host("sysctl-net"), json!({"path": "/proc/sys/net", "type": "Directory"}));
    assert_eq!(host("tun"), json!({"path": "/dev/net/tun", "type": "CharDevice"}));
    assert_eq!(named(volumes, "config")["configMap"], json!({"name": "overlayd"}));
    assert_eq!(volumes.len(), 6);
}

#[test]
fn the_pod_has_no_more_rights_than_it_needs() {
    let Shipped { objects, pod, daemon, install, .. } = shipped();
    let few = |capabilities: Value| json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": capabilities});
    assert_eq!(daemon["securityContext"], few(json!({"drop": ["ALL"], "add": ["NET_ADMIN"]})));
    assert_eq!(install["securityContext"], few(json!({"drop": ["ALL"]})));
    assert_eq!(pod["securityContext"], json!({"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}));
    assert_eq!(
        (&pod["hostNetwork"], &pod["hostPID"], &pod["hostIPC"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    let rules: BTreeSet<(Vec<String>, String, Vec<String>)> = list(&only(&objects, "ClusterRole"), "rules")
        .iter()
        .flat_map(|rule| {
            let words = |key: &str| -> Vec<String> {
                list(rule, key).iter().map(|word| word.as_str().unwrap().to_owned()).collect()
            };
            words("resources").into_iter().map(move |resource| (words("apiGroups"), resource, words("verbs")))
        })
        .collect();
    let rule = |groups: &[&str], resource: &str, verbs: &[&str]| {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        (own(groups), resource.to_owned(), own(verbs))
    };
    let expected = [
        rule(&[""], "nodes", &["get", "list", "watch"]),
        rule(&[""], "nodes/status", &["patch"]),
        rule(&["events.k8s.io"], "events", &["create"]),
    ];
    assert_eq!(rules, expected.into());
    let binding = only(&objects, "ClusterRoleBinding");
    assert_eq!(
        binding["subjects"],
        json!([{"kind": "ServiceAccount", "name": "overlayd", "namespace": "overlayd"}])
    );
    assert_eq!(pod["serviceAccountName"], "overlayd");
    let namespace = only(&objects, "Namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
}

#[test]
fn the_pod_comes_first_and_goes_gently() {
    let Shipped { objects, pod, daemon, .. } = shipped();
    let set = only(&objects, "DaemonSet");
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["enableServiceLinks"], json!(false), "OVERLAYD_PORT=tcp://... would be a setting");
    assert!(pod["terminationGracePeriodSeconds"].as_u64().is_some_and(|seconds| (2..=10).contains(&seconds)));
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    assert_eq!(set["spec"]["updateStrategy"], strategy);
    assert_eq!(set["spec"]["selector"]["matchLabels"], set["spec"]["template"]["metadata"]["labels"]);
    let resources = &daemon["resources"];
    assert!(resources["requests"]["cpu"].is_string() && resources["limits"]["memory"].is_string());
    assert_eq!(resources["limits"]["cpu"], Value::Null, "it would throttle the packets");
    // The pod of an update stands beside the one before it, which a port of the host would not allow.
    assert!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 1 && daemon["ports"].is_null());
    assert_eq!(named(list(&daemon, "env"), "OVERLAYD_TAKE_OVER")["value"], "true");
    let port = json!(9472);
    let probe = |name: &str| daemon[name]["httpGet"].clone();
    assert_eq!(probe("livenessProbe"), json!({"path": "/healthz", "port": port}));
    assert_eq!(probe("readinessProbe"), json!({"path": "/readyz", "port": port}));
    let annotations = &set["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"].as_str(), Some(&*port.to_string()));
    assert_eq!(annotations["prometheus.io/path"], "/metrics");
}

/// Every container of every manifest, with the file that it stands in.
fn containers() -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    for name in ["overlayd.yaml", "uninstall.yaml"] {
        let pod = only(&objects(&read(name)), "DaemonSet")["spec"]["template"]["spec"].clone();
        for key in ["initContainers", "containers"] {
            all.extend(list(&pod, key).iter().map(|container| (name, container.clone())));
        }
    }
    assert_eq!(all.len(), 4);
    all
}

#[test]
fn every_container_runs_one_image_by_a_command_line_that_exists() {
    let overlayd = Binaries::build().unwrap().overlayd();
    for (file, container) in containers() {
        assert_eq!(container["image"], json!(format!("{NAME}:{}", env!("CARGO_PKG_VERSION"))), "{file}");
        assert_eq!(container["command"], Value::Null, "{file}: the image's entry point is the program");
        let args: Vec<&str> = list(&container, "args").iter().map(|arg| arg.as_str().unwrap()).collect();
        let output = Command::new(&overlayd).args(&args).arg("--help").stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{file}: overlayd {args:?}: {output:?}");
    }
    let dockerfile = read("Dockerfile");
    assert!(dockerfile.contains("ENTRYPOINT [\"/usr/local/bin/overlayd\"]"));
    assert!(dockerfile.contains("COPY --from=build /out/overlayd /out/cni-shim /usr/local/bin/"));
    assert!(dockerfile.contains("\nFROM scratch\n"));
}

#[test]
fn what_is_installed_is_uninstalled() {
    let pod = only(&objects(&read("uninstall.yaml")), "DaemonSet")["spec"]["template"]["spec"].clone();
    let config = shipped().config;
    for container in list(&pod, "initContainers").iter().chain(list(&pod, "containers")) {
        let args: Vec<&str> = list(container, "args").iter().map(|arg| arg.as_str().unwrap()).collect();
        for (flag, directory) in
            [("cni-conf-dir", config.cni_conf_dir.as_ref().unwrap()), ("cni-bin-dir", &config.cni_bin_dir)]
        {
            let flag = format!("--{flag}={}", directory.display());
            assert!(args.contains(&flag.as_str()), "{flag} is not in {args:?}");
            assert!(
                mounts(container)[directory.to_str().unwrap()].1,
                "{} can be written",
                directory.display()
            );
        }
        assert!(mounts(container).contains_key(config.run_dir.to_str().unwrap()));
        assert_eq!(container["securityContext"], shipped().daemon["securityContext"]);
    }
    assert_eq!(pod["automountServiceAccountToken"], json!(false));
}

#[test]
fn the_variants_set_keys_that_exist() {
    let mut seen = BTreeSet::new();
    for name in variants() {
        let [component] = &objects(&read(&format!("variants/{name}/kustomization.yaml")))[..] else {
            panic!("{name}")
        };
        assert_eq!(component["kind"], "Component", "{name}");
        for patch in list(component, "patches") {
            let patch = &objects(patch["patch"].as_str().unwrap())[0];
            let container = named(list(&patch["spec"]["template"]["spec"], "containers"), "overlayd");
            for variable in variables(container).keys() {
                let key = variable.strip_prefix(ENVIRONMENT_PREFIX).unwrap().to_lowercase();
                assert!(KEYS.iter().any(|known| known.name == key), "{name}: {variable}");
            }
        }
        assert!(read("kustomization.yaml").contains(&format!("variants/{name} ")), "{name} is offered");
        seen.insert(name);
    }
    assert!(seen.contains("privileged") && seen.len() >= 3, "{seen:?}");
}

/// What kubectl makes of the manifest with these components.
fn kustomized(variants: &[String]) -> String {
    let kubectl = program("kubectl").unwrap();
    // kubectl wants relative paths: a directory beside `deploy`, gone with its value.
    let directory = tempfile::tempdir().unwrap();
    let deploy = directory.path().join("deploy");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let copied = Command::new("cp").arg("-r").arg(source).arg(&deploy).status().unwrap();
    assert!(copied.success());
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let components: Vec<String> = variants.iter().map(|name| format!("../deploy/variants/{name}")).collect();
    let whole = json!({"resources": ["../deploy"], "components": components});
    std::fs::write(root.join("kustomization.yaml"), whole.to_string()).unwrap();
    let output = Command::new(kubectl).arg("kustomize").arg(root).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{variants:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn variants() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/variants");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    std::fs::read_dir(directory).unwrap().map(name).collect()
}

#[test]
fn kubectl_builds_every_variant_and_all_of_them_together() {
    let plain = objects(&kustomized(&[]));
    let of = |objects: &[Value]| {
        let pod = only(objects, "DaemonSet")["spec"]["template"]["spec"].clone();
        named(list(&pod, "containers"), "overlayd").clone()
    };
    // kustomize changes nothing by itself.
    let mut shipped = objects(&read("overlayd.yaml"));
    let mut built = plain.clone();
    for all in [&mut shipped, &mut built] {
        all.sort_by_key(|object| object["kind"].as_str().map(str::to_owned));
    }
    assert_eq!(built, shipped);
    let changes = |name: &str| of(&objects(&kustomized(&[name.to_owned()])));
    let privileged = changes("privileged");
    assert_eq!(privileged["securityContext"], json!({"privileged": true, "readOnlyRootFilesystem": true}));
    for (variant, variable) in [
        ("flannel", "OVERLAYD_ANNOTATION_PREFIX"),
        ("dual-stack", "OVERLAYD_CLUSTER_CIDRS"),
        ("api-server", "OVERLAYD_API_SERVER"),
    ] {
        let container = changes(variant);
        let added: Vec<String> = variables(&container)
            .into_keys()
            .filter(|key| !variables(&of(&plain)).contains_key(key))
            .collect();
        assert_eq!(added, [variable], "{variant}");
        assert_eq!(container["securityContext"], of(&plain)["securityContext"], "{variant}");
    }
    let all = of(&objects(&kustomized(&variants())));
    assert_eq!(variables(&all).len(), variables(&of(&plain)).len() + 3);
    assert_eq!(all["securityContext"]["privileged"], json!(true));
}

#[test]
fn a_real_api_server_takes_every_manifest_and_variant() {
    let lab = Lab::builder().nodes(1).deadline(Duration::from_secs(300)).start();
    let plane = ControlPlane::builder(&lab).without_controllers().start();
    let apply = |text: &str, how: &[&str]| {
        let command = plane.kubectl_command().unwrap().args(["apply", "--validate=strict", "-f", "-"]);
        let output = command.args(how).stdin(text).output();
        assert!(output.success() && output.stderr.is_empty(), "{output}\n{text}");
    };
    for name in ["overlayd.yaml", "uninstall.yaml", "node-policy.yaml"] {
        apply(&read(name), &[]);
    }
    for variant in variants() {
        apply(&kustomized(&[variant]), &["--dry-run=server"]);
    }
    apply(&kustomized(&variants()), &["--dry-run=server"]);
}

#[test]
fn the_policy_lets_a_nodes_token_speak_of_its_own_node_alone() {
    let lab = Lab::builder().nodes(2).deadline(Duration::from_secs(300)).start();
    let plane = ControlPlane::builder(&lab).without_controllers().start();
    for node in lab.nodes() {
        plane.create_node(&node.manifest());
    }
    plane.apply(&read("overlayd.yaml"));
    // kubectl reads what it patches; overlayd does not.
    plane.kubectl(&["create", "clusterrole", "look", "--verb=get", "--resource=nodes/status"]);
    plane.kubectl(&[
        "create",
        "clusterrolebinding",
        "look",
        "--clusterrole=look",
        "--serviceaccount=overlayd:overlayd",
    ]);
    let bound = ["--bound-object-kind=Node", "--bound-object-name=node-1"];
    let token =
        plane.kubectl(&[&["-n", "overlayd", "create", "token", "overlayd"], bound.as_slice()].concat());
    let unbound = plane.kubectl(&["-n", "overlayd", "create", "token", "overlayd"]);
    let host = plane.host();
    let patch = |token: &str, node: &str, patch: &Value| {
        host.write_file("/run/token", plane.kubeconfig_with(&plane.url(), token.trim()));
        let command = plane.kubectl_command().unwrap().env("KUBECONFIG", "/run/token");
        command.args(["patch", "node", node, "--subresource=status", "-p"]).arg(patch).output()
    };
    let annotate = json!({"metadata": {"annotations": {"overlayd.io/public-ip": "192.0.2.11"}}});
    let condition = json!({"status": {"conditions": [{
        "type": "NetworkUnavailable", "status": "False", "reason": "OverlaydIsReady", "message": "ready",
    }]}});
    // Without the policy RBAC alone decides, and a token of one node reaches the other's.
    let reached = patch(&token, "node-2", &annotate);
    assert!(reached.success(), "{reached}");
    plane.apply(&read("node-policy.yaml"));
    let refused = |output: &Output, why: &str| !output.success() && output.stderr.contains(why);
    eventually("the policy is in force", Duration::from_secs(30), || {
        refused(
            &patch(
                &token,
                "node-2",
                &json!({"metadata": {"annotations": {"x": fastrand::u64(..).to_string()}}}),
            ),
            "token was made for, node-1, not node-2",
        )
    });
    for allowed in [&annotate, &condition] {
        let output = patch(&token, "node-1", allowed);
        assert!(output.success(), "{output}");
    }
    let nameless = patch(&unbound, "node-1", &json!({"metadata": {"annotations": {"x": "2"}}}));
    assert!(refused(&nameless, "which it does not name"), "{nameless}");
    for (harm, why) in [
        (json!({"metadata": {"labels": {"x": "y"}}}), "neither labels nor the spec"),
        (
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.66"}]}}),
            "neither addresses nor capacity",
        ),
        (json!({"status": {"capacity": {"cpu": "1000"}}}), "neither addresses nor capacity"),
    ] {
        let output = patch(&token, "node-1", &harm);
        assert!(refused(&output, why), "{harm}: {output}");
    }
    // Others are not its business.
    plane.kubectl(&["label", "node", "node-2", "touched=yes"]);
    plane.set_addresses("node-2", &["192.0.2.99".parse().unwrap()]);
}
