//! A door to the API server that does harm on demand.

use std::net::SocketAddr;
use std::time::Duration;

use super::Host;
use crate::go;
use crate::must;
use crate::process::Process;
use crate::traffic::ApiHarms;

/// Where the door is; on the loopback device, so that plain HTTP is allowed.
const DOOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8001);
/// Where `kubectl proxy` stands behind it, which speaks TLS with the server.
const BEHIND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8002);
/// Thousands of objects take their time.
const LONG: Duration = Duration::from_secs(300);
/// Its kubeconfig.
const KUBECONFIG: &str = "/run/lab/proxy.kubeconfig";

impl Host {
    /// Opens a door to the API server of a kubeconfig. Who comes shows a token of its own.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    #[track_caller]
    pub fn api_proxy(&self, kubeconfig: &str) -> ApiProxy {
        self.write_file(KUBECONFIG, kubeconfig);
        let kubectl = must(go::program("kubectl"));
        let behind = self
            .command(&kubectl.to_string_lossy())
            .env("HOME", "/run/lab")
            .args(["proxy", "--kubeconfig", KUBECONFIG, "--port", &BEHIND.port().to_string()])
            .spawn();
        behind.wait_stdout(|line| line.starts_with("Starting to serve"));
        let door = self.tool("api-proxy").args([DOOR, BEHIND]).spawn();
        door.wait_stdout(|line| line == "proxying");
        ApiProxy { host: self.clone(), _door: door, _behind: behind }
    }
}

/// A door to the API server; closes when dropped.
#[derive(Debug)]
pub struct ApiProxy {
    host: Host,
    _door: Process,
    _behind: Process,
}

impl ApiProxy {
    /// Its URL, for programs on the same host.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{DOOR}")
    }

    /// Makes so many Node objects, with two pod CIDRs, two addresses and the images of a busy node each.
    ///
    /// # Panics
    /// If the API server refuses one.
    #[track_caller]
    pub fn fill(&self, nodes: usize) {
        self.host.tool("api-fill").args([BEHIND.to_string(), nodes.to_string()]).deadline(LONG).run();
    }

    /// Changes those Nodes at this rate; `matters` says whether the network is concerned.
    ///
    /// # Panics
    /// If the API server refuses a change.
    #[track_caller]
    pub fn churn(&self, nodes: usize, rate: u32, seconds: u32, matters: bool) {
        let numbers = [nodes as u64, rate.into(), seconds.into(), matters.into()];
        self.host.tool("api-churn").arg(BEHIND).args(numbers).deadline(LONG).run();
    }

    /// From now on it does this.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn harm(&self, harms: &ApiHarms) {
        let text = must(serde_json::to_string(harms).map_err(Into::into));
        self.ask(&format!("/-/harm?{}", crate::packet::hex(text.as_bytes())));
    }

    /// How many lists and watches of Nodes were asked for.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    #[track_caller]
    pub fn counts(&self) -> (u64, u64) {
        must(serde_json::from_str(&self.ask("/-/counts")).map_err(Into::into))
    }

    #[track_caller]
    fn ask(&self, path: &str) -> String {
        let answer = must(self.host.http(DOOR, path));
        assert_eq!(answer.status, 200, "the door to the API server: {}", answer.body);
        answer.body
    }
}
