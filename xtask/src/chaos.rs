//! Faults against real processes, in a program of its own: it needs the adapters and a runtime, and xtask must stay
//! quick to build.

use std::{fs, io, path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
    services::{Major, Release},
};

/// Builds and runs it; whether every invariant held.
pub(crate) fn run(
    workspace: &Workspace,
    interrupt: &Interrupt,
    rabbitmq: Option<Major>,
    args: &[String],
) -> Result<bool> {
    let program = workspace.cargo(["run", "--quiet", "--locked", "-p", "machinist-chaos", "--"]);
    run_program(program, workspace, interrupt, rabbitmq, args)
}

/// Removes the program that an earlier build of the tests has left: [`run_built`] must not run an old one.
pub(crate) fn remove_built(workspace: &Workspace) -> Result<()> {
    match fs::remove_file(built(workspace)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn built(workspace: &Workspace) -> PathBuf {
    workspace.target_dir().join("debug/machinist-chaos")
}

/// Runs the program that the build of the tests has left. That takes no second build with fewer features, and no turn at
/// cargo's lock, so that cargo may compile meanwhile.
pub(crate) fn run_built(workspace: &Workspace, interrupt: &Interrupt, args: &[String]) -> Result<bool> {
    let program = built(workspace);
    ensure!(program.is_file(), "the build of the tests has left no {}", program.display());
    run_program(Command::new(program), workspace, interrupt, None, args)
}

fn run_program(
    mut program: Command,
    workspace: &Workspace,
    interrupt: &Interrupt,
    rabbitmq: Option<Major>,
    args: &[String],
) -> Result<bool> {
    let release = Release::provide(rabbitmq, workspace, interrupt)?;
    release.tell(&mut program);
    let servers = workspace.services_dir().with_file_name("chaos");
    let status = command::run(program.arg("--dir").arg(servers).args(args), interrupt)?;
    interrupt.check()?;
    Ok(status.success())
}
