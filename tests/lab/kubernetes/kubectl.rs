//! What operators do with kubectl, on the control plane's own host.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::control_plane::{ControlPlane, DIRECTORY, PATIENCE};
use crate::go;
use crate::manifest::Manifest;
use crate::must;

impl ControlPlane {
    /// Runs kubectl as `admin`; what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        must(self.try_kubectl(args))
    }

    /// Runs kubectl as `admin`; what it printed.
    ///
    /// # Errors
    /// If it fails; with what it complained about.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_command()?.args(args).try_run()
    }

    /// kubectl as `admin`, to be given arguments.
    ///
    /// # Errors
    /// If there is no kubectl.
    pub fn kubectl_command(&self) -> Result<crate::process::Command> {
        let program = go::program("kubectl")?;
        let command =
            self.host().command(&program.to_string_lossy()).env("KUBECONFIG", self.path("admin.kubeconfig"));
        // Its cache of what the server offers.
        Ok(command
            .env("HOME", DIRECTORY)
            .env("KUBECACHEDIR", format!("{DIRECTORY}/cache"))
            .deadline(PATIENCE))
    }

    /// An object or list as the API server has it.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn get(&self, args: &[&str]) -> Value {
        must(self.try_get(args))
    }

    /// An object or list as the API server has it.
    ///
    /// # Errors
    /// If there is none.
    pub fn try_get(&self, args: &[&str]) -> Result<Value> {
        self.kubectl_command()?.arg("get").args(args).args(["-o", "json"]).try_json()
    }

    /// Applies manifests.
    ///
    /// # Panics
    /// If the API server refuses one.
    #[track_caller]
    pub fn apply(&self, manifests: &str) -> String {
        must(self.try_apply(manifests))
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// If the API server refuses one.
    pub fn try_apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_command()?.args(["apply", "-f", "-"]).stdin(manifests).try_run()
    }

    /// Makes a Node object with these annotations, pod CIDRs and addresses, as if a kubelet had registered it. Without pod CIDRs the
    /// controllers give it some.
    ///
    /// # Panics
    /// If the API server refuses it.
    #[track_caller]
    pub fn create_node(&self, node: &Manifest) {
        let mut value = node.value();
        for key in ["creationTimestamp", "resourceVersion", "uid"] {
            if let Some(metadata) = value["metadata"].as_object_mut() {
                metadata.remove(key);
            }
        }
        let command = must(self.kubectl_command());
        command.args(["create", "-f", "-"]).stdin(value.to_string()).run();
        self.set_addresses(&node.name, &node.internal_ips);
    }

    /// Sets a Node's addresses of type InternalIP.
    ///
    /// # Panics
    /// If there is no such Node.
    #[track_caller]
    pub fn set_addresses(&self, node: &str, addresses: &[IpAddr]) {
        let mut all: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
            .collect();
        all.push(json!({"type": "Hostname", "address": node}));
        // A list of addresses is replaced as a whole.
        let patch = json!({"status": {"addresses": all}}).to_string();
        self.kubectl(&["patch", "node", node, "--subresource=status", "--type=merge", "-p", &patch]);
    }
}
