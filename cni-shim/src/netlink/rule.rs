//! Policy rules that choose a routing table by the source address.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{FAMILIES, Message, Netlink, NetlinkError, family};

/// A rule "from this source look up that table".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Source addresses.
    pub source: IpNet,
    /// Table to look up.
    pub table: u32,
    /// Priority: lesser ones are asked first.
    pub priority: u32,
    /// Who made it (`FRA_PROTOCOL`), by the numbers of `rtm_protocol`.
    pub protocol: u8,
}

impl Netlink {
    /// All rules of this kind, both families.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn rules(&mut self) -> Result<Vec<Rule>, NetlinkError> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let message = Message { kind: libc::RTM_GETRULE, body: message };
            let found = self.dump(&message, format_args!("list rules"), |payload| {
                RuleMessage::parse(payload)
                    .ok()
                    .filter(|message| message.header.family == family)
                    .and_then(|message| rule(&message))
            });
            match found {
                Ok(found) => all.extend(found),
                // A kernel without this family.
                Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Adds a rule exclusively.
    ///
    /// # Errors
    /// `EEXIST` if it is there.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let message = Message { kind: libc::RTM_NEWRULE, body: request(rule) };
        self.request(&message, NLM_F_CREATE | NLM_F_EXCL, format_args!("add rule from {}", rule.source))
    }

    /// Deletes exactly this rule.
    ///
    /// # Errors
    /// `ENOENT` if it is not there.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let message = Message { kind: libc::RTM_DELRULE, body: request(rule) };
        self.request(&message, 0, format_args!("delete rule from {}", rule.source))
    }
}

fn request(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.source.addr());
    message.header.src_len = rule.source.prefix_len();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.source.network()),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(rule.protocol)),
    ];
    message
}

fn rule(message: &RuleMessage) -> Option<Rule> {
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let (mut source, mut table, mut priority, mut protocol): (Option<IpAddr>, _, _, _) =
        (None, u32::from(message.header.table), 0, 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => source = Some(*address),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Protocol(number) => protocol = u8::from(*number),
            _ => {}
        }
    }
    Some(Rule { source: IpNet::new(source?, message.header.src_len).ok()?, table, priority, protocol })
}
