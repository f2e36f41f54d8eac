//! Checks, and how they are shown.

use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) ok: bool,
    pub(crate) detail: String,
}

/// Where lines go and what has been found so far.
#[derive(Debug)]
pub(crate) struct Report {
    to_stderr: bool,
    colour: bool,
    pub(crate) checks: Vec<Check>,
}

impl Report {
    /// For machines the lines go to standard error and the document, at the end, to standard output.
    pub(crate) fn new(to_stderr: bool) -> Self {
        let terminal =
            if to_stderr { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        Self { to_stderr, colour: terminal && std::env::var_os("NO_COLOR").is_none(), checks: Vec::new() }
    }

    pub(crate) fn line(&self, text: &str) {
        // A reader that went away is no reason to stop in the middle.
        let _ = if self.to_stderr {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    pub(crate) fn heading(&self, text: &str) {
        self.line(&format!("\n{}", self.paint("1", text)));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn mark(&self, ok: bool) -> String {
        if ok { self.paint("32", "✓") } else { self.paint("1;31", "✗") }
    }

    /// Keeps a check without a line of its own: the matrix draws many in one.
    pub(crate) fn keep(&mut self, name: String, ok: bool, detail: String) -> bool {
        self.checks.push(Check { name, ok, detail });
        ok
    }

    /// Keeps a check and shows it.
    pub(crate) fn check(&mut self, name: &str, ok: bool, detail: String) -> bool {
        self.line(&format!("  {} {name:<46} {}", self.mark(ok), self.dim(&detail)));
        self.keep(name.to_owned(), ok, detail)
    }

    /// Runs something that may panic, as the lab does when it cannot go on; a panic is a cross.
    pub(crate) fn attempt<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(value) => Some(value),
            Err(payload) => {
                let text = payload
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                    .unwrap_or_else(|| "panicked".to_owned());
                self.check(name, false, text);
                None
            }
        }
    }

    pub(crate) fn failures(&self) -> usize {
        self.checks.iter().filter(|check| !check.ok).count()
    }
}
