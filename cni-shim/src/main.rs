//! The plugin binary: one verb per process.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cni_shim::conf::Refused;
use cni_shim::error::{CniError, Code};
use cni_shim::version::Version;
use cni_shim::{Outcome, log, serve};
use rustix::fs::{self, OFlags};

/// Whether the one document of this process has been written to standard output.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// When the process gives up although a step still hangs, usually in the kernel. Every wait inside is shorter.
const WATCHDOG: Duration = Duration::from_secs(20);

/// The same for DEL: a runtime that waits for it holds up a pod that is going.
const WATCHDOG_DEL: Duration = Duration::from_millis(4500);

/// The same for STATUS, which runtimes wait for without a limit of their own.
const WATCHDOG_STATUS: Duration = Duration::from_millis(900);

/// How long writing the document may take when the time is over.
const LAST_WORDS: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    if let Err(error) = watch() {
        // Without a watch a step that hangs would hang the runtime.
        let message = format!("the overlayd plugin cannot start a thread: {error}");
        let error = CniError::new(Code::TryAgainLater, message);
        fail(&mut io::stdout(), &Refused { version: Version::NEWEST, error });
        return ExitCode::FAILURE;
    }
    if stdout_is_closed() {
        log(format_args!("standard output is closed: nobody would hear the answer, so nothing is done"));
        return ExitCode::FAILURE;
    }
    let is_done = answer(&mut io::stdout(), || serve(|name| std::env::var_os(name), io::stdin()));
    if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes the call and writes its one document; whether it succeeded. A panic is an error like others.
fn answer(output: &mut impl Write, call: impl FnOnce() -> Result<Outcome, Refused>) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| finish(output, call())));
    outcome.unwrap_or_else(|_| {
        let error = CniError::new(Code::Internal, "the overlayd plugin failed by a defect of its own")
            .with_details("the plugin's standard error, in the runtime's log, says where");
        fail(output, &Refused { version: Version::NEWEST, error })
    })
}

fn finish(output: &mut impl Write, outcome: Result<Outcome, Refused>) -> bool {
    match outcome {
        Ok(Outcome::Added(added)) => {
            if let Err(error) = print(output, &added.document) {
                log(format_args!("write the result: {error}; the attachment is taken back"));
                return false;
            }
            added.commit();
            true
        }
        Ok(Outcome::Versions(document)) => print(output, &document).is_ok(),
        Ok(Outcome::Silent) => true,
        Ok(Outcome::NotCalled) => {
            let (own, supported) = (env!("CARGO_PKG_VERSION"), Version::ALL.map(Version::as_str).join(", "));
            log(format_args!("version {own}, a CNI plugin, called by container runtimes"));
            log(format_args!("CNI versions: {supported}"));
            true
        }
        Err(refused) => fail(output, &refused),
    }
}

fn fail(output: &mut impl Write, refused: &Refused) -> bool {
    log(format_args!("{}", refused.error));
    // Without a reader the exit code alone has to do.
    let _ = print(output, &refused.error.to_json(refused.version));
    false
}

/// Whether this process was started without a standard output. Before `main` the standard library opens `/dev/null`, for
/// reading and writing, in its place; those who want no answer open it for writing alone.
fn stdout_is_closed() -> bool {
    let stdout = io::stdout();
    let is_null = fs::fstat(&stdout).is_ok_and(|stat| stat.st_rdev == fs::makedev(1, 3));
    let is_both_ways = fs::fcntl_getfl(&stdout).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::RDWR);
    is_null && is_both_ways
}

/// Writes the one document; the second caller is refused.
fn print(output: &mut impl Write, document: &str) -> io::Result<()> {
    if WRITTEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::other("the document of this call is written already"));
    }
    output.write_all(document.as_bytes())?;
    output.write_all(b"\n")?;
    output.flush()
}

/// Ends the process with an error when it takes too long. What it made by then the runtime's DEL takes back.
fn watch() -> io::Result<()> {
    let command = std::env::var_os("CNI_COMMAND").unwrap_or_default();
    let (patience, code) = match command.to_str() {
        Some("DEL") => (WATCHDOG_DEL, Code::TryAgainLater),
        Some("STATUS") => (WATCHDOG_STATUS, Code::Unavailable),
        _ => (WATCHDOG, Code::TryAgainLater),
    };
    let wait = move || {
        thread::sleep(patience);
        let message = format!("the overlayd plugin did not finish within {} s", patience.as_secs_f32());
        let error = CniError::new(code, message);
        if print(&mut io::stdout(), &error.to_json(Version::NEWEST)).is_err() {
            // The one document is being written, to a reader who may never come.
            thread::sleep(LAST_WORDS);
        }
        std::process::exit(1);
    };
    thread::Builder::new().spawn(wait).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One process is one call, so this is the only test here.
    #[test]
    #[expect(clippy::panic, reason = "this is what is tested")]
    fn a_panic_is_one_document_with_the_code_of_a_defect() {
        let mut output = Vec::new();
        assert!(!answer(&mut output, || panic!("a defect")));
        let document: serde_json::Value = serde_json::from_slice(&output).unwrap();
        assert_eq!((document["code"].as_u64(), document["cniVersion"].as_str()), (Some(999), Some("1.1.0")));
        assert!(document["msg"].as_str().is_some_and(|words| words.contains("defect")), "{document}");
        assert!(output.ends_with(b"\n") && output.iter().filter(|byte| **byte == b'\n').count() == 1);
        // What comes later has nothing to add.
        assert!(!answer(&mut output, || Ok(Outcome::Versions("{}".into()))));
        assert!(serde_json::from_slice::<serde_json::Value>(&output).is_ok());
    }
}
