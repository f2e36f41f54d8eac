//! The CNI plugin as a library: validation, plumbing, and the small synchronous netlink layer that
//! the daemon's `kernel` module uses too.
//!
//! One process is one verb. The order of a call is that of the reference library: environment, standard input, JSON,
//! name, version, verb. Standard output carries exactly one JSON document, or nothing; words for people go to standard
//! error, which runtimes log.

#![forbid(unsafe_code)]

pub mod add;
pub mod attach;
pub mod call;
pub mod check;
pub mod conf;
pub mod delegate;
pub mod delete;
pub mod environment;
pub mod error;
pub mod gc;
pub mod netlink;
pub mod netns;
pub mod result;
pub mod status;
pub mod sysctl;
pub mod version;
pub mod wish;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};

use serde::Serialize;

use add::Added;
use conf::{Conf, READ_TIMEOUT, Refused, read_input};
use environment::{Hints, Verb};
use error::CniError;
use version::Version;

/// Says something to the runtime's log. A standard error that nobody reads is no reason to fail.
pub fn log(words: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "overlayd cni: {words}");
}

/// What a call came to.
#[derive(Debug)]
pub enum Outcome {
    /// ADD: print its document, then commit it.
    Added(Box<Added>),
    /// Any verb but ADD and VERSION: nothing to print.
    Silent,
    /// VERSION: print this.
    Versions(String),
    /// Not a CNI call at all: no `CNI_COMMAND`.
    NotCalled,
}

/// Serves one call.
///
/// # Errors
/// The failure and the version to report it in.
pub fn serve(
    lookup: impl Fn(&str) -> Option<OsString>,
    input: impl Read + Send + 'static,
) -> Result<Outcome, Refused> {
    let refuse = |version| move |error| Refused { version, error };
    let hints = Hints::read(&lookup);
    let Some(verb) = Verb::read(lookup).map_err(refuse(Version::NEWEST))? else {
        return Ok(Outcome::NotCalled);
    };
    let patience = if verb == Verb::Status { status::READ_TIMEOUT } else { READ_TIMEOUT };
    let text = read_input(input, patience);
    if verb == Verb::Version {
        return Ok(Outcome::Versions(versions(&text.unwrap_or_default())));
    }
    let conf = Conf::parse(&text.map_err(refuse(Version::NEWEST))?)?;
    let version = conf.version;
    let outcome: Result<Outcome, CniError> = match verb {
        Verb::Add { target, sandbox } => {
            add::add(conf, target, &sandbox, &hints).map(|added| Outcome::Added(Box::new(added)))
        }
        Verb::Check { target, sandbox } => {
            check::check(&conf, target, &sandbox, &hints).map(|()| Outcome::Silent)
        }
        Verb::Del { target, sandbox } => {
            delete::delete(&conf, target, sandbox.as_ref(), &hints).map(|()| Outcome::Silent)
        }
        Verb::Status => status::status(&conf, &hints).map(|()| Outcome::Silent),
        Verb::Gc => gc::gc(&conf, &hints).map(|()| Outcome::Silent),
        Verb::Version => Ok(Outcome::Silent),
    };
    outcome.map_err(refuse(version))
}

/// The answer to VERSION, in the version that was asked in if it is one of ours.
fn versions(text: &[u8]) -> String {
    #[derive(Serialize)]
    struct Document {
        #[serde(rename = "cniVersion")]
        version: &'static str,
        #[serde(rename = "supportedVersions")]
        supported: [&'static str; Version::ALL.len()],
    }
    let asked = serde_json::from_slice::<serde_json::Value>(text).ok();
    let asked = asked.as_ref().and_then(|value| value.get("cniVersion")?.as_str()).and_then(Version::parse);
    let document = Document {
        version: asked.unwrap_or(Version::NEWEST).as_str(),
        supported: Version::ALL.map(Version::as_str),
    };
    // Strings alone cannot fail to be written.
    serde_json::to_string(&document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Code;

    fn serve_text(environment: &[(&str, &str)], text: &str) -> Result<Outcome, Refused> {
        let environment: Vec<(String, OsString)> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        let lookup =
            |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        serve(lookup, Cursor::new(text.to_owned().into_bytes()))
    }

    fn add(text: &str) -> Refused {
        let environment = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/nonexistent"),
        ];
        serve_text(&environment, text).unwrap_err()
    }

    #[test]
    fn the_environment_comes_before_the_input() {
        let refused = serve_text(&[("CNI_COMMAND", "ADD")], "not json").unwrap_err();
        assert_eq!(refused.error.code, Code::Environment);
        assert_eq!(add("not json").error.code, Code::Decode);
    }

    #[test]
    fn the_configuration_comes_before_the_namespace() {
        let ipam = r#"{"cniVersion":"1.0.0","name":"n","ipam":{"type":"host-local"}}"#;
        assert_eq!(add(ipam).error.code, Code::InvalidConfig);
        let chained = r#"{"cniVersion":"1.0.0","name":"n","prevResult":{}}"#;
        assert_eq!(add(chained).error.code, Code::InvalidConfig);
        let plain = r#"{"cniVersion":"0.4.0","name":"n"}"#;
        assert_eq!((add(plain).error.code, add(plain).version), (Code::InvalidNamespace, Version::V0_4_0));
    }

    #[test]
    fn check_is_not_of_0_3_1_and_needs_a_previous_result() {
        let environment = [
            ("CNI_COMMAND", "CHECK"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/nonexistent"),
        ];
        let code = |text: &str| serve_text(&environment, text).unwrap_err().error.code;
        assert_eq!(code(r#"{"cniVersion":"0.3.1","name":"n"}"#), Code::IncompatibleVersion);
        assert_eq!(code(r#"{"cniVersion":"0.4.0","name":"n"}"#), Code::InvalidConfig);
    }

    #[test]
    fn status_and_gc_are_of_1_1_0() {
        for verb in ["STATUS", "GC"] {
            for version in ["0.3.1", "0.4.0", "1.0.0"] {
                let text = format!(r#"{{"cniVersion":"{version}","name":"n"}}"#);
                let refused = serve_text(&[("CNI_COMMAND", verb)], &text).unwrap_err();
                assert_eq!(refused.error.code, Code::IncompatibleVersion, "{verb} {version}");
                assert_eq!(refused.version.as_str(), version);
            }
        }
    }

    #[test]
    fn status_says_that_the_daemon_is_not_there() {
        let text = r#"{"cniVersion":"1.1.0","name":"n","socket":"/nonexistent/overlayd.sock"}"#;
        let refused = serve_text(&[("CNI_COMMAND", "STATUS")], text).unwrap_err();
        assert_eq!(refused.error.code, Code::Unavailable);
        assert!(refused.error.message.contains("/nonexistent/overlayd.sock"), "{}", refused.error.message);
    }

    #[test]
    fn version_answers_whatever_the_input_is() {
        for (text, version) in [
            ("", "1.1.0"),
            ("nonsense", "1.1.0"),
            (r#"{"cniVersion":"1.2.0"}"#, "1.1.0"),
            (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
            (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        ] {
            let Ok(Outcome::Versions(document)) = serve_text(&[("CNI_COMMAND", "VERSION")], text) else {
                panic!("no answer to {text:?}")
            };
            let document: Value = serde_json::from_str(&document).unwrap();
            let supported = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
            assert_eq!(document, json!({"cniVersion": version, "supportedVersions": supported}));
        }
    }

    #[test]
    fn without_a_verb_nothing_is_called() {
        assert!(matches!(serve_text(&[], ""), Ok(Outcome::NotCalled)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_refused_call_is_one_json_document(
            command in prop_oneof![Just("ADD"), Just("CHECK"), Just("STATUS"), Just("x")],
            container in ".{0,4}",
            ifname in ".{0,4}",
            text in prop_oneof![
                ".{0,40}",
                Just(r#"{"cniVersion":"1.0.0","name":"n"}"#.to_owned()),
                Just(r#"{"cniVersion":"1.1.0","name":"n"}"#.to_owned()),
            ],
        ) {
            let environment = [
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", container.as_str()),
                ("CNI_IFNAME", ifname.as_str()),
                ("CNI_NETNS", "/nonexistent"),
            ];
            let refused = serve_text(&environment, &text).unwrap_err();
            let document: Value = serde_json::from_str(&refused.error.to_json(refused.version)).unwrap();
            prop_assert!(document["msg"].is_string() && document["code"].is_u64());
        }
    }
}
