//! Real Kubernetes in the lab.
//!
//! ```no_run
//! use tests::Lab;
//! use tests::kubernetes::ControlPlane;
//!
//! let lab = Lab::builder().nodes(2).start();
//! let plane = ControlPlane::start(&lab);
//! for node in lab.nodes() {
//!     plane.create_node(&node.manifest());
//! }
//! println!("{}", plane.kubectl(&["get", "nodes"]));
//! ```
//!
//! A [`ControlPlane`] is etcd, kube-apiserver, kube-controller-manager and, on demand, kube-scheduler on a host of their own at
//! 192.0.2.5 (2001:db8:1::5) beside the nodes. The programs are built from their Go modules, or taken from the directories
//! that `KUBERNETES_BINARIES` and `KUBEBUILDER_ASSETS` name: see [`crate::go`]. All they write is in the host's own
//! memory, so everything goes away with the lab.
//!
//! A [`Cluster`] is that with every node of the lab a whole machine: containerd, runc, kubelet and kube-proxy of its own, with
//! `/etc`, `/opt`, `/var` and `/run` of its own, in a part of the machine's cgroups of its own; the control plane runs on node-1.
//! Images are made from static programs, and loaded. It has no pod network until somebody installs one.

mod access;
mod cluster;
mod control_plane;
mod dns;
mod image;
mod install;
mod kubectl;
mod machine;

pub use access::{Authority, Identity};
pub use cluster::{AGNHOST_IMAGE, Builder as ClusterBuilder, Cluster, is_ready};
pub use control_plane::{Builder, ControlPlane};
pub use image::Image;

/// The address of the Service that pods ask for names, the tenth of the Services' range as kubeadm has it.
pub const DNS_ADDRESS: &str = "10.96.0.10";

/// How kube-proxy makes Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// nftables.
    Nftables,
    /// iptables, as far as this machine's programs are iptables-nft.
    Iptables,
}

impl Proxy {
    /// The name that kube-proxy knows it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}
