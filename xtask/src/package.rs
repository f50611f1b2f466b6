//! What a release is made of: the packages for crates.io, and the manual pages.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
};

/// Packs each published crate as crates.io would get it, and compiles the packages alone. Nothing is uploaded.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let args = ["publish", "--workspace", "--dry-run", "--locked", "--allow-dirty"];
    say!("+ cargo {}", args.join(" "));
    Ok(command::run(&mut workspace.cargo(args), interrupt)?.success())
}

/// Writes `machinist.1` and a manual page for each command.
pub(crate) fn man(workspace: &Workspace, interrupt: &Interrupt, folder: &Path) -> Result<bool> {
    let args =
        ["run", "--quiet", "--locked", "-p", "machinist-cli", "--bin", "machinist", "--features", "man"];
    let mut cargo = workspace.cargo(args);
    if !command::run(cargo.args(["--", "man"]).arg(folder), interrupt)?.success() {
        return Ok(false);
    }
    let folder = workspace.root().join(folder);
    let pages = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?.count();
    if pages == 0 {
        bail!("{} is empty", folder.display());
    }
    say!("{pages} pages in {}", folder.display());
    Ok(true)
}
