//! What the continuous integration checks, in the order in which a mistake costs least to find.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{
    chaos,
    command::{self, Workspace},
    deny,
    interrupt::Interrupt,
    msrv,
    report::Report,
    test, tidy,
};

/// Runs all steps; whether all passed.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let mut report = Report::new(interrupt);
    let cargo = |args: &[&str], rustdocflags: Option<&str>| {
        let mut cargo = workspace.cargo(args);
        if let Some(flags) = rustdocflags {
            cargo.env("RUSTDOCFLAGS", flags);
        }
        say!("+ cargo {}", args.join(" "));
        Ok(command::run(&mut cargo, interrupt)?.success())
    };
    let clippy =
        ["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"];
    let doc = ["doc", "--workspace", "--no-deps", "--all-features", "--locked"];

    // Scenarios mostly wait: two at once take little more than half of the time, and leave room for what compiles on one
    // thread. Three want more than two cores.
    let chaos_args = ["--ci", "--lanes", "2"].map(str::to_owned);

    report.step("fmt", || cargo(&["fmt", "--all", "--check"], None));
    report.step("tidy", || tidy::run(workspace));
    match deny::installed(workspace) {
        Some(program) => report.step("deny", || deny::run(workspace, interrupt, &program)),
        None => {
            report.line("deny", "not run: `cargo xtask nightly deny` installs cargo-deny, and runs it", None)
        }
    }
    report.step("clippy", || cargo(&clippy, None));
    match msrv::toolchain(workspace)? {
        msrv::Toolchain::Installed(name) => report.step("msrv", || msrv::check(workspace, interrupt, &name)),
        msrv::Toolchain::Missing(name) => {
            let remedy =
                format!("NOT CHECKED: Rust {name} is not installed (rustup toolchain install {name})");
            report.line("msrv", &remedy, None);
        }
    }
    chaos::remove_built(workspace)?;
    report.step("test", || test::run(workspace, interrupt, None, &[]));
    let chaos = || chaos::run_built(workspace, interrupt, &chaos_args);
    report.step_beside("chaos", chaos, |report| {
        report.step("doc", || cargo(&doc, Some("-D warnings")));
        report.step("features", || each_feature(workspace, &|args| cargo(args, None)));
    });
    report.finish()
}

/// The product crate alone with none of its features and with each by itself: what a user who wants only one
/// adapter compiles. Checked, not built: that finds the same mistakes and shares its results with clippy's.
fn each_feature(workspace: &Workspace, cargo: &dyn Fn(&[&str]) -> Result<bool>) -> Result<bool> {
    let path = workspace.root().join("machinist/Cargo.toml");
    let manifest = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let features = features(&manifest);
    ensure!(!features.is_empty(), "{} has no [features]", path.display());
    let mut passed = true;
    for feature in std::iter::once("").chain(features) {
        passed &=
            cargo(&["check", "--locked", "-p", "machinist", "--no-default-features", "--features", feature])?;
    }
    Ok(passed)
}

/// The names in `[features]`, without `default`.
fn features(manifest: &str) -> Vec<&str> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[features]").skip(1);
    section
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = ["))
        .map(|(name, _)| name)
        .filter(|name| *name != "default")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_the_manifest() {
        let manifest = "[package]\nname = \"x\"\n\n[features]\ndefault = [\"amqp\"]\n# why = [\"not\"]\n\
                        amqp = [\"dep:a\"]\nredis = []\n\n[dependencies]\nserde = [\"no\"]\n";
        assert_eq!(features(manifest), ["amqp", "redis"]);
    }
}
