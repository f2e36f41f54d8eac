//! The picture of the lab.

use overlayd::core::status::Status;
use tests::{Lab, Pod};

/// Three boxes side by side fit a terminal of 100 columns.
const BOXES_PER_ROW: usize = 3;

/// The topology: what hangs from what, with its addresses.
pub(crate) fn topology(lab: &Lab, statuses: &[Status], pods: &[(usize, Pod)]) -> Vec<String> {
    let list = |addresses: &[std::net::IpAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("  ")
    };
    let boxes: Vec<Vec<String>> = lab
        .nodes()
        .iter()
        .zip(statuses)
        .enumerate()
        .map(|(index, (node, status))| {
            let mut lines = vec![node.name().to_owned(), format!("eth0  {}", list(node.addresses()))];
            for address in &status.tunnel_addresses {
                lines.push(format!("{}  {address}", status.device));
            }
            lines.push(format!("vxlan {} udp {} mtu {}", status.vni, status.port, status.mtu));
            for (_, pod) in pods.iter().filter(|(owner, _)| *owner == index) {
                let name = pod.label().split('@').next().unwrap_or_default();
                for (nth, address) in pod.addresses().iter().enumerate() {
                    let name = if nth == 0 { name } else { "" };
                    lines.push(format!("{name:<6}{address}"));
                }
            }
            lines
        })
        .collect();
    let width = boxes.iter().flatten().map(|line| line.chars().count()).max().unwrap_or(0) + 2;
    let mut picture = vec![
        format!("  outside  {}", list(lab.outside().addresses())),
        "     │".to_owned(),
        "  router and bridge of the underlay".to_owned(),
    ];
    for row in boxes.chunks(BOXES_PER_ROW) {
        picture.push(row.iter().map(|_| format!("  {:^w$}", "│", w = width + 2)).collect());
        picture.push(row.iter().map(|_| format!("  ┌{:─^width$}┐", "┴")).collect());
        let height = row.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let text = |lines: &Vec<String>| lines.get(line).cloned().unwrap_or_default();
            picture
                .push(row.iter().map(|lines| format!("  │ {:<w$}│", text(lines), w = width - 1)).collect());
        }
        picture.push(row.iter().map(|_| format!("  └{}┘", "─".repeat(width))).collect());
    }
    picture
}
