//! What is built, and from which module.

/// One of the modules under `tests/go`.
#[derive(Debug)]
pub(super) struct Module {
    /// Its directory there.
    pub(super) name: &'static str,
    /// "X is" or "Y are", for the sentence that says what is missing.
    pub(super) title: &'static str,
    /// The Go version that it asks for.
    pub(super) go: &'static str,
    /// Variables that may name a directory with the programs, in this order.
    pub(super) variables: &'static [&'static str],
    /// What decides what is built.
    pub(super) files: &'static [&'static str],
    pub(super) programs: &'static [Program],
    /// What the linker sets, for its `-X`.
    pub(super) definitions: fn() -> Vec<String>,
    /// Whether parts are in C.
    pub(super) has_c: bool,
    /// Build tags. runc has one: without libseccomp it refuses every pod with a seccomp profile.
    pub(super) tags: &'static str,
}

/// A program of a module.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    /// Built as the package's tests.
    pub(super) is_test: bool,
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package, is_test: false }
}

macro_rules! files {
    ($module:literal) => {
        &[
            include_str!(concat!("../../go/", $module, "/go.mod")),
            include_str!(concat!("../../go/", $module, "/go.sum")),
        ]
    };
}

/// For directories with any of the programs of a cluster.
const OWN: &str = "KUBERNETES_BINARIES";
/// For directories with etcd, kube-apiserver and kubectl: the convention of Kubernetes' envtest.
const ENVTEST: &str = "KUBEBUILDER_ASSETS";

const KUBERNETES_FILES: &[&str] = files!("kubernetes");

pub(super) const CNI: Module = Module {
    name: "cni",
    title: "the reference CNI plugins are",
    go: "1.24.2",
    variables: &["CNI_PLUGINS"],
    files: files!("cni"),
    programs: &[
        program("cnitool", "github.com/containernetworking/cni/cnitool"),
        program("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
        program("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
        program("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
        program("bandwidth", "github.com/containernetworking/plugins/plugins/meta/bandwidth"),
        program("ptp", "github.com/containernetworking/plugins/plugins/main/ptp"),
    ],
    definitions: Vec::new,
    has_c: false,
    tags: "",
};

pub(super) const MODULES: &[Module] = &[
    CNI,
    Module {
        name: "etcd",
        title: "etcd is",
        go: "1.26",
        variables: &[OWN, ENVTEST],
        files: files!("etcd"),
        programs: &[program("etcd", "go.etcd.io/etcd/server/v3")],
        definitions: Vec::new,
        has_c: false,
        tags: "",
    },
    Module {
        name: "kubernetes",
        title: "Kubernetes' own programs are",
        go: "1.26",
        variables: &[OWN, ENVTEST],
        files: KUBERNETES_FILES,
        programs: &[
            program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            program("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            program("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            program("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
            program("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
            Program { name: "e2e.test", package: "k8s.io/kubernetes/test/e2e", is_test: true },
        ],
        definitions: kubernetes_definitions,
        has_c: false,
        tags: "",
    },
    Module {
        name: "flannel",
        title: "flannel is",
        go: "1.26",
        variables: &[OWN],
        files: &[
            include_str!("../../go/flannel/go.mod"),
            include_str!("../../go/flannel/go.sum"),
            include_str!("../../go/flannel/main.go"),
        ],
        programs: &[program("flanneld", ".")],
        definitions: Vec::new,
        // Its backend udp.
        has_c: true,
        tags: "",
    },
    Module {
        name: "containerd",
        title: "containerd is",
        go: "1.26.6",
        variables: &[OWN],
        files: files!("containerd"),
        programs: &[
            program("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            program(
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            ),
            program("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
        definitions: Vec::new,
        has_c: false,
        tags: "",
    },
    Module {
        name: "runc",
        title: "runc is",
        go: "1.26",
        variables: &[OWN],
        files: files!("runc"),
        programs: &[program("runc", "github.com/opencontainers/runc")],
        definitions: Vec::new,
        has_c: true,
        tags: "seccomp",
    },
    Module {
        name: "cri",
        title: "crictl is",
        go: "1.26.6",
        variables: &[OWN],
        files: files!("cri"),
        programs: &[program("crictl", "sigs.k8s.io/cri-tools/cmd/crictl")],
        definitions: Vec::new,
        has_c: false,
        tags: "",
    },
    Module {
        name: "coredns",
        title: "CoreDNS is",
        go: "1.26",
        variables: &[OWN],
        files: files!("coredns"),
        programs: &[program("coredns", "github.com/coredns/coredns")],
        definitions: Vec::new,
        has_c: false,
        tags: "",
    },
    Module {
        name: "pause",
        title: "the program of a pod's first container is",
        go: "1.24",
        variables: &[OWN],
        files: &[include_str!("../../go/pause/go.mod"), include_str!("../../go/pause/main.go")],
        programs: &[program("pause", ".")],
        definitions: Vec::new,
        has_c: false,
        tags: "",
    },
    Module {
        name: "wireguard",
        title: "wireguard-go is",
        go: "1.24.2",
        variables: &["WIREGUARD_GO"],
        files: files!("wireguard"),
        programs: &[program("wireguard", "golang.zx2c4.com/wireguard")],
        definitions: Vec::new,
        has_c: false,
        tags: "",
    },
];

/// The version of the module `k8s.io/kubernetes`.
pub(super) fn kubernetes_version() -> &'static str {
    let mut words = KUBERNETES_FILES[0].lines().map(str::split_whitespace);
    let version = words.find_map(|mut words| (words.next()? == "k8s.io/kubernetes").then(|| words.next())?);
    version.unwrap_or("v0.0.0")
}

/// The programs do not know their version by themselves, and refuse one another without it.
fn kubernetes_definitions() -> Vec<String> {
    let version = kubernetes_version();
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mut definitions = Vec::new();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        definitions.push(format!("{package}.gitVersion={version}"));
        definitions.push(format!("{package}.gitMajor={major}"));
        definitions.push(format!("{package}.gitMinor={minor}"));
    }
    definitions
}
