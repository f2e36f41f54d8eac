//! The snapshot as text for a terminal. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use crate::core::conflist::ConflistStatus;
use crate::core::forward::DropReason;
use crate::core::status::{PeerStatus, Status, age};

/// Lays out the whole picture, what is wrong first. Control characters in foreign names are shown escaped.
pub(super) fn render(status: &Status) -> String {
    let mut out = String::new();
    head(&mut out, status);
    peers(&mut out, &status.peers);
    section(
        &mut out,
        "Pods",
        &["ADDRESSES", "VETH", "CONTAINER", "INTERFACE"],
        status.leases.iter().map(|lease| {
            let veth = if lease.veth.is_empty() { "(being made)" } else { &lease.veth };
            vec![lease.addresses.join(","), veth.to_owned(), lease.container.clone(), lease.ifname.clone()]
        }),
    );
    list(
        &mut out,
        "Conflicts: foreign objects stand in the way",
        status
            .conflicts
            .iter()
            .map(|conflict| format!("{}\n    remedy: {}", conflict.object, conflict.remedy)),
    );
    list(
        &mut out,
        "Nodes refused",
        status.refused.iter().map(|refused| format!("{}: {}", refused.node, refused.reason)),
    );
    let dropped = status.drops.iter().filter(|(_, count)| **count > 0);
    list(
        &mut out,
        "Dropped packets",
        dropped.map(|(reason, count)| format!("{count} {reason}: {}", meaning(reason))),
    );
    if let Some(error) = &status.last_error {
        let _ = writeln!(out, "\nLast error: {}", clean(error));
    }
    out
}

fn head(out: &mut String, status: &Status) {
    let ready =
        if status.ready { "yes".to_owned() } else { format!("NO: {}", status.not_ready_reasons.join("; ")) };
    let mtu = if status.mtu == 0 { "MTU not known yet".to_owned() } else { format!("MTU {}", status.mtu) };
    let workers = format!("{} worker{}", status.workers, if status.workers == 1 { "" } else { "s" });
    let stepped: Vec<String> = status
        .offloads
        .iter()
        .filter(|(_, state)| *state != "on")
        .map(|(name, state)| format!("{name} {state}"))
        .collect();
    let offloads = match (status.offloads.is_empty(), stepped.is_empty()) {
        (true, _) => "not known yet".to_owned(),
        (false, true) => "all on".to_owned(),
        (false, false) => stepped.join("; "),
    };
    let rounds = &status.reconcile;
    let kernel = format!(
        "{} changes in {} rounds, {} failed",
        rounds.changes,
        rounds.succeeded + rounds.failed,
        rounds.failed
    );
    let rows = [
        ("Node", format!("{} (overlayd {}, process {})", status.node, status.version, status.pid)),
        ("Ready", ready),
        ("Mode", status.mode.clone()),
        ("Device", format!("{}, {mtu}, {workers}", status.device)),
        ("Tunnel", format!("UDP {}, VNI {}, from {}", status.port, status.vni, or_none(&status.underlay))),
        ("Pod CIDRs", or_none(&status.pod_cidrs)),
        ("Addresses", or_none(&status.tunnel_addresses)),
        ("Nodes from", status.source.clone()),
        ("Offloads", offloads),
        (
            "Runtime",
            status.conflist.as_ref().map_or_else(|| "no network configuration to keep".to_owned(), runtime),
        ),
        ("Kernel", kernel),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:<11}{}", clean(&value));
    }
}

/// The runtime's network configuration in words.
fn runtime(conflist: &ConflistStatus) -> String {
    let written = if conflist.written { "" } else { "NOT written: " };
    let chained = conflist.chained.iter().map(|name| format!(", with {name}"));
    let missing = match conflist.missing.as_slice() {
        [] => String::new(),
        missing => format!("; not installed: {}", missing.join(", ")),
    };
    format!("{written}{}{}{missing}", conflist.file, chained.collect::<String>())
}

fn peers(out: &mut String, peers: &[PeerStatus]) {
    if peers.is_empty() {
        out.push_str("\nPeers: none\n");
        return;
    }
    let heads = ["NAME", "UNDERLAY", "POD CIDRS", "MTU", "SENT", "LAST", "RECEIVED", "LAST"];
    section(
        out,
        "Peers",
        &heads,
        peers.iter().map(|peer| {
            vec![
                peer.name.clone(),
                peer.underlay.join(","),
                peer.pod_cidrs.join(","),
                peer.mtu.to_string(),
                format!("{} / {}", peer.tx_packets, bytes(peer.tx_bytes)),
                ago(peer.tx_age_ms),
                format!("{} / {}", peer.rx_packets, bytes(peer.rx_bytes)),
                ago(peer.rx_age_ms),
            ]
        }),
    );
    for peer in peers {
        if let Some(trouble) = &peer.trouble {
            let _ = writeln!(out, "  ! {}: {}", clean(&peer.name), clean(trouble));
        }
    }
}

/// A titled table with aligned columns; nothing if there is no row.
pub(super) fn section(
    out: &mut String,
    title: &str,
    heads: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) {
    let head = heads.iter().map(|&head| head.to_owned()).collect();
    let body = rows.map(|row| {
        row.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { clean(cell) }).collect()
    });
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    if lines.len() == 1 {
        return;
    }
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..heads.len()).map(|column| width(column).unwrap_or(0)).collect();
    let _ = writeln!(out, "\n{title}");
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
}

/// A titled list; nothing if it is empty.
pub(super) fn list(out: &mut String, title: &str, items: impl Iterator<Item = String>) {
    let items: Vec<String> = items.collect();
    if items.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    for item in items {
        let lines: Vec<String> = item.lines().map(clean).collect();
        let _ = writeln!(out, "  {}", lines.join("\n"));
    }
}

/// No foreign text moves the cursor of an operator's terminal.
fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn ago(milliseconds: Option<u64>) -> String {
    milliseconds.map_or_else(|| "never".to_owned(), |ms| age(Duration::from_millis(ms)))
}

fn meaning(reason: &str) -> &'static str {
    let known = DropReason::ALL.iter().find(|known| known.name() == reason);
    known.map_or("not known to this version", |known| known.meaning())
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut scaled = count;
    let mut unit = 0;
    while scaled >= 1024 * 1024 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", scaled / 1024, scaled % 1024 * 10 / 1024, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::plan::Conflict;
    use crate::core::status::{LeaseStatus, RefusedStatus};

    #[test]
    fn what_is_wrong_is_on_the_screen() {
        let drop = DropReason::ALL[0];
        let status = Status {
            node: "a".to_owned(),
            not_ready_reasons: vec!["no Node named a".to_owned()],
            peers: vec![PeerStatus {
                name: "b".to_owned(),
                tx_packets: 1200,
                trouble: Some("tx 1200 packets, nothing received".to_owned()),
                ..PeerStatus::default()
            }],
            conflicts: vec![Conflict {
                object: "link flannel.1".to_owned(),
                remedy: "ip link del flannel.1".to_owned(),
            }],
            refused: vec![RefusedStatus { node: "c".to_owned(), reason: "no podCIDR".to_owned() }],
            drops: [(drop.name().to_owned(), 9)].into(),
            last_error: Some("netlink: no".to_owned()),
            ..Status::default()
        };
        let text = render(&status);
        for part in [
            "NO: no Node named a",
            "! b: tx 1200 packets, nothing received",
            "remedy: ip link del flannel.1",
            "c: no podCIDR",
            drop.meaning(),
            "Last error: netlink: no",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn columns_line_up() {
        let lease = |container: &str| LeaseStatus {
            veth: "ovp0".to_owned(),
            container: container.to_owned(),
            ifname: "eth0".to_owned(),
            addresses: vec!["10.1.0.2".to_owned()],
        };
        let status = Status { leases: vec![lease("short"), lease("much-longer")], ..Status::default() };
        let text = render(&status);
        let columns: Vec<usize> = text.lines().filter_map(|line| line.find("eth0")).collect();
        assert_eq!(columns.len(), 2);
        assert_eq!(columns[0], columns[1], "{text}");
    }

    #[test]
    fn a_foreign_name_cannot_move_the_cursor() {
        let refused = RefusedStatus { node: "\u{1b}[2Jx".to_owned(), reason: "bad".to_owned() };
        let text = render(&Status { refused: vec![refused], ..Status::default() });
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn byte_counts_carry_their_unit() {
        for (count, words) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"), (5 << 30, "5.0 GiB")]
        {
            assert_eq!(bytes(count), words);
        }
    }
}
