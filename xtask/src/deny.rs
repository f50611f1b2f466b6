//! Licences, sources and banned crates of everything that the project compiles: cargo-deny.
//!
//! No registry has a compiled cargo-deny of today, and compiling it takes minutes. So the nightly run installs it, below
//! target/, and the continuous integration uses it where it is installed. The rules themselves are in `tidy` too.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
};

const NAME: &str = "cargo-deny";

/// The program, if this machine has it.
pub(crate) fn installed(workspace: &Workspace) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = tools(workspace).join("bin");
    env::split_paths(&path).chain([own]).map(|dir| dir.join(NAME)).find(|program| program.is_file())
}

/// Compiles it, below target/; whether that worked.
pub(crate) fn install(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let mut cargo = workspace.cargo(["install", NAME, "--locked", "--root"]);
    say!("+ cargo install {NAME} --locked");
    Ok(command::run(cargo.arg(tools(workspace)), interrupt)?.success())
}

/// Runs it by the rules of deny.toml.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt, program: &Path) -> Result<bool> {
    let args = ["--all-features", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    say!("+ cargo deny {}", args.join(" "));
    Ok(command::run(Command::new(program).current_dir(workspace.root()).args(args), interrupt)?.success())
}

fn tools(workspace: &Workspace) -> PathBuf {
    workspace.target_dir().join("tools")
}
