//! The command line: arguments → typed command → pipeline or session; progress, exit codes.

/// Runs the program. Exit codes: 0 done, 1 failed, 2 bad usage or bad YAML.
pub fn main() -> std::process::ExitCode {
    todo!()
}
