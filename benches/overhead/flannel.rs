//! flannel with its `udp` backend as a contender: one packet per system call, in C, in the program that users would otherwise run. It carries
//! IPv4 in IPv4 only. Its leases are in an etcd on one of its nodes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tests::{Lab, Process, eventually};

use crate::world::tool;

/// Name of the device that it makes.
pub(crate) const DEVICE: &str = "flannel0";

/// Its hosts are in `10.SUBNET.N.0/24` behind node N.
pub(crate) const SUBNET: u8 = 95;

/// Where it keeps its leases.
const PREFIX: &str = "/coreos.com/network";
const ETCD_PORT: u16 = 2379;

const SOON: Duration = Duration::from_secs(30);

/// What it takes.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    flanneld: PathBuf,
    etcd: PathBuf,
}

impl Programs {
    /// Builds them, unless they are there.
    pub(crate) fn find() -> Result<Self> {
        let nft = Command::new("nft").arg("--version").output();
        ensure!(
            nft.is_ok_and(|output| output.status.success()),
            "flannel needs the program nft: install nftables"
        );
        Ok(Self { flanneld: tests::go::program("flanneld")?, etcd: tests::go::program("etcd")? })
    }
}

/// Runs it on two nodes; the processes, the two that carry packets first.
pub(crate) fn start(lab: &Lab, numbers: [usize; 2], programs: &Programs) -> Result<Vec<Process>> {
    let nodes = numbers.map(|number| lab.node(number));
    let address = |which: usize| -> Result<IpAddr> {
        nodes[which].addresses().iter().find(|address| address.is_ipv4()).copied().context("no IPv4 address")
    };
    let server = SocketAddr::new(address(0)?, ETCD_PORT);
    let url = format!("http://{server}");
    let etcd = nodes[0].command(&programs.etcd.to_string_lossy());
    let etcd = etcd.args(["--data-dir", "/run/etcd", "--unsafe-no-fsync", "--log-level", "error"]);
    let etcd = etcd.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]).try_spawn()?;
    let mut entries = vec![(
        "config".to_owned(),
        json!({"Network": format!("10.{SUBNET}.0.0/16"), "EnableNFTables": true, "Backend": {"Type": "udp"}}),
    )];
    for (which, number) in numbers.into_iter().enumerate() {
        // Without an end: a reservation, which the node of that address takes.
        let key = format!("subnets/10.{SUBNET}.{number}.0-24");
        entries.push((key, json!({"PublicIP": address(which)?.to_string()})));
    }
    for (key, value) in entries {
        eventually("etcd takes flannel's configuration", SOON, || {
            assert!(etcd.running(), "{}", etcd.stderr());
            let entry = [server.to_string(), format!("{PREFIX}/{key}"), value.to_string()];
            tool(&nodes[0], "etcd-put").and_then(|put| put.args(entry).try_run()).is_ok()
        });
    }
    let mut running = Vec::new();
    for node in &nodes {
        let flanneld =
            node.command(&programs.flanneld.to_string_lossy()).args(["--etcd", &url]).try_spawn()?;
        eventually("flannel is ready", SOON, || {
            assert!(flanneld.running(), "{}", flanneld.stderr());
            flanneld.stderr().contains("flannel is ready")
        });
        running.push(flanneld);
    }
    running.push(etcd);
    Ok(running)
}

/// Writes a key into etcd.
#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    server: SocketAddr,
    key: String,
    value: String,
}

/// By the JSON form of its interface.
pub(crate) fn put(options: &Put) -> Result<()> {
    let encoded = |text: &str| BASE64_STANDARD.encode(text);
    let body = json!({"key": encoded(&options.key), "value": encoded(&options.value)}).to_string();
    let server = options.server;
    let mut stream = TcpStream::connect_timeout(&server, SOON).context("connect to etcd")?;
    stream.set_read_timeout(Some(SOON))?;
    write!(
        stream,
        "POST /v3/kv/put HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("etcd's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("etcd's answer has no end")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "etcd refused: {answer}");
    serde_json::from_str::<Value>(body).map(drop).map_err(|why| anyhow!("etcd said {body:?}: {why}"))
}
