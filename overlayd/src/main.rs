//! Parses the command line, runs the verb, turns an error into an exit code.

fn main() -> std::process::ExitCode {
    overlayd::cli::main()
}
