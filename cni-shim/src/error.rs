//! Failures as CNI knows them: a code, a sentence, details (CNI specification 1.1.0, section 5 "Error").

use serde::Serialize;

use crate::version::Version;

/// The codes that this plugin answers with. Below 100 they are the specification's; 8 and 999 are those of the
/// reference library (`pkg/types/types.go` of containernetworking/cni).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's `cniVersion` is not supported, or is too old for the verb.
    IncompatibleVersion = 1,
    /// A variable of the environment is missing or malformed.
    Environment = 4,
    /// The configuration could not be read.
    Io = 5,
    /// The configuration is not JSON of the right types.
    Decode = 6,
    /// The configuration says something that this plugin does not do.
    InvalidConfig = 7,
    /// `CNI_NETNS` is not a network namespace that may be used.
    InvalidNamespace = 8,
    /// The daemon is not there, not ready, or out of addresses: the same call may succeed later.
    TryAgainLater = 11,
    /// An ADD could not succeed now (CNI specification 1.1.0, section 5 "Error").
    Unavailable = 50,
    /// The same, and containers that are attached have less than full connectivity.
    Impaired = 51,
    /// The kernel refused a step of the plumbing.
    Plumbing = 100,
    /// The interface, or the attachment, exists already.
    Exists = 101,
    /// Something failed inside the daemon, or its answer makes no sense.
    Daemon = 102,
    /// CHECK found a difference.
    Mismatch = 103,
    /// A defect of the plugin itself.
    Internal = 999,
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
            code: self.code as u32,
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
