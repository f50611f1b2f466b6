//! The machinist program: the commands, without built-in tasks.

use std::process::ExitCode;

fn main() -> ExitCode {
    machinist_cli::run(|worker| worker)
}
