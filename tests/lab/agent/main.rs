//! The process that lives inside the lab: holds its namespaces, starts what tests ask for, and is every
//! tool that tests run there. Not meant to be started by hand.

mod dump;
mod init;
mod ioctl;
mod load;
mod net;
mod traffic;
mod vxlan;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use traffic::relay::Harm;
use traffic::tcp::Way;
use traffic::udp::{Fragments, Pour, Probe};

#[derive(Debug, Parser)]
#[command(about = "The process that lives inside the lab; started by the lab, not by hand")]
struct Arguments {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Makes the lab's namespaces and serves the control socket on standard input.
    Hold,
    /// Adds /run/netns/NAME.
    NetnsAdd { name: String },
    /// Deletes /run/netns/NAME.
    NetnsDelete { name: String },
    /// Writes standard input to a file: aside first, then renamed into place.
    Put { path: PathBuf },
    /// Prints a file.
    Cat { path: PathBuf },
    /// Prints links, addresses, routes, rules and counters.
    Dump,
    /// Carries out one step of network setup (JSON) in this network namespace.
    Step { step: String },
    /// Serves TCP and UDP.
    Serve { port: u16 },
    /// TCP: asks which address the server sees.
    TcpWho { server: SocketAddr, time_ms: u64 },
    /// TCP: moves many bytes.
    TcpBulk { server: SocketAddr, bytes: u64, way: Way, seed: u64, time_ms: u64 },
    /// TCP: one echo per interval until standard input ends.
    TcpStream { server: SocketAddr, interval_ms: u64, patience_ms: u64 },
    /// UDP: echoes of one size, with the errors that come back.
    UdpProbe { server: SocketAddr, fragments: Fragments, size: usize, count: u32, time_ms: u64 },
    /// UDP: one way, counted by the server.
    UdpFlood { server: SocketAddr, size: usize, packets: u64, per_second: u64 },
    /// UDP: one echo per interval until standard input ends.
    UdpStream { server: SocketAddr, interval_ms: u64, patience_ms: u64 },
    /// UDP: ping-pong.
    Rtt { server: SocketAddr, count: u32 },
    /// ICMP echo.
    Ping { target: IpAddr, size: usize, count: u32, time_ms: u64 },
    /// Sends one IP packet given in hex.
    Inject { packet: String },
    /// Collects packets on an interface until standard input ends.
    Sniff { interface: String },
    /// Carries frames between two interfaces, with losses.
    Relay { left: String, right: String, drop: f64, duplicate: f64, reorder: f64, seed: u64 },
    /// Makes load as described (JSON) and reports what it cost.
    Load { load: String },
    /// The other end of a load.
    LoadServe,
    /// Lets processes run on one CPU only, or on any.
    Pin { cpu: String, processes: Vec<i32> },
    /// HTTP GET.
    HttpGet { server: SocketAddr, path: String, time_ms: u64 },
    /// HTTP GET until the answer is 200.
    HttpAwait { server: SocketAddr, path: String, time_ms: u64 },
}

fn main() -> ExitCode {
    match run(Arguments::parse().tool) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(tool: Tool) -> Result<()> {
    let ms = Duration::from_millis;
    match tool {
        Tool::Hold => init::hold(),
        Tool::NetnsAdd { name } => init::add_netns(&name),
        Tool::NetnsDelete { name } => init::delete_netns(&name),
        Tool::Put { path } => put(&path),
        Tool::Cat { path } => {
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(io::stdout().write_all(&bytes)?)
        }
        Tool::Dump => dump::dump(),
        Tool::Step { step } => net::inside(serde_json::from_str(&step).context("step")?),
        Tool::Serve { port } => traffic::server::serve(port),
        Tool::TcpWho { server, time_ms } => traffic::tcp::who(server, ms(time_ms)),
        Tool::TcpBulk { server, bytes, way, seed, time_ms } => {
            traffic::tcp::bulk(server, bytes, way, seed, ms(time_ms))
        }
        Tool::TcpStream { server, interval_ms, patience_ms } => {
            traffic::tcp::stream(server, ms(interval_ms), ms(patience_ms))
        }
        Tool::UdpProbe { server, fragments, size, count, time_ms } => {
            traffic::udp::probe(server, fragments, Probe { size, count, time: ms(time_ms) })
        }
        Tool::UdpFlood { server, size, packets, per_second } => {
            traffic::udp::flood(server, Pour { size, packets, per_second })
        }
        Tool::UdpStream { server, interval_ms, patience_ms } => {
            traffic::udp::stream(server, ms(interval_ms), ms(patience_ms))
        }
        Tool::Rtt { server, count } => traffic::udp::rtt(server, count),
        Tool::Ping { target, size, count, time_ms } => traffic::raw::ping(target, size, count, ms(time_ms)),
        Tool::Inject { packet } => traffic::raw::inject(&packet),
        Tool::Sniff { interface } => traffic::sniff::sniff(&interface),
        Tool::Relay { left, right, drop, duplicate, reorder, seed } => {
            traffic::relay::relay(&left, &right, Harm { drop, duplicate, reorder, seed })
        }
        Tool::Load { load } => load::run(&serde_json::from_str(&load).context("load")?),
        Tool::LoadServe => load::serve(),
        Tool::Pin { cpu, processes } => load::pin(&cpu, &processes),
        Tool::HttpGet { server, path, time_ms } => traffic::http::get(server, &path, ms(time_ms)),
        Tool::HttpAwait { server, path, time_ms } => traffic::http::await_ok(server, &path, ms(time_ms)),
    }
}

fn put(path: &std::path::Path) -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    fs::write(&aside, &bytes).with_context(|| format!("write {}", path.display()))?;
    fs::rename(&aside, path).with_context(|| format!("rename to {}", path.display()))
}
