//! Foreign objects in our way, named as an operator finds them, with the command that helps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ruleset::{Device, ForwardChain, Part, Rule, TableFamily};
use super::{Actual, Via};
use crate::core::desired::Desired;

/// A foreign object that stands where ours should.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conflict {
    /// What stands there, named as an operator would find it.
    pub object: String,
    /// What to do about it, with the exact command where there is one.
    pub remedy: String,
}

/// Foreign objects in our way.
#[must_use]
pub fn conflicts(want: &Desired, have: &Actual) -> Vec<Conflict> {
    let mut found = links(want, have);
    found.extend(addresses(want, have));
    found.extend(routes(want, have));
    found.extend(forward(want, have));
    found
}

fn links(want: &Desired, have: &Actual) -> Vec<Conflict> {
    let mut found = Vec::new();
    for link in &have.foreign_links {
        if link.name == want.device {
            let kind = if link.kind.is_empty() { "another" } else { &link.kind };
            found.push(Conflict {
                object: format!("device {} is of {kind} kind, not the TUN device of overlayd", link.name),
                remedy: format!("ip link del {}   (or set `device` to another name)", link.name),
            });
        }
        if link.vxlan_port == Some(want.port) && link.up {
            found.push(Conflict {
                object: format!(
                    "kernel vxlan device {} (VNI {}) holds UDP port {}",
                    link.name,
                    link.vxlan_vni.unwrap_or(0),
                    want.port
                ),
                remedy: format!("ip link del {}", link.name),
            });
        }
    }
    found
}

fn addresses(want: &Desired, have: &Actual) -> Vec<Conflict> {
    let ours = |address: IpAddr| want.addresses.iter().any(|net| net.addr() == address);
    let mut found = Vec::new();
    for link in &have.foreign_links {
        for net in link.addresses.iter().filter(|net| ours(net.addr())) {
            found.push(Conflict {
                object: format!("address {net} of device {} is our tunnel address", link.name),
                remedy: format!("ip addr del {net} dev {}", link.name),
            });
        }
    }
    found
}

fn routes(want: &Desired, have: &Actual) -> Vec<Conflict> {
    // Our unreachable routes are there to lose against everything.
    let leading = want.routes.iter().filter(|route| route.via != Via::Unreachable);
    let ours: BTreeMap<IpNet, u32> = leading.map(|route| (route.destination, route.metric)).collect();
    let mut found = Vec::new();
    for foreign in &have.foreign_routes {
        // The least metric wins: a foreign route with a greater one does no harm.
        let beats = ours.get(&foreign.destination).is_some_and(|metric| *metric >= foreign.metric);
        if !beats && !want.own_cidrs.contains(&foreign.destination) {
            continue;
        }
        let family = if foreign.destination.addr().is_ipv6() { "-6 " } else { "" };
        let device = foreign.link.as_ref().map(|name| format!(" dev {name}")).unwrap_or_default();
        let route = format!("{}{device} metric {}", foreign.destination, foreign.metric);
        found.push(Conflict {
            object: format!("foreign route {route}"),
            remedy: format!("ip {family}route del {route}"),
        });
    }
    found
}

fn forward(want: &Desired, have: &Actual) -> Vec<Conflict> {
    if want.forward_accept {
        return Vec::new();
    }
    let serves = |chain: &ForwardChain| match chain.name.family {
        TableFamily::Inet => true,
        TableFamily::Ip => want.own_cidrs.iter().any(|net| net.addr().is_ipv4()),
        TableFamily::Ip6 => want.own_cidrs.iter().any(|net| net.addr().is_ipv6()),
    };
    let mut found = Vec::new();
    for chain in have.forward_chains.iter().filter(|chain| chain.policy_drop && serves(chain)) {
        let present: Vec<Vec<&Part>> = chain.by_hand.iter().map(|rule| essence(rule)).collect();
        let missing: Vec<&Rule> =
            want.forward_rules.iter().filter(|rule| !present.contains(&essence(rule))).collect();
        if missing.is_empty() {
            continue;
        }
        let commands: Vec<String> = missing.iter().filter_map(|rule| insert(chain, rule)).collect();
        found.push(Conflict {
            object: format!("chain {} drops forwarded packets by its policy", chain.name),
            remedy: format!("{}   (or set `forward_accept: true`)", commands.join(" && ")),
        });
    }
    found
}

/// What a rule does, counters and comment aside.
fn essence(rule: &Rule) -> Vec<&Part> {
    rule.parts.iter().filter(|part| **part != Part::Counter).collect()
}

/// The command that inserts this accept rule: by iptables where the chain has the names that iptables gives, as it
/// takes offence at rules that it did not write.
fn insert(chain: &ForwardChain, rule: &Rule) -> Option<String> {
    let (input, device) = rule.parts.iter().find_map(|part| match part {
        Part::InDevice(device) => Some((true, device)),
        Part::OutDevice(device) => Some((false, device)),
        _ => None,
    })?;
    let iptables = match chain.name.family {
        TableFamily::Ip => Some("iptables"),
        TableFamily::Ip6 => Some("ip6tables"),
        TableFamily::Inet => None,
    };
    let iptables = iptables.filter(|_| chain.name.table == "filter" && chain.name.chain == "FORWARD");
    let (name, prefixed) = match device {
        Device::Named(name) => (name, false),
        Device::Prefixed(name) => (name, true),
    };
    Some(match iptables {
        Some(command) => {
            let (flag, wildcard) = (if input { "-i" } else { "-o" }, if prefixed { "+" } else { "" });
            format!("{command} -I FORWARD {flag} {name}{wildcard} -j ACCEPT")
        }
        None => {
            let (key, wildcard) =
                (if input { "iifname" } else { "oifname" }, if prefixed { "*" } else { "" });
            format!("nft 'insert rule {} {key} \"{name}{wildcard}\" accept'", chain.name)
        }
    })
}
