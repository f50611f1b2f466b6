//! What the continuous integration checks, in the order in which a mistake costs least to find.

use anyhow::Result;

use crate::{
    chaos,
    command::{self, Workspace},
    deny, features,
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

    // Scenarios mostly wait: two at once take little more than half of the time. Three want more than two cores.
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
    report.step("doc", || cargo(&doc, Some("-D warnings")));
    match msrv::toolchain(workspace)? {
        msrv::Toolchain::Installed(name) => report.step("msrv", || msrv::check(workspace, interrupt, &name)),
        msrv::Toolchain::Missing(name) => {
            let remedy =
                format!("NOT CHECKED: Rust {name} is not installed (rustup toolchain install {name})");
            report.line("msrv", &remedy, None);
        }
    }
    report.step("features", || features::run(workspace, interrupt));
    report.step("test", || test::run(workspace, interrupt, None, &[]));
    report.step("chaos", || chaos::run_beside_tests(workspace, interrupt, &chaos_args));
    report.finish()
}
