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

mod access;
mod control_plane;

pub use access::{Authority, Identity};
pub use control_plane::{Builder, ControlPlane};
