//! What a network namespace holds, as values to assert on.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Links, addresses and routes of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Every link.
    pub links: Vec<ObservedLink>,
    /// Every address.
    pub addresses: Vec<ObservedAddress>,
    /// Every route but those of table local.
    pub routes: Vec<ObservedRoute>,
    /// Every rule that chooses a table by the source address.
    pub rules: Vec<ObservedRule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedRule {
    /// Source.
    pub source: IpNet,
    /// Table.
    pub table: u32,
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedLink {
    /// Name.
    pub name: String,
    /// "veth", "tun" and so on.
    pub kind: String,
    /// In bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Link-layer address.
    pub mac: Option<String>,
    /// Device group.
    pub group: u32,
    /// Alias.
    pub alias: Option<String>,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedAddress {
    /// Name of its link.
    pub link: String,
    /// Address and prefix length.
    pub net: IpNet,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedRoute {
    /// Destination.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Name of its link.
    pub link: Option<String>,
    /// Metric.
    pub metric: u32,
    /// `rtm_protocol`.
    pub protocol: u8,
}

impl Observed {
    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&ObservedLink> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Names of the links that begin so.
    #[must_use]
    pub fn links_named(&self, prefix: &str) -> Vec<&str> {
        self.links.iter().map(|link| link.name.as_str()).filter(|name| name.starts_with(prefix)).collect()
    }

    /// Whether this link has this address.
    #[must_use]
    pub fn has_address(&self, link: &str, net: IpNet) -> bool {
        self.addresses.iter().any(|address| address.link == link && address.net == net)
    }

    /// The routes to exactly this destination.
    #[must_use]
    pub fn routes_to(&self, destination: IpNet) -> Vec<&ObservedRoute> {
        self.routes.iter().filter(|route| route.destination == destination).collect()
    }
}
