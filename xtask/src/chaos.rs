//! Faults against real processes, in a program of its own: it needs the adapters and a runtime, and xtask must stay
//! quick to build.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
    services::{Major, Release},
    test,
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

/// Runs the program that the build of the tests has left, which takes no second build with fewer features.
pub(crate) fn run_beside_tests(
    workspace: &Workspace,
    interrupt: &Interrupt,
    args: &[String],
) -> Result<bool> {
    let mut build = workspace.cargo(test::cargo_args(&["--no-run"]));
    ensure!(command::run(&mut build, interrupt)?.success(), "the tests do not compile");
    let program = Command::new(workspace.target_dir().join("debug/machinist-chaos"));
    run_program(program, workspace, interrupt, None, args)
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
