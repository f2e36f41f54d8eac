//! What the demo tries.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use overlayd::core::status::Status;
use tests::load::{Direction, Load, Measured, Outcome, Work};
use tests::{Beside, Families, Host, Lab, Pod, Way, eventually};

use crate::matrix::{Matrix, matching};
use crate::report::Report;

/// How long each measurement of speed counts.
const MEASURE: Duration = Duration::from_millis(1000);

/// An overlay that reaches less than this share of a plain route has lost its offloads: one packet per system call
/// measures about 0.05, all offloads in place 0.3 and more.
const FLOOR: f64 = 0.1;

/// The lab with everything running.
#[derive(Debug)]
pub(crate) struct World<'a> {
    lab: &'a Lab,
    /// Node index and pod.
    pub(crate) pods: Vec<(usize, Pod)>,
    pub(crate) statuses: Vec<Status>,
}

impl<'a> World<'a> {
    /// Starts daemons and pods. `None` if that fails: there is nothing to look at then.
    pub(crate) fn start(lab: &'a Lab, pods_per_node: usize, report: &mut Report) -> Option<Self> {
        let begin = Instant::now();
        report.attempt("daemons ready", || lab.start_daemons())?;
        let ms = begin.elapsed().as_millis();
        report.check("daemons ready", true, format!("{} daemons: {ms} ms", lab.nodes().len()));
        let begin = Instant::now();
        let pods = report.attempt("pods added by the CNI plugin", || {
            let mut pods = Vec::new();
            for (index, node) in lab.nodes().iter().enumerate() {
                for _ in 0..pods_per_node {
                    let name = format!("pod-{}", pods.len() + 1);
                    pods.push((index, node.add_pod(&name)));
                }
            }
            pods
        })?;
        let each = begin.elapsed().as_secs_f64() * 1e3 / pods.len() as f64;
        report.check("pods added by the CNI plugin", true, format!("{} pods, {each:.1} ms each", pods.len()));
        let statuses = report
            .attempt("status of every node", || lab.nodes().iter().map(|node| node.status()).collect())?;
        Some(Self { lab, pods, statuses })
    }

    /// Who reaches whom, and as whom.
    pub(crate) fn matrix(&self) -> Matrix<'a> {
        Matrix {
            lab: self.lab,
            pods: self.pods.iter().map(|(node, pod)| (*node, Host::clone(pod))).collect(),
            tunnels: self.lab.nodes().iter().map(tests::Node::tunnel_addresses).collect(),
        }
    }

    fn pod_on(&self, node: usize, nth: usize) -> Option<&Pod> {
        self.pods.iter().filter(|(owner, _)| *owner == node).map(|(_, pod)| pod).nth(nth)
    }
}

/// The largest packet passes whole; one byte more brings back an ICMP that says how much would fit.
pub(crate) fn path_mtu(world: &World<'_>, report: &mut Report) {
    report.heading("Path MTU with don't-fragment, from node-1 to node-2");
    let mtu = world.statuses[0].mtu;
    let Some(server) = world.pod_on(1, 0) else { return };
    let probes = report.attempt("path MTU", || {
        let serving = server.serve();
        let pod = world.lab.node(1).add_pod("mtu-probe");
        // The pod's own link would refuse a longer packet itself; the router is to answer.
        pod.set_link_mtu("eth0", mtu + 50);
        world.lab.node(1).set_link_mtu(&pod.host_link(), mtu + 50);
        let headers = |address: IpAddr| if address.is_ipv4() { 28 } else { 48 };
        let result: Vec<_> = server
            .addresses()
            .iter()
            .map(|address| {
                let fit = mtu as usize - headers(*address);
                let at = serving.at(*address);
                (*address, pod.udp_df(at, fit), pod.udp_df(at, fit + 1))
            })
            .collect();
        pod.del();
        result
    });
    for (address, fits, too_big) in probes.into_iter().flatten() {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        report.check(
            &format!("{mtu} bytes of {family} pass"),
            fits.answered == 1 && fits.icmp.is_empty(),
            format!("{} sent, {} answered, {} ICMP", fits.sent, fits.answered, fits.icmp.len()),
        );
        let icmp = too_big.icmp.first();
        let detail = match icmp {
            Some(icmp) => format!(
                "ICMP type {} code {} from {}: mtu {}",
                icmp.kind,
                icmp.code,
                icmp.from.map_or("?".into(), |from| from.to_string()),
                icmp.mtu.unwrap_or(0)
            ),
            None => format!("no ICMP: {too_big:?}"),
        };
        let ok = too_big.answered == 0 && icmp.and_then(|icmp| icmp.mtu) == Some(mtu);
        report.check(&format!("{} bytes bring an ICMP back", mtu + 1), ok, detail);
    }
}

/// Through the overlay, through the kernel's vxlan and through plain routes, in turns, on the same nodes.
pub(crate) fn speed(world: &World<'_>, report: &mut Report) {
    report.heading("Speed from node-1 to node-2, beside the kernel's vxlan and no tunnel at all");
    let (Some(client), Some(server)) = (world.pod_on(0, 0), world.pod_on(1, 0)) else { return };
    let ways = [("vxlan", 98, 1450, Way::KernelVxlan), ("plain", 99, 1500, Way::Plain)];
    let measured = report.attempt("speed", || -> anyhow::Result<Vec<[Measured; 3]>> {
        let mut pairs = vec![[Host::clone(client), Host::clone(server)]];
        for (name, subnet, mtu, way) in ways {
            let beside = Beside { name: name.into(), subnet, families: Families::V4, mtu, way };
            pairs.push(world.lab.add_beside([1, 2], &beside)?);
        }
        pairs.iter().map(|[client, server]| measure(client, server)).collect()
    });
    let Some(measured) = measured else { return };
    let measured = match measured {
        Ok(measured) => measured,
        Err(error) => {
            report.check("speed", false, format!("{error:#}"));
            return;
        }
    };
    report.line(&format!("    {:<44} {:>16} {:>16} {:>16}", "", "overlayd", "kernel vxlan", "no tunnel"));
    let rows: [(&str, Judge, Show); 3] = [
        (
            "TCP throughput, one stream, Gbit/s",
            |own, plain| own > plain * FLOOR,
            |m| (gbit(m), String::new()),
        ),
        ("UDP of 64 bytes, packets/s received (lost)", |own, plain| own > plain * FLOOR, datagrams),
        ("round trip, median, microseconds", |own, _| own < 5_000.0, |m| (median_us(m), String::new())),
    ];
    for (at, (name, judge, show)) in rows.into_iter().enumerate() {
        let values: Vec<(f64, String)> = measured.iter().map(|of_one| show(&of_one[at])).collect();
        let cells: Vec<String> = values
            .iter()
            .map(
                |(value, note)| {
                    if *value < 100.0 { format!("{value:.2}{note}") } else { format!("{value:.0}{note}") }
                },
            )
            .collect();
        let ok = judge(values[0].0, values[2].0);
        report.line(&format!(
            "  {} {name:<44} {:>16} {:>16} {:>16}",
            report.mark(ok),
            cells[0],
            cells[1],
            cells[2]
        ));
        let detail =
            format!("overlayd {}, kernel vxlan {}, without a tunnel {}", cells[0], cells[1], cells[2]);
        report.keep(name.to_owned(), ok, detail);
    }
}

/// Whether a value is good enough, given the one without a tunnel.
type Judge = fn(f64, f64) -> bool;
/// A value, and what is said behind it.
type Show = fn(&Measured) -> (f64, String);

fn measure(client: &Host, server: &Host) -> anyhow::Result<[Measured; 3]> {
    let serving = server.serve_load()?;
    let mut measured = Vec::new();
    for work in [
        Work::Tcp { streams: 1, direction: Direction::Up },
        Work::Udp { size: 64, per_second: 0 },
        Work::RoundTrips,
    ] {
        measured.push(client.load(&Load {
            server: SocketAddr::new(server.v4(), serving.port),
            work,
            warm_up: Duration::from_millis(200),
            window: MEASURE,
            watch: Vec::new(),
            count_syscalls: false,
            cpu: None,
        })?);
    }
    measured.try_into().map_err(|_| anyhow::anyhow!("three measurements"))
}

fn gbit(measured: &Measured) -> f64 {
    let Outcome::Bytes(bytes) = measured.outcome else { return 0.0 };
    bytes as f64 * 8.0 / measured.usage.seconds / 1e9
}

fn datagrams(measured: &Measured) -> (f64, String) {
    let Outcome::Datagrams(datagrams) = measured.outcome else { return (0.0, String::new()) };
    let rate = datagrams.in_window as f64 / measured.usage.seconds;
    (rate, format!(" ({:.1} %)", datagrams.loss() * 100.0))
}

fn median_us(measured: &Measured) -> f64 {
    let Outcome::RoundTrips { quantiles_us, .. } = &measured.outcome else { return f64::INFINITY };
    quantiles_us.get(quantiles_us.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// A daemon is killed and comes back under traffic.
pub(crate) fn restart(world: &World<'_>, report: &mut Report) {
    report.heading("The daemon of node-1 is killed (-9) and comes back, under traffic");
    let node = world.lab.node(1);
    let (Some(local), Some(remote)) = (world.pod_on(0, 0), world.pod_on(1, 0)) else { return };
    let happened = report.attempt("kill and restart", || {
        let neighbour = world.pod_on(0, 1).cloned().unwrap_or_else(|| node.add_pod("neighbour"));
        let (far, near, outside) = (remote.serve(), neighbour.serve(), world.lab.outside().serve());
        let leases = |status: Status| {
            let mut leases: Vec<_> =
                status.leases.into_iter().map(|lease| (lease.container, lease.addresses)).collect();
            leases.sort();
            leases
        };
        let added = [local.container_id(), neighbour.container_id()];
        eventually("the daemon lists the leases of both pods", Duration::from_secs(5), || {
            let leases = node.status().leases;
            added.iter().all(|id| leases.iter().any(|lease| lease.container == *id))
        });
        let before = leases(node.status());
        let (across, within) = (local.tcp_stream(far.v4()), local.udp_stream(near.v4()));
        across.wait_echoes(20);
        node.kill_daemon();
        let down = Instant::now();
        let while_down = [local.tcp(near.v4()), node.tcp(near.v4()), local.tcp(outside.v4())];
        let egress = while_down[2].seen.map(|seen| seen.ip());
        node.restart_daemon();
        let downtime = down.elapsed();
        eventually("traffic across nodes is back", Duration::from_secs(10), || local.tcp(far.v4()).ok);
        let recovered = down.elapsed();
        across.wait_echoes(20);
        let (across, within) = (across.stop(), within.stop());
        let after = leases(node.status());
        (while_down, egress, downtime, recovered, across, within, before, after)
    });
    let Some((while_down, egress, downtime, recovered, across, within, before, after)) = happened else {
        return;
    };
    report.check(
        "daemon down: pods of the node reach each other",
        while_down[0].ok,
        while_down[0].error.clone().unwrap_or_else(|| "new TCP connection".into()),
    );
    report.check(
        "daemon down: the node reaches its pods",
        while_down[1].ok,
        while_down[1].error.clone().unwrap_or_else(|| "as a kubelet's probe does".into()),
    );
    report.check(
        "daemon down: pods reach the outside as their node",
        matching(node.addresses(), egress),
        egress.map_or("no answer".into(), |seen| format!("seen as {seen}")),
    );
    report.check(
        "same-node datagrams lost",
        within.sent == within.answered && within.error.is_none(),
        format!("{} of {}", within.sent - within.answered, within.sent),
    );
    report.check(
        "TCP connection across nodes goes on",
        across.error.is_none() && across.answered > 0,
        across.error.clone().unwrap_or_else(|| {
            format!(
                "{} echoes, longest pause {} ms (daemon away {} ms, new connections after {} ms)",
                across.answered,
                across.longest_gap_ms,
                downtime.as_millis(),
                recovered.as_millis()
            )
        }),
    );
    let kept = before == after;
    let detail =
        if kept { format!("{} leases", after.len()) } else { format!("before {before:?}, after {after:?}") };
    report.check("pods keep their addresses", kept, detail);
}
