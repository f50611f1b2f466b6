//! Faults against real processes, in a program of its own: it needs the adapters and a runtime, and xtask must stay
//! quick to build.

use anyhow::Result;

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
    services,
};

/// Builds and runs it; whether every invariant held.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt, args: &[String]) -> Result<bool> {
    services::install_missing()?;
    interrupt.check()?;
    let servers = workspace.services_dir().with_file_name("chaos");
    let mut cargo = workspace.cargo(["run", "--quiet", "--locked", "-p", "machinist-chaos", "--", "--dir"]);
    let status = command::run(cargo.arg(servers).args(args), interrupt)?;
    interrupt.check()?;
    Ok(status.success())
}
