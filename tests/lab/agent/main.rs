//! The process that lives inside the lab: holds its namespaces, starts what tests ask for, and is every
//! tool that tests run there. Not meant to be started by hand.

mod api_load;
mod api_proxy;
mod dump;
mod firewall;
mod init;
mod ioctl;
mod load;
mod machine;
mod net;
mod refuse;
mod rtnetlink;
mod socket;
mod traffic;
mod view;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tests::Refusal;
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
    Put {
        path: PathBuf,
        /// Permission bits, octal.
        #[arg(long, default_value = "644", value_parser = octal)]
        mode: u32,
    },
    /// Gives this mount namespace the directories of a machine of its own.
    Machine,
    /// Ends every program of this machine and empties its memory, as a power cut does. What is on its disk stays.
    PowerCut,
    /// Prints a file.
    Cat { path: PathBuf },
    /// Puts a symbolic link in the place of whatever has this path, by a rename.
    Symlink { target: PathBuf, path: PathBuf },
    /// Deletes a file.
    Remove { path: PathBuf },
    /// Prints links, addresses, routes, rules and counters.
    Dump,
    /// Prints kernel objects in a form that can be compared.
    Objects { device: String },
    /// Becomes this program, with no capability but one, for ever.
    Bounded {
        /// Also make /proc/sys read-only, and its net writable here.
        #[arg(long)]
        sysctl_net: Option<PathBuf>,
        capability: u32,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<String>,
    },
    /// Becomes this program, under a kernel that refuses an offload.
    Refuse {
        refusal: Refusal,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<String>,
    },
    /// Makes an nftables table that nobody else may change, until standard input ends.
    NftOwn { table: String },
    /// Carries out the nf_tables transaction on standard input.
    FirewallApply,
    /// Prints all nf_tables objects.
    FirewallDump,
    /// Prints permission bits (octal) and owner of a file.
    Mode { path: PathBuf },
    /// Opens connections to a unix socket and says next to nothing on them.
    Loiter { path: PathBuf, count: usize, hex: String },
    /// Relays the plugin's requests under another version.
    Skew {
        path: PathBuf,
        target: PathBuf,
        #[arg(long, allow_hyphen_values = true)]
        by: i8,
        #[arg(long)]
        unknown: Option<u8>,
    },
    /// Prints links, addresses and routes as JSON.
    Observe,
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
    /// Sends the IP packets on standard input, each a line of hex, in order.
    Inject,
    /// Collects packets on an interface until standard input ends.
    Sniff { interface: String },
    /// Carries frames between two interfaces, with losses.
    Relay { left: String, right: String, drop: f64, duplicate: f64, reorder: f64, seed: u64 },
    /// Stands before the API server behind `kubectl proxy`, and does harm on demand.
    ApiProxy { listen: SocketAddr, server: SocketAddr },
    /// Makes many Nodes.
    ApiFill { server: SocketAddr, count: usize },
    /// Changes Nodes at a rate; the last argument says whether the changes matter to the network.
    ApiChurn { server: SocketAddr, count: usize, rate: u32, seconds: u32, matters: u8 },
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
        Tool::Put { path, mode } => put(&path, mode),
        Tool::Machine => machine::prepare(),
        Tool::PowerCut => machine::cut_power(),
        Tool::Cat { path } => {
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(io::stdout().write_all(&bytes)?)
        }
        Tool::Symlink { target, path } => symlink(&target, &path),
        Tool::Remove { path } => fs::remove_file(&path).with_context(|| format!("remove {}", path.display())),
        Tool::Dump => dump::dump(),
        Tool::Objects { device } => view::objects(&device),
        Tool::Bounded { sysctl_net, capability, argv } => {
            if let Some(path) = sysctl_net {
                init::contain_sysctls(&path)?;
            }
            bounded(capability, &argv)
        }
        Tool::Refuse { refusal, argv } => refuse::under(refusal, &argv),
        Tool::NftOwn { table } => firewall::own(&table),
        Tool::FirewallApply => firewall::apply(),
        Tool::FirewallDump => firewall::dump(),
        Tool::Mode { path } => {
            let found = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
            println!("{:o} {}", found.mode() & 0o7777, found.uid());
            Ok(())
        }
        Tool::Loiter { path, count, hex } => socket::loiter(&path, count, &hex),
        Tool::Skew { path, target, by, unknown } => socket::skew(&path, &target, by, unknown),
        Tool::Observe => view::observe(),
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
        Tool::Inject => traffic::raw::inject(),
        Tool::Sniff { interface } => traffic::sniff::sniff(&interface),
        Tool::Relay { left, right, drop, duplicate, reorder, seed } => {
            traffic::relay::relay(&left, &right, Harm { drop, duplicate, reorder, seed })
        }
        Tool::ApiProxy { listen, server } => api_proxy::serve(listen, server),
        Tool::ApiFill { server, count } => api_load::fill(server, count),
        Tool::ApiChurn { server, count, rate, seconds, matters } => {
            api_load::churn(server, count, rate, seconds, matters != 0)
        }
        Tool::Load { load } => load::run(&serde_json::from_str(&load).context("load")?),
        Tool::LoadServe => load::serve(),
        Tool::Pin { cpu, processes } => load::pin(&cpu, &processes),
        Tool::HttpGet { server, path, time_ms } => traffic::http::get(server, &path, ms(time_ms)),
        Tool::HttpAwait { server, path, time_ms } => traffic::http::await_ok(server, &path, ms(time_ms)),
    }
}

/// What systemd does for `CapabilityBoundingSet=` and `NoNewPrivileges=`.
fn bounded(capability: u32, argv: &[String]) -> Result<()> {
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    let prctl = |option: i32, argument: u32| {
        // SAFETY: these options take integers and touch no memory.
        match unsafe { libc::prctl(option, libc::c_ulong::from(argument), 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    for other in (0..=last).filter(|other| *other != capability) {
        prctl(libc::PR_CAPBSET_DROP, other).with_context(|| format!("drop capability {other}"))?;
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context("set no_new_privs")?;
    let (program, args) = argv.split_first().context("no program given")?;
    Err(std::process::Command::new(program).args(args).exec()).with_context(|| format!("become {program}"))
}

fn symlink(target: &std::path::Path, path: &std::path::Path) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    std::os::unix::fs::symlink(target, &aside).with_context(|| format!("link {}", path.display()))?;
    fs::rename(&aside, path).with_context(|| format!("rename to {}", path.display()))
}

fn octal(text: &str) -> Result<u32, std::num::ParseIntError> {
    u32::from_str_radix(text, 8)
}

fn put(path: &std::path::Path, mode: u32) -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    fs::write(&aside, &bytes).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(mode)).context("set permissions")?;
    fs::rename(&aside, path).with_context(|| format!("rename to {}", path.display()))
}
