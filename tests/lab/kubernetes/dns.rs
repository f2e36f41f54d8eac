//! Names: CoreDNS as an ordinary Deployment behind the Service that pods ask.

use anyhow::Result;

use super::{Cluster, Image};
use crate::go;

const MANIFESTS: &str = include_str!("dns.yaml");

impl Cluster {
    /// Installs cluster DNS and waits until it is Ready. Pods need a network for it.
    ///
    /// # Errors
    /// If that fails; with the state and the logs of everything.
    pub fn install_dns(&self) -> Result<()> {
        self.import(&Image::of_program("overlayd.test/coredns:1", &go::program("coredns")?))?;
        self.plane().try_apply(MANIFESTS)?;
        self.try_wait_pods("kube-system", "k8s-app=kube-dns", 1).map(drop)
    }
}
