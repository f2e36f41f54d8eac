//! What a namespace looks like, for the post-mortem of a failed test.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::view::View;

pub(crate) fn dump() -> Result<()> {
    let view = View::read()?;
    let name = |index: u32| view.name(index).unwrap_or("?");
    println!("links:");
    for link in &view.links {
        let state = if link.up { "up" } else { "DOWN" };
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let alias = link.alias.as_deref().unwrap_or_default();
        println!(
            "  {:>3} {:<16} {:<7} {state:<4} mtu {} qlen {} {mac} {alias}",
            link.index, link.name, link.kind, link.mtu, link.tx_queue_len
        );
    }
    println!("addresses:");
    for address in &view.addresses {
        let tentative = if address.tentative { " tentative" } else { "" };
        println!("  {:<16} {}{tentative}", name(address.link), address.net);
    }
    println!("routes:");
    for route in &view.routes {
        let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        let dev = route.link.map(|index| format!(" dev {}", name(index))).unwrap_or_default();
        let source = route.source.map(|source| format!(" src {source}")).unwrap_or_default();
        let mtu = route.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        println!(
            "  {:?} {}{via}{dev}{source}{mtu} table {} metric {} proto {}",
            route.kind, route.destination, route.table, route.metric, route.protocol
        );
    }
    println!("neighbours:");
    for neighbour in &view.neighbours {
        println!("  {:<16} {} {}", name(neighbour.link), neighbour.address, neighbour.mac);
    }
    for file in ["/proc/self/net/dev", "/proc/self/net/snmp", "/proc/self/net/sockstat"] {
        println!("{file}:");
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            println!("  {line}");
        }
    }
    // Pretty where the machine has the tool; everything above needs none.
    if let Ok(output) = Command::new("nft").args(["list", "ruleset"]).output() {
        println!("nft list ruleset:");
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            println!("  {line}");
        }
    }
    Ok(())
}
