//! Operator verbs: `run`, `status`, `install`, `uninstall`, `cleanup`, `version`.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong command line or configuration; 3 `status`: the daemon does not answer.

mod args;
mod cleanup;
mod client;
mod install;
mod run;
mod status;
mod text;
mod uninstall;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ArgMatches;

use crate::core::config::Config;

/// The verb failed.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const USAGE: u8 = 2;
/// The daemon does not answer.
const NO_ANSWER: u8 = 3;

/// Runs the verb of the command line.
pub fn main() -> ExitCode {
    let mut command = args::command();
    let matches = command.get_matches_mut();
    match matches.subcommand() {
        Some(("run", matches)) => with_config(matches, |config| exit_code(run::run(config))),
        Some(("status", matches)) => look(matches),
        Some(("install", matches)) => {
            let plugin = matches.get_one::<PathBuf>("plugin").map(PathBuf::as_path);
            with_config(matches, |config| exit_code(install::install(&config, plugin)))
        }
        Some(("uninstall", matches)) => with_config(matches, |config| {
            let done = uninstall::uninstall(&config, pods(matches));
            exit_code(done.and_then(|()| if matches.get_flag("stay") { uninstall::stay() } else { Ok(()) }))
        }),
        Some(("cleanup", matches)) => {
            with_config(matches, |config| exit_code(cleanup::cleanup(&config, pods(matches))))
        }
        Some(("version", _)) => {
            print(&format!("overlayd {}\n", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        _ => {
            print(&command.render_help().to_string());
            ExitCode::SUCCESS
        }
    }
}

fn pods(matches: &ArgMatches) -> cleanup::Pods {
    if matches.get_flag("with-pods") { cleanup::Pods::CutOff } else { cleanup::Pods::Refuse }
}

fn output(matches: &ArgMatches) -> status::Output {
    match matches.get_one::<String>("output").map(String::as_str) {
        Some("json") => status::Output::Json,
        _ => status::Output::Text,
    }
}

/// A broken configuration file must not keep an operator from looking.
fn look(matches: &ArgMatches) -> ExitCode {
    let config = args::config(matches).or_else(|faults| {
        tell(&faults);
        args::config_of_flags(matches)
    });
    match config {
        Ok(config) => status::status(&config, output(matches)),
        Err(faults) => {
            tell(&faults);
            ExitCode::from(USAGE)
        }
    }
}

/// Every fault of the configuration is printed, not only the first.
fn with_config(matches: &ArgMatches, verb: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match args::config(matches) {
        Ok(config) => verb(config),
        Err(faults) => {
            tell(&faults);
            ExitCode::from(USAGE)
        }
    }
}

fn tell(args::Faults(faults): &args::Faults) {
    for fault in faults {
        complain(fault);
    }
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Prints without a panic when the reader of a pipe has left.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn complain(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "overlayd: {text}");
}
