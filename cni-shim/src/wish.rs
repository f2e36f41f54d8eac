//! What the runtime and the configuration ask of an ADD: addresses, a MAC, routes.
//!
//! Runtimes spell the keys of `runtimeConfig` in camelCase or, from Go structs without tags, in PascalCase; Go's decoder
//! takes both, so both are taken here. Of several places that name an address or a MAC the first counts:
//! `runtimeConfig`, `args.cni`, `CNI_ARGS`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use wire::packet::MacAddr;

use crate::error::{CniError, Code};

/// Routes of one attachment at most: a configuration, not a routing protocol.
const ROUTE_LIMIT: usize = 256;

/// A route that the pod shall have by the new interface and its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// Where to.
    pub destination: IpNet,
    /// MTU of the way in bytes.
    pub mtu: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table, if not the main one.
    pub table: Option<u32>,
}

impl PodRoute {
    /// The default route of a family.
    #[must_use]
    pub fn default_of(is_v6: bool) -> Self {
        let any: IpAddr = if is_v6 {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        };
        // A prefix of zero bits is valid in both families.
        Self { destination: IpNet::new_assert(any, 0), mtu: None, priority: None, table: None }
    }

    /// Whether it leads everywhere, by the main table.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0 && self.table.is_none()
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// MAC of the pod's end.
    pub mac: Option<MacAddr>,
    /// `default_route`: whether the pod gets default routes by this interface.
    pub default_route: bool,
    /// `routes`.
    pub routes: Vec<PodRoute>,
}

impl Wish {
    /// Reads the configuration and `CNI_ARGS`.
    ///
    /// # Errors
    /// Code 7 naming the key, 4 for `CNI_ARGS`.
    pub fn read(document: &Value, arguments: Option<&str>) -> Result<Self, CniError> {
        let runtime = document.get("runtimeConfig");
        let cni = document.get("args").and_then(|args| args.get("cni"));
        let addresses = match (texts(runtime, "runtimeConfig", "ips")?, texts(cni, "args.cni", "ips")?) {
            (Some(texts), _) | (None, Some(texts)) => {
                let read = |text: &String| {
                    address(text).ok_or_else(|| invalid(format!("ips: {text:?} is no address")))
                };
                texts.iter().map(read).collect::<Result<Vec<_>, _>>()?
            }
            (None, None) => match argument(arguments, "IP") {
                Some(text) => {
                    let read = |text: &str| address(text).ok_or_else(|| odd_argument("IP", text));
                    text.split(',').map(read).collect::<Result<Vec<_>, _>>()?
                }
                None => Vec::new(),
            },
        };
        if addresses.iter().filter(|address| address.is_ipv6()).count() > 1
            || addresses.iter().filter(|address| address.is_ipv4()).count() > 1
        {
            return Err(invalid(format!("ips: {addresses:?} are several addresses of one family")));
        }
        let mac = match (text(runtime, "runtimeConfig", "mac")?, text(cni, "args.cni", "mac")?) {
            (Some(text), _) | (None, Some(text)) => {
                Some(mac(text).ok_or_else(|| invalid(format!("mac: {text:?} is no unicast MAC")))?)
            }
            (None, None) => argument(arguments, "MAC")
                .map(|text| mac(text).ok_or_else(|| odd_argument("MAC", text)))
                .transpose()?,
        };
        let default_route = match document.get("default_route") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(wanted)) => *wanted,
            Some(other) => return Err(invalid(format!("default_route is {other}: want true or false"))),
        };
        Ok(Self { addresses, mac, default_route, routes: own_routes(document.get("routes"))? })
    }
}

fn own_routes(value: Option<&Value>) -> Result<Vec<PodRoute>, CniError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    if value.as_array().is_some_and(|list| list.iter().any(|route| !route["gw"].is_null())) {
        return Err(invalid(
            "routes: gw is not supported, every route goes by the gateway of overlayd".into(),
        ));
    }
    routes(value).map_err(|why| invalid(format!("routes: {why}")))
}

/// Reads routes as results have them; whatever gateway they name, ours is the only one on the interface.
///
/// # Errors
/// What is wrong, in words.
pub fn routes(value: &Value) -> Result<Vec<PodRoute>, String> {
    let list = value.as_array().ok_or("want a list")?;
    if list.len() > ROUTE_LIMIT {
        return Err(format!("more than {ROUTE_LIMIT}"));
    }
    list.iter().map(route).collect()
}

fn route(value: &Value) -> Result<PodRoute, String> {
    let text = value["dst"].as_str().ok_or("a route without dst")?;
    let destination: IpNet = text.parse().map_err(|error| format!("dst {text:?}: {error}"))?;
    let number = |key: &str| match &value[key] {
        Value::Null => Ok(None),
        number => number
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| format!("{key} of {text} is {number}")),
    };
    let (mtu, priority, table) = (number("mtu")?, number("priority")?, number("table")?);
    Ok(PodRoute { destination: destination.trunc(), mtu, priority, table })
}

fn invalid(message: String) -> CniError {
    CniError::new(Code::InvalidConfig, message)
}

fn odd_argument(key: &str, value: &str) -> CniError {
    let shown: String = value.chars().take(80).collect();
    CniError::new(Code::Environment, format!("environment variable CNI_ARGS has {key}={shown:?}"))
}

/// The value of a key, however it is capitalised; exactly as given first.
fn member<'a>(value: Option<&'a Value>, key: &str) -> Option<&'a Value> {
    let object = value?.as_object()?;
    let found = object
        .get(key)
        .or_else(|| object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value))?;
    (!found.is_null()).then_some(found)
}

/// A list of texts; empty is none.
fn texts(value: Option<&Value>, place: &str, key: &str) -> Result<Option<Vec<String>>, CniError> {
    let Some(found) = member(value, key) else { return Ok(None) };
    let list = found.as_array().and_then(|list| {
        list.iter().map(|text| text.as_str().map(ToOwned::to_owned)).collect::<Option<Vec<_>>>()
    });
    let list = list.ok_or_else(|| invalid(format!("{place}.{key} is {found}: want a list of addresses")))?;
    Ok((!list.is_empty()).then_some(list))
}

/// A text; empty is none.
fn text<'a>(value: Option<&'a Value>, place: &str, key: &str) -> Result<Option<&'a str>, CniError> {
    let Some(found) = member(value, key) else { return Ok(None) };
    let text = found.as_str().ok_or_else(|| invalid(format!("{place}.{key} is {found}: want a text")))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// The value of a key in `K=V;K=V`. Everything else there is metadata for others, and may be what it likes.
fn argument<'a>(arguments: Option<&'a str>, key: &str) -> Option<&'a str> {
    let pairs = arguments?.split(';').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value)
}

/// An address with or without the length of its prefix, which says nothing on a routed interface.
fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
}

fn mac(text: &str) -> Option<MacAddr> {
    let mac: MacAddr = text.to_ascii_lowercase().replace('-', ":").parse().ok()?;
    let is_unicast = mac.0[0] & 1 == 0 && mac.0 != [0; 6];
    is_unicast.then_some(mac)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn wish(document: &Value, arguments: &str) -> Wish {
        Wish::read(document, Some(arguments)).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_asked_is_default_routes_and_nothing_else() {
        let plain = Wish { addresses: vec![], mac: None, default_route: true, routes: vec![] };
        for document in [
            json!({}),
            json!({"runtimeConfig": null, "args": null, "routes": null, "default_route": null}),
            json!({"runtimeConfig": {"ips": null, "mac": "", "portMappings": [{"HostPort": 1}]}}),
            json!({"runtimeConfig": {"ips": []}, "args": {"cni": {"ips": []}}}),
        ] {
            assert_eq!(wish(&document, "IgnoreUnknown=1;K8S_POD_NAME=x;odd;a=b=c;IP="), plain);
        }
    }

    #[test]
    fn addresses_come_from_the_first_place_that_names_them() {
        let all = json!({
            "runtimeConfig": {"ips": ["10.1.0.5/24", "fd00::5"]},
            "args": {"cni": {"ips": ["10.1.0.6"], "mac": "02:00:00:00:00:06"}},
        });
        let arguments = "IP=10.1.0.7;MAC=02-00-00-00-00-07";
        assert_eq!(wish(&all, arguments).addresses, [ip("10.1.0.5"), ip("fd00::5")]);
        assert_eq!(wish(&all, arguments).mac, Some(MacAddr([2, 0, 0, 0, 0, 6])));
        assert_eq!(wish(&json!({"args": all["args"]}), arguments).addresses, [ip("10.1.0.6")]);
        assert_eq!(wish(&json!({}), arguments).addresses, [ip("10.1.0.7")]);
        assert_eq!(wish(&json!({}), arguments).mac, Some(MacAddr([2, 0, 0, 0, 0, 7])));
    }

    #[test]
    fn pascal_case_is_taken_too() {
        let document = json!({"runtimeConfig": {"IPs": ["10.1.0.5"], "Mac": "02:00:00:00:00:AB"}});
        let wish = wish(&document, "");
        assert_eq!((wish.addresses, wish.mac), (vec![ip("10.1.0.5")], Some(MacAddr([2, 0, 0, 0, 0, 0xab]))));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (document, word) in [
            (json!({"runtimeConfig": {"ips": "10.1.0.5"}}), "runtimeConfig.ips"),
            (json!({"runtimeConfig": {"ips": ["10.1.0"]}}), "10.1.0"),
            (json!({"runtimeConfig": {"ips": ["10.1.0.5", "10.1.0.6"]}}), "one family"),
            (json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), "mac"),
            (json!({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}), "mac"),
            (json!({"args": {"cni": {"mac": 3}}}), "args.cni.mac"),
            (json!({"default_route": "no"}), "default_route"),
            (json!({"routes": {}}), "routes"),
            (json!({"routes": [{"dst": "10.0.0.0/99"}]}), "10.0.0.0/99"),
            (json!({"routes": [{"dst": "10.0.0.0/8", "gw": "10.0.0.1"}]}), "gw"),
        ] {
            let error = Wish::read(&document, None).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{document}");
            assert!(error.message.contains(word), "{}", error.message);
        }
        for arguments in ["IP=x", "IP=10.0.0.1,", "MAC=1"] {
            assert_eq!(Wish::read(&json!({}), Some(arguments)).unwrap_err().code, Code::Environment);
        }
    }

    #[test]
    fn routes_are_read_whole() {
        let document = json!({"routes": [{"dst": "10.1.2.3/16"}, {"dst": "fd00::/8", "mtu": 1400, "priority": 5, "table": 9}]});
        let plain =
            PodRoute { destination: "10.1.0.0/16".parse().unwrap(), mtu: None, priority: None, table: None };
        let whole = PodRoute {
            destination: "fd00::/8".parse().unwrap(),
            mtu: Some(1400),
            priority: Some(5),
            table: Some(9),
        };
        assert_eq!(wish(&document, "").routes, [plain, whole]);
    }

    proptest! {
        #[test]
        fn any_arguments_are_a_wish_or_an_environment_error(arguments in ".{0,40}|(IP|MAC|K)=.{0,20};?") {
            if let Err(error) = Wish::read(&json!({}), Some(&arguments)) {
                prop_assert_eq!(error.code, Code::Environment);
            }
        }
    }
}
