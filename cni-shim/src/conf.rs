//! The network configuration on standard input.

use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
pub use wire::tag::DEFAULT_SOCKET;
use wire::tag::{is_identifier, is_interface_name};

use crate::environment::Target;
use crate::error::{CniError, Code};
use crate::version::Version;

/// Largest configuration in bytes. A long `prevResult` of a chain is a few KiB.
pub const SIZE_LIMIT: u64 = 1024 * 1024;

/// How long the runtime may take to write it.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A key of the network configuration, as the README lists it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name.
    pub name: &'static str,
    /// What kind of value.
    pub value: &'static str,
    /// What holds without it.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// The keys that are ours or mean something of our own, beside those of the specification.
pub const KEYS: &[Key] = &[
    Key {
        name: "socket",
        value: "PATH",
        default: "/run/overlayd/cni.sock",
        help: "The daemon's socket; an absolute path.",
    },
    Key {
        name: "default_route",
        value: "BOOL",
        default: "true",
        help: "Whether pods get a default route by this interface: false for a secondary network.",
    },
    Key {
        name: "routes",
        value: "[{dst, mtu, priority, table}]",
        default: "none",
        help: "Further routes of the pod, each by this interface; `gw` is not taken.",
    },
    Key {
        name: "ipam",
        value: "{type, ...}",
        default: "none",
        help: "Another plugin of `CNI_PATH` that gives the addresses (host-local, ...), instead of the daemon.",
    },
    Key {
        name: "dns",
        value: "{...}",
        default: "that of the IPAM plugin",
        help: "Passed through into the result.",
    },
    Key {
        name: "runtimeConfig.ips",
        value: "[ADDRESS, ...]",
        default: "none",
        help: "Addresses for this pod, at most one per family; also `args.cni.ips`, or `IP=` in `CNI_ARGS`.",
    },
    Key {
        name: "runtimeConfig.mac",
        value: "MAC",
        default: "derived",
        help: "MAC of the pod's interface; also `args.cni.mac`, or `MAC=` in `CNI_ARGS`.",
    },
];

/// The parts of a network configuration that this plugin uses. Everything else is tolerated.
#[derive(Clone, Debug, PartialEq)]
pub struct Conf {
    /// `cniVersion`.
    pub version: Version,
    /// `name` of the network.
    pub network: String,
    /// `socket`: path of the daemon's socket.
    pub socket: PathBuf,
    /// `ipam.type`, if another plugin is to give the addresses.
    pub ipam: Option<String>,
    /// All of it, for the keys that one verb alone uses.
    pub document: Value,
    /// All of it as it came, for the IPAM plugin.
    pub text: Vec<u8>,
    /// `dns`, passed through into the result.
    pub dns: Option<Value>,
    /// `prevResult`.
    pub previous: Option<Value>,
    /// `cni.dev/valid-attachments` or `cni.dev/attachments`; `None` if there is neither.
    pub valid: Option<Vec<Target>>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    socket: Option<String>,
    ipam: Option<RawIpam>,
    dns: Option<Value>,
    #[serde(rename = "prevResult")]
    previous: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<RawAttachment>>,
    /// The key that `libcni` used before the specification's, and sends beside it.
    #[serde(rename = "cni.dev/attachments")]
    valid_too: Option<Vec<RawAttachment>>,
}

#[derive(Deserialize)]
struct RawIpam {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// A configuration that was refused, and the version to answer in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The configuration's own version if it is one of ours, else the newest.
    pub version: Version,
    /// Why.
    pub error: CniError,
}

impl Conf {
    /// Reads the configuration: JSON first, then the name, then the version.
    ///
    /// # Errors
    /// Codes 6, 7 and 1, in this order.
    pub fn parse(text: &[u8]) -> Result<Self, Refused> {
        let refuse = |error| Refused { version: Version::NEWEST, error };
        let decode = |error: serde_json::Error| {
            let message = format!("the network configuration on standard input does not decode: {error}");
            refuse(CniError::new(Code::Decode, message))
        };
        let value: Value = serde_json::from_slice(text).map_err(decode)?;
        if !value.is_object() {
            let message = "the network configuration on standard input is not a JSON object";
            return Err(refuse(CniError::new(Code::Decode, message)));
        }
        let raw = Raw::deserialize(&value).map_err(decode)?;
        let known = raw.version.as_deref().and_then(Version::parse);
        let refuse = |error| Refused { version: known.unwrap_or(Version::NEWEST), error };
        let invalid = |message: String| refuse(CniError::new(Code::InvalidConfig, message));
        let network = raw.name.filter(|name| !name.is_empty());
        let network = network.ok_or_else(|| invalid("the network configuration has no name".into()))?;
        if !is_identifier(&network) {
            let wanted = "want a letter or digit, then letters, digits, '_', '.' and '-'";
            return Err(invalid(format!("the network's name is {network:?}: {wanted}")));
        }
        let version = known.ok_or_else(|| refuse(incompatible(raw.version.as_deref())))?;
        let socket = PathBuf::from(raw.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()));
        if !socket.is_absolute() {
            return Err(invalid(format!("socket is {socket:?}: want an absolute path")));
        }
        let ipam = raw.ipam.and_then(|ipam| ipam.kind).filter(|kind| !kind.is_empty());
        if let Some(kind) = ipam.as_ref().filter(|kind| !is_identifier(kind)) {
            return Err(invalid(format!("ipam.type is {kind:?}: want the file name of a plugin")));
        }
        let valid = valid_attachments(raw.valid, raw.valid_too).map_err(refuse)?;
        let (dns, previous, text) = (raw.dns, raw.previous, text.to_vec());
        Ok(Self { version, network, socket, ipam, document: value, text, dns, previous, valid })
    }

    /// Refuses a verb that is not of the configuration's version yet.
    ///
    /// # Errors
    /// Code 1.
    pub fn require(&self, version: Version, verb: &str) -> Result<(), CniError> {
        if self.version >= version {
            return Ok(());
        }
        let (least, held) = (version.as_str(), self.version.as_str());
        let message = format!("{verb} needs cniVersion {least} or later, this is {held}");
        Err(CniError::new(Code::IncompatibleVersion, message))
    }
}

/// Everything that either key lists. A malformed entry makes the list one that nothing may be deleted by.
fn valid_attachments(
    one: Option<Vec<RawAttachment>>,
    other: Option<Vec<RawAttachment>>,
) -> Result<Option<Vec<Target>>, CniError> {
    if one.is_none() && other.is_none() {
        return Ok(None);
    }
    let read = |RawAttachment { container, ifname }: RawAttachment| {
        if is_identifier(&container) && is_interface_name(&ifname) {
            return Ok(Target { container, ifname });
        }
        let message =
            format!("cni.dev/valid-attachments lists {container:?} with {ifname:?}: not an attachment");
        Err(CniError::new(Code::InvalidConfig, message))
    };
    one.into_iter().chain(other).flatten().map(read).collect::<Result<_, _>>().map(Some)
}

fn incompatible(version: Option<&str>) -> CniError {
    // A configuration without cniVersion is one of 0.1.0 (CNI specification 1.1.0, "Configuration format").
    let version = version.unwrap_or("0.1.0");
    let supported = Version::ALL.map(Version::as_str).join(", ");
    CniError::new(Code::IncompatibleVersion, format!("cniVersion {version:?} is not supported"))
        .with_details(format!("the configuration has {version:?}, this plugin supports {supported}"))
}

/// Reads standard input to its end, bounded in size and time.
///
/// # Errors
/// Code 5.
pub fn read_input(input: impl Read + Send + 'static, patience: Duration) -> Result<Vec<u8>, CniError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    // A blocked read cannot be interrupted; its thread ends with the process.
    let read = move || {
        let mut text = Vec::new();
        let outcome = input.take(SIZE_LIMIT + 1).read_to_end(&mut text).map(|_| text);
        // Nobody listens any more if the time ran out.
        let _ = sender.send(outcome);
    };
    let failed = |cause: String| {
        CniError::new(Code::Io, format!("read the network configuration from standard input: {cause}"))
    };
    std::thread::Builder::new().spawn(read).map_err(|error| failed(format!("start a thread: {error}")))?;
    let text = receiver
        .recv_timeout(patience)
        .map_err(|_| failed(format!("it did not end within {} s", patience.as_secs_f32())))?
        .map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > SIZE_LIMIT {
        return Err(failed(format!("it is larger than {SIZE_LIMIT} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Conf, Refused> {
        Conf::parse(value.to_string().as_bytes())
    }

    fn code(value: &Value) -> Code {
        parse(value).unwrap_err().error.code
    }

    #[test]
    fn unknown_keys_and_nulls_are_tolerated() {
        let conf = parse(&json!({
            "cniVersion": "1.0.0", "name": "net", "type": "overlayd", "socket": null, "ipam": null, "dns": null,
            "prevResult": null, "capabilities": {"portMappings": true}, "args": null,
            "runtimeConfig": {"portMappings": [{"HostPort": 1}], "io.kubernetes.cri.pod-annotations": null},
        }));
        let conf = conf.unwrap();
        assert_eq!((conf.version, conf.network.as_str()), (Version::V1_0_0, "net"));
        assert_eq!(conf.socket, PathBuf::from(DEFAULT_SOCKET));
        assert_eq!((conf.ipam, conf.dns, conf.previous), (None, None, None));
    }

    #[test]
    fn the_order_is_json_then_name_then_version() {
        assert_eq!(Conf::parse(b"").unwrap_err().error.code, Code::Decode);
        assert_eq!(code(&json!(["1.0.0", "net"])), Code::Decode);
        assert_eq!(code(&json!({"name": 3, "cniVersion": "9"})), Code::Decode);
        assert_eq!(code(&json!({"cniVersion": "9"})), Code::InvalidConfig);
        assert_eq!(code(&json!({"cniVersion": "9", "name": "a b"})), Code::InvalidConfig);
        assert_eq!(code(&json!({"cniVersion": "9", "name": "net\n"})), Code::InvalidConfig);
        assert_eq!(
            code(&json!({"cniVersion": "9", "name": "net", "socket": "x"})),
            Code::IncompatibleVersion
        );
        assert_eq!(code(&json!({"cniVersion": "1.0.0", "name": "net", "socket": "x"})), Code::InvalidConfig);
    }

    #[test]
    fn versions_are_matched_exactly() {
        for version in ["", "0.1.0", "0.2.0", "0.3.0", "1.0", "1.1", "1.2.0", "v1.0.0"] {
            assert_eq!(
                code(&json!({"cniVersion": version, "name": "n"})),
                Code::IncompatibleVersion,
                "{version}"
            );
        }
        let refused = parse(&json!({"name": "n"})).unwrap_err();
        assert!(refused.error.details.contains("0.1.0"), "{}", refused.error.details);
        for version in Version::ALL {
            assert_eq!(
                parse(&json!({"cniVersion": version.as_str(), "name": "n"})).unwrap().version,
                version
            );
        }
    }

    #[test]
    fn a_refusal_answers_in_the_configurations_version() {
        assert_eq!(parse(&json!({"cniVersion": "0.3.1"})).unwrap_err().version, Version::V0_3_1);
    }

    #[test]
    fn an_ipam_plugin_is_named_by_a_file_name_and_nothing_else() {
        let conf = |ipam: Value| json!({"cniVersion": "1.0.0", "name": "n", "ipam": ipam});
        let kind = |ipam: Value| parse(&conf(ipam)).unwrap().ipam;
        assert_eq!(
            (kind(json!({})), kind(json!({"type": ""})), kind(json!({"type": null}))),
            (None, None, None)
        );
        assert_eq!(kind(json!({"type": "host-local", "ranges": []})).as_deref(), Some("host-local"));
        for name in ["../sh", "/bin/sh", "a/b", ".", "..", "-x", "a b", "a\u{0}", "a;b"] {
            assert_eq!(code(&conf(json!({"type": name}))), Code::InvalidConfig, "{name}");
        }
        for odd in [json!("host-local"), json!([]), json!({"type": 1})] {
            assert_eq!(code(&conf(odd)), Code::Decode);
        }
    }

    #[test]
    fn attachments_of_both_keys_count_and_no_key_is_no_list() {
        let conf = |key: &str, value: Value| {
            let mut conf = json!({"cniVersion": "1.1.0", "name": "n"});
            conf[key] = value;
            conf
        };
        let both = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let target = |container: &str| Target { container: container.into(), ifname: "eth0".into() };
        assert_eq!(parse(&json!({"cniVersion": "1.1.0", "name": "n"})).unwrap().valid, None);
        for key in both {
            assert_eq!(parse(&conf(key, json!(null))).unwrap().valid, None);
            assert_eq!(parse(&conf(key, json!([]))).unwrap().valid, Some(vec![]));
            let list = json!([{"containerID": "c1", "ifname": "eth0", "more": 1}]);
            assert_eq!(parse(&conf(key, list)).unwrap().valid, Some(vec![target("c1")]));
            assert_eq!(code(&conf(key, json!([{"containerID": "c1"}]))), Code::Decode);
            assert_eq!(
                code(&conf(key, json!([{"containerID": "../c1", "ifname": "eth0"}]))),
                Code::InvalidConfig
            );
        }
        let mut conf = conf(both[0], json!([{"containerID": "c1", "ifname": "eth0"}]));
        conf[both[1]] = json!([{"containerID": "c2", "ifname": "eth0"}]);
        assert_eq!(parse(&conf).unwrap().valid, Some(vec![target("c1"), target("c2")]));
    }

    #[test]
    fn input_is_bounded_in_size() {
        let limit = usize::try_from(SIZE_LIMIT).unwrap();
        assert_eq!(read_input(std::io::repeat(b' ').take(SIZE_LIMIT), READ_TIMEOUT).unwrap().len(), limit);
        assert_eq!(read_input(std::io::repeat(b' '), READ_TIMEOUT).unwrap_err().code, Code::Io);
    }

    #[test]
    fn input_is_bounded_in_time() {
        let (reader, writer) = std::io::pipe().unwrap();
        let error = read_input(reader, Duration::from_millis(20)).unwrap_err();
        drop(writer);
        assert_eq!(error.code, Code::Io);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_configuration_or_one_json_error(text in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "\\{\"(name|cniVersion|ipam|prevResult|socket)\":[\\[\\]{}\",:0-9a-z.]{0,20}\\}".prop_map(String::into_bytes),
        ]) {
            if let Err(refused) = Conf::parse(&text) {
                let document: Value = serde_json::from_str(&refused.error.to_json(refused.version)).unwrap();
                prop_assert!(document["code"].is_u64());
            }
        }
    }
}
