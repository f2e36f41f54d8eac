//! STATUS: would an ADD succeed now? Runtimes ask every few seconds and wait without a limit of their own, so the
//! answer comes within a second whatever the daemon does.

use std::time::{Duration, Instant};

use wire::ipc::{RefusalKind, Reply, Request};

use crate::call::{CallError, call_once, refused};
use crate::conf::Conf;
use crate::delegate::Delegate;
use crate::environment::Hints;
use crate::error::{CniError, Code};
use crate::version::Version;

/// How long the runtime may take to write the configuration.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the daemon may take: one that restarts is not waited for, the runtime asks again.
const DAEMON_PATIENCE: Duration = Duration::from_millis(400);

/// How long the daemon and the IPAM plugin may take together.
const PATIENCE: Duration = Duration::from_millis(620);

/// Asks the daemon, then the IPAM plugin if there is one.
///
/// # Errors
/// Code 50 or 51 with the reason; 1 before version 1.1.0.
pub fn status(conf: &Conf, hints: &Hints) -> Result<(), CniError> {
    conf.require(Version::V1_1_0, "STATUS")?;
    let unavailable = |error: CniError| CniError { code: Code::Unavailable, ..error };
    let delegate = Delegate::find(conf, hints.plugin_path.as_deref()).map_err(unavailable)?;
    let begun = Instant::now();
    let request = Request::Status { wants_addresses: delegate.is_none() };
    answer(conf, call_once(&conf.socket, &request, begun + DAEMON_PATIENCE))?;
    let Some(delegate) = delegate else { return Ok(()) };
    match delegate.call("STATUS", PATIENCE.saturating_sub(begun.elapsed())) {
        Ok(_) => Ok(()),
        // Its own words and number; what we say about it is that it does not work.
        Err(error) if matches!(error.code, Code::Delegated(_)) => Err(error),
        Err(error) => Err(unavailable(error)),
    }
}

fn answer(conf: &Conf, reply: Result<Reply, CallError>) -> Result<(), CniError> {
    let unavailable = |message: String| Err(CniError::new(Code::Unavailable, message));
    match reply {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Refused { kind: RefusalKind::Impaired, message }) => {
            Err(refused(RefusalKind::Impaired, &message))
        }
        // A daemon that does not know the question.
        Ok(Reply::Refused { kind: RefusalKind::Invalid, message }) => {
            unavailable(format!("overlayd is older than its plugin and cannot tell its status: {message}"))
        }
        Ok(Reply::Refused { message, .. }) => unavailable(format!("overlayd cannot serve pods: {message}")),
        Ok(Reply::Leased(_)) => unavailable("overlayd answered STATUS with a lease".to_owned()),
        Err(error) => unavailable(format!("overlayd is not reachable on {}: {error}", conf.socket.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_of_the_daemon_has_its_code() {
        let conf = Conf::parse(br#"{"cniVersion":"1.1.0","name":"n"}"#).unwrap();
        let refusal = |kind| Ok(Reply::Refused { kind, message: "the reason".into() });
        assert_eq!(answer(&conf, Ok(Reply::Done)), Ok(()));
        for (kind, code) in [
            (RefusalKind::NotReady, Code::Unavailable),
            (RefusalKind::Exhausted, Code::Unavailable),
            (RefusalKind::Internal, Code::Unavailable),
            (RefusalKind::Invalid, Code::Unavailable),
            (RefusalKind::Impaired, Code::Impaired),
        ] {
            let error = answer(&conf, refusal(kind)).unwrap_err();
            assert_eq!(error.code, code, "{kind:?}");
            assert!(error.message.ends_with("the reason"), "{}", error.message);
        }
    }
}
