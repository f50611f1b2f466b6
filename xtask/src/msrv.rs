//! The oldest supported compiler: `rust-version` of the workspace.
//!
//! Clippy's `incompatible_msrv` finds most uses of a newer standard library with any compiler. This check compiles the
//! published crates with the old one, where rustup has it.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
};

/// Compiler of the minimum version, by its name in rustup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    Installed(String),
    Missing(String),
}

/// Asks rustup for the compiler.
pub(crate) fn toolchain(workspace: &Workspace) -> Result<Toolchain> {
    let path = workspace.root().join("Cargo.toml");
    let manifest = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let version = minimum(&manifest).with_context(|| format!("{} has no rust-version", path.display()))?;
    // Without rustup there is one compiler, whose version nobody chose.
    let installed = Command::new("rustup").args(["toolchain", "list"]).output();
    let list =
        installed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    Ok(find(&list, version))
}

/// Checks the published crates in a target folder of their own, so that the compilers do not replace each other's
/// results.
pub(crate) fn check(workspace: &Workspace, interrupt: &Interrupt, toolchain: &str) -> Result<bool> {
    let mut cargo = Command::new("rustup");
    cargo.current_dir(workspace.root()).args(["run", toolchain, "cargo", "check", "--locked"]);
    cargo.args(["-p", "machinist-cli", "-p", "machinist-test", "-p", "machinist-conformance"]);
    cargo
        .arg("--target-dir")
        .arg(workspace.target_dir().join("msrv"))
        .env_remove("CARGO")
        .env_remove("RUSTC");
    say!("+ cargo +{toolchain} check");
    Ok(command::run(&mut cargo, interrupt)?.success())
}

/// Returns the version of `rust-version = "…"`.
fn minimum(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
}

/// Finds a version, with any patch number, in the list of rustup.
fn find(list: &str, version: &str) -> Toolchain {
    let mut names = list.lines().filter_map(|line| line.split_whitespace().next());
    let of_version = |name: &&str| {
        name.strip_prefix(version).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
    };
    match names.find(of_version) {
        Some(name) => Toolchain::Installed(name.to_owned()),
        None => Toolchain::Missing(version.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_is_that_of_the_workspace() {
        assert_eq!(minimum("[workspace.package]\nrust-version = \"1.89\"\n"), Some("1.89"));
        assert_eq!(minimum("rust-version.workspace = true\n"), None);
    }

    #[test]
    fn a_compiler_is_found_by_its_version_with_any_patch() {
        let list = "stable-x86_64 (active, default)\n1.8.0-x86_64\n1.89.1-x86_64\n";
        assert_eq!(find(list, "1.89"), Toolchain::Installed("1.89.1-x86_64".to_owned()));
        assert_eq!(find(list, "1.8"), Toolchain::Installed("1.8.0-x86_64".to_owned()));
        assert_eq!(find(list, "1.90"), Toolchain::Missing("1.90".to_owned()));
        assert_eq!(find("", "1.89"), Toolchain::Missing("1.89".to_owned()));
    }
}
