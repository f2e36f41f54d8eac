//! Who reaches whom, and as whom.

use std::net::{IpAddr, SocketAddr};

use tests::{Host, Lab, Server};

use crate::report::Report;

/// What is tried against what.
#[derive(Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) lab: &'a Lab,
    /// Node index and pod.
    pub(crate) pods: Vec<(usize, Host)>,
    /// The addresses of each node's end of the tunnel.
    pub(crate) tunnels: Vec<Vec<IpAddr>>,
}

fn short(host: &Host) -> &str {
    host.label().split('@').next().unwrap_or_default()
}

/// Who may be seen when `host` talks: its own addresses, and for a node its tunnel addresses too.
pub(crate) fn matching(allowed: &[IpAddr], seen: Option<IpAddr>) -> bool {
    seen.is_some_and(|seen| allowed.contains(&seen))
}

/// Every pod and node to every pod, every pod to the outside, by TCP and UDP.
pub(crate) fn show(matrix: &Matrix<'_>, report: &mut Report) {
    let started = report.attempt("servers in pods and outside", || {
        let servers: Vec<Server> = matrix.pods.iter().map(|(_, pod)| pod.serve()).collect();
        (servers, matrix.lab.outside().serve())
    });
    let Some((servers, outside)) = started else { return };
    let families: &[bool] =
        if matrix.pods.iter().any(|(_, pod)| pod.addresses().len() > 1) { &[true, false] } else { &[true] };
    for v4 in families {
        let family = if *v4 { "IPv4" } else { "IPv6" };
        report.heading(&format!("Who reaches whom over {family}, by TCP and UDP, and as whom"));
        let names: String = servers.iter().map(|server| format!(" {:^7}", short(server))).collect();
        let width = if *v4 { 24 } else { 48 };
        report.line(&format!("  {:<width$}{names} {:^7}  seen as", "from \\ to", "outside"));
        let pods = matrix.pods.iter().map(|(node, pod)| (*node, pod, true));
        let nodes = matrix.lab.nodes().iter().enumerate().map(|(index, node)| (index, &**node, false));
        for (node, host, is_pod) in pods.chain(nodes) {
            row(matrix, report, &Row { node, host, is_pod, v4: *v4, servers: &servers, outside: &outside });
        }
    }
}

struct Row<'a> {
    node: usize,
    host: &'a Host,
    is_pod: bool,
    v4: bool,
    servers: &'a [Server],
    outside: &'a Server,
}

fn row(matrix: &Matrix<'_>, report: &mut Report, row: &Row<'_>) {
    let node = &matrix.lab.nodes()[row.node];
    let mut own = row.host.addresses().to_vec();
    if !row.is_pod {
        own.extend(&matrix.tunnels[row.node]);
    }
    let (mut cells, mut inside_seen, mut outside_seen) = (String::new(), Vec::new(), Vec::new());
    let targets = row.servers.iter().map(|server| (server, false)).chain([(row.outside, true)]);
    for (server, is_outside) in targets {
        if server.label() == row.host.label() {
            cells += &format!(" {:^7}", "·");
            continue;
        }
        let Some(address) = server.addresses().iter().find(|address| address.is_ipv4() == row.v4) else {
            continue;
        };
        // Behind its node's address: that is what island mode promises to the outside.
        let allowed = if is_outside { node.addresses() } else { &own };
        let (ok, seen) = probe(report, row.host, server, server.at(*address), allowed);
        let list = if is_outside { &mut outside_seen } else { &mut inside_seen };
        for address in seen {
            if !list.contains(&address) {
                list.push(address);
            }
        }
        cells += &format!("    {}   ", report.mark(ok));
    }
    let join = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let first = row.host.addresses().iter().find(|address| address.is_ipv4() == row.v4);
    let name = format!("{:<7}{}", short(row.host), first.map(ToString::to_string).unwrap_or_default());
    let seen = report.dim(&format!("pods: {}; outside: {}", join(&inside_seen), join(&outside_seen)));
    let width = if row.v4 { 24 } else { 48 };
    report.line(&format!("  {name:<width$}{cells} {seen}"));
}

fn probe(
    report: &mut Report,
    from: &Host,
    to: &Server,
    address: SocketAddr,
    allowed: &[IpAddr],
) -> (bool, Vec<IpAddr>) {
    let family = if address.is_ipv4() { "" } else { ", IPv6" };
    let name = |kind: &str| format!("{} to {} by {kind}{family}", short(from), short(to));
    let tcp = report.attempt(&name("TCP"), || from.tcp(address));
    let udp = report.attempt(&name("UDP"), || from.udp(address, 128));
    let (Some(tcp), Some(udp)) = (tcp, udp) else { return (false, Vec::new()) };
    let mut seen = Vec::new();
    let mut all = true;
    let answers = [
        ("TCP", tcp.seen.map(|seen| seen.ip()), tcp.error.unwrap_or_default()),
        ("UDP", udp.seen.map(|seen| seen.ip()), format!("no answer: {udp:?}")),
    ];
    for (kind, address, error) in answers {
        let ok = matching(allowed, address);
        let detail = address.map_or(error, |address| format!("seen as {address}"));
        all &= report.keep(name(kind), ok, detail);
        seen.extend(address);
    }
    (all, seen)
}
