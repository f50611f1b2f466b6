//! The machinist program: the commands, without tasks of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    machinist_cli::run(|worker| worker)
}
