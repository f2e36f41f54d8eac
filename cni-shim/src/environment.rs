//! The environment variables of a call (CNI specification 1.1.0, section 2 "Parameters").

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use wire::tag::{CONTAINER_LIMIT, is_identifier, is_interface_name};

use crate::error::{CniError, Code};

/// What the runtime wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add {
        /// Which one.
        target: Target,
        /// Where its interface belongs.
        sandbox: Sandbox,
    },
    /// Detach a container. The namespace may be gone and is not needed.
    Del {
        /// Which one.
        target: Target,
        /// Where its interface was, if the runtime knows.
        sandbox: Option<Sandbox>,
    },
    /// Is an attachment as it was made?
    Check {
        /// Which one.
        target: Target,
        /// Where its interface is.
        sandbox: Sandbox,
    },
    /// Could a container be attached now?
    Status,
    /// Free what belongs to containers that are no more.
    Gc,
    /// Which versions are spoken here?
    Version,
}

/// One interface of one container; with the network's name it is an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// The container's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// `CNI_NETNS`, verbatim.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub may_be_own: bool,
}

/// What else the runtime says, for those who need it.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// `CNI_PATH`.
    pub plugin_path: Option<OsString>,
    /// `CNI_ARGS`, if it is text.
    pub arguments: Option<String>,
}

impl Hints {
    /// Reads the variables by `lookup`. Nothing is judged here.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let arguments = lookup("CNI_ARGS").and_then(|value| value.into_string().ok());
        Self { plugin_path: lookup("CNI_PATH"), arguments }
    }
}

impl Verb {
    /// Reads the variables by `lookup`. An empty value is the same as none; `Ok(None)` if there is no verb.
    ///
    /// # Errors
    /// Code 4, naming every missing variable, or the first that is malformed.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, CniError> {
        let variables = Variables(lookup);
        let Some(command) = variables.text("CNI_COMMAND")? else { return Ok(None) };
        let verb = match command.as_str() {
            "ADD" => Self::Add {
                target: variables.target(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?.within_limits()?,
                sandbox: variables.sandbox()?,
            },
            "CHECK" => Self::Check {
                target: variables.target(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?.within_limits()?,
                sandbox: variables.sandbox()?,
            },
            "DEL" => Self::Del {
                target: variables.target(&["CNI_CONTAINERID", "CNI_IFNAME"])?,
                sandbox: variables.sandbox().ok(),
            },
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            "VERSION" => Self::Version,
            _ => return Err(malformed("CNI_COMMAND", &command, "ADD, DEL, CHECK, GC, STATUS or VERSION")),
        };
        Ok(Some(verb))
    }
}

impl Target {
    /// Refuses a container id that does not fit the alias of a link. Not on DEL: what could not be added needs no
    /// error when it goes.
    fn within_limits(self) -> Result<Self, CniError> {
        if self.container.len() > CONTAINER_LIMIT {
            let wanted = format!("at most {CONTAINER_LIMIT} bytes");
            return Err(malformed("CNI_CONTAINERID", &self.container, &wanted));
        }
        Ok(self)
    }
}

struct Variables<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    fn text(&self, name: &str) -> Result<Option<String>, CniError> {
        let Some(value) = (self.0)(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        value.into_string().map(Some).map_err(|value| malformed(name, &value.to_string_lossy(), "UTF-8"))
    }

    fn target(&self, required: &[&str]) -> Result<Target, CniError> {
        let is_missing = |name: &&&str| (self.0)(name).is_none_or(|value| value.is_empty());
        let missing: Vec<&str> = required.iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            let message = format!("required environment variables are missing: {}", missing.join(", "));
            return Err(CniError::new(Code::Environment, message));
        }
        let container = self.text("CNI_CONTAINERID")?.unwrap_or_default();
        if !is_identifier(&container) {
            let wanted = "a letter or digit, then letters, digits, '_', '.' and '-'";
            return Err(malformed("CNI_CONTAINERID", &container, wanted));
        }
        let ifname = self.text("CNI_IFNAME")?.unwrap_or_default();
        if !is_interface_name(&ifname) {
            let wanted = "an interface name: 1 to 15 bytes without '/', ':' and white space";
            return Err(malformed("CNI_IFNAME", &ifname, wanted));
        }
        Ok(Target { container, ifname })
    }

    fn sandbox(&self) -> Result<Sandbox, CniError> {
        let path = self.text("CNI_NETNS")?.unwrap_or_default();
        if !Path::new(&path).is_absolute() {
            return Err(malformed("CNI_NETNS", &path, "an absolute path"));
        }
        let may_be_own =
            matches!(self.text("CNI_NETNS_OVERRIDE"), Ok(Some(value)) if value == "1" || value == "true");
        Ok(Sandbox { path, may_be_own })
    }
}

impl Sandbox {
    /// The path to open.
    #[must_use]
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(&self.path)
    }
}

fn malformed(name: &str, value: &str, wanted: &str) -> CniError {
    // A variable may be as long as the kernel lets it; an event of a pod may not.
    let shown: String = value.chars().take(160).collect();
    CniError::new(Code::Environment, format!("environment variable {name} is {shown:?}: want {wanted}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Verb>, CniError> {
        let map: HashMap<&str, &str> = pairs.iter().copied().collect();
        Verb::read(|name| map.get(name).map(OsString::from))
    }

    fn target() -> Target {
        Target { container: "c1".into(), ifname: "eth0".into() }
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn add_with(name: &str, value: &str) -> Result<Option<Verb>, CniError> {
        let mut pairs = ADD.to_vec();
        pairs.push((
            Box::leak(name.to_owned().into_boxed_str()),
            Box::leak(value.to_owned().into_boxed_str()),
        ));
        read(&pairs)
    }

    #[test]
    fn add_takes_id_namespace_and_name() {
        let sandbox = Sandbox { path: "/run/netns/x".into(), may_be_own: false };
        assert_eq!(read(&ADD), Ok(Some(Verb::Add { target: target(), sandbox })));
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let error = read(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "")]).unwrap_err();
        assert_eq!(error.code, Code::Environment);
        assert_eq!(
            error.message,
            "required environment variables are missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"
        );
    }

    #[test]
    fn del_needs_no_namespace_and_takes_any_length() {
        let verb = read(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")]);
        assert_eq!(verb, Ok(Some(Verb::Del { target: target(), sandbox: None })));
        let long = "a".repeat(500);
        assert!(read(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", &long), ("CNI_IFNAME", "eth0")]).is_ok());
        assert_eq!(add_with("CNI_CONTAINERID", &long).unwrap_err().code, Code::Environment);
        assert!(add_with("CNI_CONTAINERID", &long[..128]).is_ok());
    }

    #[test]
    fn verbs_without_a_container_need_nothing() {
        for (name, verb) in [("VERSION", Verb::Version), ("STATUS", Verb::Status), ("GC", Verb::Gc)] {
            let odd = [("CNI_COMMAND", name), ("CNI_IFNAME", "a/b"), ("CNI_NETNS", "dummy")];
            assert_eq!(read(&odd), Ok(Some(verb)));
        }
    }

    #[test]
    fn del_takes_a_namespace_that_may_be_one_and_ignores_others() {
        let del = |netns| {
            let pairs = [
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", "c1"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", netns),
            ];
            match read(&pairs) {
                Ok(Some(Verb::Del { sandbox, .. })) => sandbox.map(|sandbox| sandbox.path),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(del("/run/netns/x").as_deref(), Some("/run/netns/x"));
        assert_eq!((del(""), del("relative")), (None, None));
    }

    #[test]
    fn no_verb_is_not_an_error_and_an_unknown_one_is() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("CNI_COMMAND", "")]), Ok(None));
        for verb in ["UPDATE", "add", "ADD ", "STATUS\n"] {
            assert_eq!(read(&[("CNI_COMMAND", verb)]).unwrap_err().code, Code::Environment, "{verb}");
        }
    }

    #[test]
    fn malformed_values_are_refused_by_name() {
        for (name, value) in [
            ("CNI_CONTAINERID", "-c1"),
            ("CNI_CONTAINERID", "c1\n"),
            ("CNI_CONTAINERID", "../c1"),
            ("CNI_IFNAME", "sixteen-bytes-xx"),
            ("CNI_IFNAME", "eth 0"),
            ("CNI_IFNAME", "eth:0"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "."),
            ("CNI_IFNAME", ".."),
            ("CNI_NETNS", "run/netns/x"),
        ] {
            let error = add_with(name, value).unwrap_err();
            assert_eq!(error.code, Code::Environment, "{name}={value}");
            assert!(error.message.contains(name), "{}", error.message);
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        let error = Verb::read(|name| match name {
            "CNI_CONTAINERID" => Some(OsString::from_vec(vec![0xff])),
            _ => ADD.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)),
        });
        assert_eq!(error.unwrap_err().code, Code::Environment);
    }

    #[test]
    fn override_is_one_or_true() {
        for (value, expected) in [("1", true), ("true", true), ("0", false), ("yes", false)] {
            let Ok(Some(Verb::Add { sandbox, .. })) = add_with("CNI_NETNS_OVERRIDE", value) else {
                panic!("not an ADD")
            };
            assert_eq!(sandbox.may_be_own, expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_environment_is_a_verb_or_an_environment_error(
            command in prop_oneof![Just("ADD".to_owned()), Just("DEL".to_owned()), Just("CHECK".to_owned()), ".{0,9}"],
            rest in prop::array::uniform4(prop::collection::vec(any::<u8>(), 0..20)),
        ) {
            let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_NETNS_OVERRIDE"];
            let verb = Verb::read(|name| {
                if name == "CNI_COMMAND" {
                    return Some(OsString::from(&command));
                }
                let index = names.iter().position(|known| *known == name)?;
                Some(OsString::from_vec(rest[index].clone()))
            });
            if let Err(error) = verb {
                prop_assert_eq!(error.code, Code::Environment);
            }
        }
    }
}
