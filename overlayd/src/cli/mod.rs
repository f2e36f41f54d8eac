//! Operator verbs: `run`, `status`, `cleanup`.

/// Runs the verb of the command line.
pub fn main() -> std::process::ExitCode {
    todo!()
}
