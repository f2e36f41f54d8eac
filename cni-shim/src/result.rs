//! The result of ADD in the exact shape of each version (CNI specification, section 5 "Result types"), and
//! reading it back as `prevResult`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wire::ipc::Lease;
use wire::packet::MacAddr;

use crate::error::{CniError, Code};
use crate::version::Version;
use crate::wish::PodRoute;

/// What was plumbed.
#[derive(Clone, Debug)]
pub struct Plumbed<'a> {
    /// Name of the host end.
    pub host_name: &'a str,
    /// MAC of the host end.
    pub host_mac: MacAddr,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// MAC of the pod's end.
    pub pod_mac: MacAddr,
    /// `CNI_NETNS`, verbatim: runtimes find their own interface by it.
    pub sandbox: &'a str,
    /// Addresses and gateways.
    pub lease: &'a Lease,
    /// Routes of the pod, each by the gateway of its family.
    pub routes: &'a [PodRoute],
    /// `dns` of the configuration, or of the IPAM plugin.
    pub dns: Option<&'a Value>,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    interfaces: [Interface<'a>; 2],
    ips: Vec<Address>,
    routes: Vec<Route>,
    dns: Value,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: MacAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a str>,
}

#[derive(Serialize)]
struct Address {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    interface: usize,
    address: IpNet,
    gateway: IpAddr,
}

#[derive(Serialize)]
struct Route {
    dst: IpNet,
    gw: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
}

/// Place of the pod's interface in `interfaces`.
const POD: usize = 1;

/// The document for standard output.
///
/// # Errors
/// Code 999 if it cannot be written as JSON.
pub fn to_json(version: Version, plumbed: &Plumbed<'_>) -> Result<String, CniError> {
    let Plumbed { host_name, host_mac, ifname, pod_mac, sandbox, lease, routes, dns } = *plumbed;
    let ips = lease.addresses.iter().map(|leased| Address {
        version: (version < Version::V1_0_0).then_some(if leased.address.is_ipv4() { "4" } else { "6" }),
        interface: POD,
        address: leased.address.into(),
        gateway: leased.gateway,
    });
    let has_details = version >= Version::V1_1_0;
    let gateway = |route: &PodRoute| {
        let is_v6 = route.destination.addr().is_ipv6();
        lease.addresses.iter().find(|leased| leased.address.is_ipv6() == is_v6).map(|leased| leased.gateway)
    };
    let routes = routes.iter().filter_map(|route| {
        let PodRoute { destination: dst, mtu, priority, table } = *route;
        let gw = gateway(route)?;
        let plain = Route { dst, gw, mtu: None, priority: None, table: None };
        Some(if has_details { Route { mtu, priority, table, ..plain } } else { plain })
    });
    let mtu = (version >= Version::V1_1_0).then_some(lease.mtu);
    let document = Document {
        version: version.as_str(),
        interfaces: [
            Interface { name: host_name, mac: host_mac, mtu, sandbox: None },
            Interface { name: ifname, mac: pod_mac, mtu, sandbox: Some(sandbox) },
        ],
        ips: ips.collect(),
        routes: routes.collect(),
        dns: dns.filter(|dns| dns.is_object()).cloned().unwrap_or_else(|| Value::Object(Default::default())),
    };
    serde_json::to_string(&document)
        .map_err(|error| CniError::new(Code::Internal, format!("write the result: {error}")))
}

/// What `prevResult` says about our interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// The MAC that it should have, if one is listed.
    pub mac: Option<MacAddr>,
    /// Its addresses and gateways.
    pub addresses: Vec<(IpAddr, Option<IpAddr>)>,
    /// Destinations and gateways of the routes.
    pub routes: Vec<(IpNet, IpAddr)>,
}

#[derive(Deserialize)]
struct RawResult {
    #[serde(default)]
    interfaces: Option<Vec<RawInterface>>,
    #[serde(default)]
    ips: Option<Vec<RawAddress>>,
    #[serde(default)]
    routes: Option<Vec<RawRoute>>,
}

#[derive(Deserialize)]
struct RawRoute {
    dst: IpNet,
    gw: Option<IpAddr>,
}

#[derive(Deserialize)]
struct RawInterface {
    name: Option<String>,
    mac: Option<String>,
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct RawAddress {
    interface: Option<usize>,
    address: String,
    gateway: Option<IpAddr>,
}

impl Previous {
    /// Finds our interface in a `prevResult`; what others of the chain added is left aside.
    ///
    /// # Errors
    /// Code 7 if there is none, it is not a result, or our interface is not in it.
    pub fn read(previous: Option<&Value>, ifname: &str, sandbox: &str) -> Result<Self, CniError> {
        let invalid = |message: String| CniError::new(Code::InvalidConfig, message);
        let value = previous.ok_or_else(|| invalid("CHECK needs prevResult in the configuration".into()))?;
        let raw = RawResult::deserialize(value).map_err(|error| invalid(format!("prevResult: {error}")))?;
        let interfaces = raw.interfaces.unwrap_or_default();
        let is_ours = |interface: &RawInterface| {
            interface.name.as_deref() == Some(ifname) && interface.sandbox.as_deref() == Some(sandbox)
        };
        let place = interfaces
            .iter()
            .position(is_ours)
            .ok_or_else(|| invalid(format!("prevResult has no interface {ifname} in {sandbox}")))?;
        let mac = interfaces[place].mac.as_deref().filter(|mac| !mac.is_empty());
        let mac = mac
            .map(|mac| {
                mac.to_ascii_lowercase()
                    .parse()
                    .map_err(|error| invalid(format!("prevResult: mac {mac:?}: {error}")))
            })
            .transpose()?;
        let mut addresses = Vec::new();
        for raw in raw.ips.unwrap_or_default() {
            if raw.interface != Some(place) {
                continue;
            }
            let net: IpNet = raw
                .address
                .parse()
                .map_err(|error| invalid(format!("prevResult: address {:?}: {error}", raw.address)))?;
            addresses.push((net.addr(), raw.gateway));
        }
        if addresses.is_empty() {
            return Err(invalid(format!("prevResult has no address on {ifname}")));
        }
        let routes = raw.routes.unwrap_or_default().into_iter();
        let routes = routes.filter_map(|route| Some((route.dst.trunc(), route.gw?))).collect();
        Ok(Self { mac, addresses, routes })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wire::ipc::LeaseAddress;

    use super::*;

    fn lease() -> Lease {
        let leased = |address: &str, gateway: &str| LeaseAddress {
            address: address.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        };
        Lease { addresses: vec![leased("10.1.0.5", "169.254.1.1"), leased("fd00::5", "fe80::1")], mtu: 1450 }
    }

    fn document(version: Version, dns: Option<&Value>) -> Value {
        let lease = lease();
        let plumbed = Plumbed {
            host_name: "ovp0123456789ab",
            host_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            ifname: "eth0",
            pod_mac: MacAddr([2, 0, 0, 0, 0, 0xab]),
            sandbox: "/run/netns/x",
            lease: &lease,
            routes: &[PodRoute::default_of(false), PodRoute::default_of(true)],
            dns,
        };
        serde_json::from_str(&to_json(version, &plumbed).unwrap()).unwrap()
    }

    #[test]
    fn version_1_0_0_has_no_family_in_addresses() {
        assert_eq!(
            document(Version::V1_0_0, None),
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [
                    {"name": "ovp0123456789ab", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:ab", "sandbox": "/run/netns/x"},
                ],
                "ips": [
                    {"interface": 1, "address": "10.1.0.5/32", "gateway": "169.254.1.1"},
                    {"interface": 1, "address": "fd00::5/128", "gateway": "fe80::1"},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
                "dns": {},
            })
        );
    }

    #[test]
    fn version_1_1_0_adds_the_mtu() {
        let mut expected = document(Version::V1_0_0, None);
        expected["cniVersion"] = json!("1.1.0");
        expected["interfaces"][0]["mtu"] = json!(1450);
        expected["interfaces"][1]["mtu"] = json!(1450);
        assert_eq!(document(Version::V1_1_0, None), expected);
    }

    #[test]
    fn earlier_versions_name_the_family() {
        for version in [Version::V0_3_1, Version::V0_4_0] {
            let document = document(version, None);
            assert_eq!(document["cniVersion"], version.as_str());
            assert_eq!(
                (&document["ips"][0]["version"], &document["ips"][1]["version"]),
                (&json!("4"), &json!("6"))
            );
        }
    }

    #[test]
    fn dns_of_the_configuration_is_passed_through() {
        let dns = json!({"nameservers": ["10.96.0.10"]});
        assert_eq!(document(Version::V1_0_0, Some(&dns))["dns"], dns);
        assert_eq!(document(Version::V1_0_0, Some(&json!("x")))["dns"], json!({}));
    }

    #[test]
    fn every_result_reads_back_as_previous() {
        for version in Version::ALL {
            let previous = Previous::read(Some(&document(version, None)), "eth0", "/run/netns/x").unwrap();
            assert_eq!(previous.mac, Some(MacAddr([2, 0, 0, 0, 0, 0xab])));
            let expected: Vec<_> = lease().addresses.iter().map(|a| (a.address, Some(a.gateway))).collect();
            assert_eq!(previous.addresses, expected);
        }
    }

    #[test]
    fn what_others_added_is_left_aside() {
        let mut document = document(Version::V1_0_0, None);
        document["interfaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "eth1", "sandbox": "/run/netns/x"}));
        document["ips"].as_array_mut().unwrap().push(json!({"interface": 2, "address": "192.0.2.9/24"}));
        document["ips"].as_array_mut().unwrap().push(json!({"address": "192.0.2.10/24"}));
        let previous = Previous::read(Some(&document), "eth0", "/run/netns/x").unwrap();
        assert_eq!(previous.addresses.len(), 2);
    }

    #[test]
    fn a_previous_result_without_our_interface_is_invalid() {
        let whole = document(Version::V1_0_0, None);
        for (value, ifname, sandbox) in [
            (None, "eth0", "/run/netns/x"),
            (Some(&json!({})), "eth0", "/run/netns/x"),
            (Some(&json!([])), "eth0", "/run/netns/x"),
            (Some(&whole), "eth1", "/run/netns/x"),
            (Some(&whole), "eth0", "/run/netns/y"),
        ] {
            assert_eq!(Previous::read(value, ifname, sandbox).unwrap_err().code, Code::InvalidConfig);
        }
    }
}
