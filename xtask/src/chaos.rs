//! Faults against real processes, in a program of its own: it needs the adapters and a runtime, and xtask must stay
//! quick to build.

use anyhow::Result;

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
    let release = Release::provide(rabbitmq, workspace, interrupt)?;
    let servers = workspace.services_dir().with_file_name("chaos");
    let mut cargo = workspace.cargo(["run", "--quiet", "--locked", "-p", "machinist-chaos", "--", "--dir"]);
    release.tell(&mut cargo);
    let status = command::run(cargo.arg(servers).args(args), interrupt)?;
    interrupt.check()?;
    Ok(status.success())
}
