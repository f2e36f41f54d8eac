//! What went wrong with the API server, for people who have to mend it.

use kube::core::Status;

use super::connect::chain;

/// What was asked, as RBAC names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) verbs: &'static str,
    pub(super) resource: &'static str,
}

/// Reading Nodes.
pub(super) const READING: Asked = Asked { verbs: "get, list, watch", resource: "nodes" };

/// Writing what we announce.
pub(super) const ANNOUNCING: Asked = Asked { verbs: "patch", resource: "nodes/status" };

/// One sentence without numbers that change, so that the same trouble reads the same.
pub(super) fn explain(error: &kube::Error, server: &str, identity: &str, asked: Asked) -> String {
    match error {
        kube::Error::Api(status) => refused(status, server, identity, asked),
        kube::Error::SerdeError(error) => {
            format!("the API server at {server} sent what is not the answer to our question: {error}")
        }
        kube::Error::Auth(error) => {
            format!("the credentials of {identity} cannot be read: {}", chain(error))
        }
        other => unreachable(&chain(other), server, identity),
    }
}

/// The server did not answer within its time.
pub(super) fn stalled(server: &str, what: &str) -> String {
    format!("the API server at {server} is connected but silent: {what}")
}

fn refused(status: &Status, server: &str, identity: &str, asked: Asked) -> String {
    let Asked { verbs, resource } = asked;
    match status.code {
        401 => format!(
            "the API server at {server} does not accept the credentials of {identity} (401): is the token expired or revoked?"
        ),
        403 => format!(
            "the API server at {server} forbids us {resource} (403): RBAC must allow {identity} the verbs {verbs} on \
             {resource}; the server says: {}",
            status.message
        ),
        410 => format!(
            "the API server at {server} has forgotten our place in the history (410): listing all Nodes anew"
        ),
        429 => format!("the API server at {server} has too much to do (429)"),
        code => format!("the API server at {server} failed ({code} {}): {}", status.reason, status.message),
    }
}

fn unreachable(cause: &str, server: &str, identity: &str) -> String {
    if cause.contains("certificate") {
        return format!(
            "the API server at {server} cannot prove that it is the one of this cluster, by the CA of {identity}: {}",
            last(cause, "invalid peer certificate")
        );
    }
    if cause.contains("failed to lookup address") || cause.contains("dns error") {
        return format!(
            "the name of the API server at {server} cannot be resolved: give its address instead (api_server)"
        );
    }
    if cause.contains("before message") {
        return format!("the API server at {server}, or what stands before it, breaks off its answers");
    }
    format!("the API server at {server} cannot be reached: {}", last(cause, "client error (Connect): "))
}

/// The part of the words that tells.
fn last<'a>(words: &'a str, from: &str) -> &'a str {
    let start = words.rfind(from).unwrap_or(0);
    let tail = words.get(start..).unwrap_or(words);
    tail.strip_prefix("client error (Connect): ").unwrap_or(tail)
}

/// How long the server asks us to wait.
pub(super) fn retry_after(error: &kube::Error) -> Option<std::time::Duration> {
    let kube::Error::Api(status) = error else { return None };
    let seconds = status.details.as_ref()?.retry_after_seconds;
    Some(std::time::Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u16) -> String {
        let status = Status::failure("nodes is forbidden", "Forbidden").with_code(code);
        explain(&kube::Error::Api(status.boxed()), "https://192.0.2.1", "the pod's service account", READING)
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        assert!(of(401).contains("token expired"), "{}", of(401));
        assert!(of(403).contains("the verbs get, list, watch on nodes"), "{}", of(403));
        assert!(of(410).contains("listing all Nodes anew"));
        assert!(of(429).contains("too much to do"));
        assert!(of(500).contains("500 Forbidden"));
    }

    #[test]
    fn trouble_on_the_way_is_told_apart() {
        let at = |cause: &str| unreachable(cause, "https://x", "kubeconfig /k");
        let wrong_ca = at("ServiceError: client error (Connect): invalid peer certificate: UnknownIssuer");
        assert!(
            wrong_ca.contains("CA of kubeconfig /k: invalid peer certificate: UnknownIssuer"),
            "{wrong_ca}"
        );
        let refused =
            at("ServiceError: client error (Connect): tcp connect error: Connection refused (os error 111)");
        assert_eq!(
            refused,
            "the API server at https://x cannot be reached: tcp connect error: Connection refused (os error 111)"
        );
        let cut = at("ServiceError: client error (SendRequest): connection closed before message completed");
        assert!(cut.contains("breaks off its answers"), "{cut}");
        assert!(at("client error (Connect): dns error: failed to lookup address").contains("api_server"));
    }
}
