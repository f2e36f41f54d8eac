//! Failures as CNI knows them: a code, a sentence, details (CNI specification 1.1.0, section 5 "Error").

use serde::Serialize;

use crate::version::Version;

/// The codes that this plugin answers with. Below 100 they are the specification's; 8 and 999 are those of the
/// reference library (`pkg/types/types.go` of containernetworking/cni).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's `cniVersion` is not supported, or is too old for the verb.
    IncompatibleVersion,
    /// A variable of the environment is missing or malformed.
    Environment,
    /// The configuration could not be read.
    Io,
    /// The configuration is not JSON of the right types.
    Decode,
    /// The configuration says something that this plugin does not do.
    InvalidConfig,
    /// `CNI_NETNS` is not a network namespace that may be used.
    InvalidNamespace,
    /// The daemon is not there, not ready, or out of addresses: the same call may succeed later.
    TryAgainLater,
    /// An ADD could not succeed now (CNI specification 1.1.0, section 5 "Error").
    Unavailable,
    /// The same, and containers that are attached have less than full connectivity.
    Impaired,
    /// The kernel refused a step of the plumbing.
    Plumbing,
    /// The interface, or the attachment, exists already.
    Exists,
    /// Something failed inside the daemon, or its answer makes no sense.
    Daemon,
    /// CHECK found a difference.
    Mismatch,
    /// The IPAM plugin failed without a word, or what it said makes no sense.
    Ipam,
    /// A defect of the plugin itself.
    Internal,
    /// Whatever the IPAM plugin said.
    Delegated(u32),
}

impl Code {
    /// All of our own.
    pub const ALL: [Self; 15] = [
        Self::IncompatibleVersion,
        Self::Environment,
        Self::Io,
        Self::Decode,
        Self::InvalidConfig,
        Self::InvalidNamespace,
        Self::TryAgainLater,
        Self::Unavailable,
        Self::Impaired,
        Self::Plumbing,
        Self::Exists,
        Self::Daemon,
        Self::Mismatch,
        Self::Ipam,
        Self::Internal,
    ];

    /// The number in the document.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNamespace => 8,
            Self::TryAgainLater => 11,
            Self::Unavailable => 50,
            Self::Impaired => 51,
            Self::Plumbing => 100,
            Self::Exists => 101,
            Self::Daemon => 102,
            Self::Mismatch => 103,
            Self::Ipam => 104,
            Self::Internal => 999,
            Self::Delegated(number) => number,
        }
    }

    /// What it means, in the words of the README.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::IncompatibleVersion => "`cniVersion` is not supported, or too old for the verb",
            Self::Environment => {
                "a variable of the environment is missing or malformed; all that are missing are named"
            }
            Self::Io => "standard input could not be read, did not end within 5 s or is larger than 1 MiB",
            Self::Decode => "standard input is not JSON of the right types",
            Self::InvalidConfig => {
                "the configuration asks for something impossible or unsupported; the key is named"
            }
            Self::InvalidNamespace => "`CNI_NETNS` is no network namespace, or the host's own",
            Self::TryAgainLater => {
                "the daemon is not reachable, not ready or out of addresses; the same call may succeed later"
            }
            Self::Unavailable => "STATUS: an ADD would fail now, and why",
            Self::Impaired => "STATUS: the same, and pods have lost the other nodes",
            Self::Plumbing => "the kernel refused a step; nothing is left behind",
            Self::Exists => "the interface exists already; nothing was changed",
            Self::Daemon => "something failed inside the daemon, or its answer makes no sense",
            Self::Mismatch => "CHECK found damage; all of it is named",
            Self::Ipam => "the IPAM plugin failed without a word, or gave an impossible result",
            Self::Internal => "a defect of the plugin",
            Self::Delegated(_) => "the IPAM plugin's own error, as it said it",
        }
    }
}

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// The class of the failure.
    pub code: Code,
    /// One sentence for a person: kubelet shows it in the pod's events.
    pub message: String,
    /// What helps to understand it; may be empty.
    pub details: String,
}

impl CniError {
    /// A failure without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same failure with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The document for standard output.
    #[must_use]
    pub fn to_json(&self, version: Version) -> String {
        let document = Document {
            cni_version: version.as_str(),
            code: self.code.number(),
            msg: &self.message,
            details: (!self.details.is_empty()).then_some(&self.details),
        };
        serde_json::to_string(&document)
            .unwrap_or_else(|_| r#"{"code":999,"msg":"the failure could not be written as JSON"}"#.to_owned())
    }
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_json_object() {
        let error = CniError::new(Code::TryAgainLater, "a \"quoted\"\nline").with_details("more");
        let value: serde_json::Value = serde_json::from_str(&error.to_json(Version::V0_4_0)).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"cniVersion": "0.4.0", "code": 11, "msg": "a \"quoted\"\nline", "details": "more"})
        );
        assert!(!error.to_json(Version::V0_4_0).contains('\n'));
    }
}
