//! What the continuous integration checks, in the order in which a mistake costs least to find.
//!
//! Every step runs even after one has failed, so that one push shows everything there is to mend.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    chaos,
    command::{self, Workspace, display},
    interrupt::Interrupt,
    msrv, test, tidy,
};

/// Runs all steps; whether all passed.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let began = Instant::now();
    let mut report = Report { interrupt, lines: Vec::new(), passed: true };
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
    let deny = ["deny", "--all-features", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];

    // Scenarios mostly wait: two at once take little more than half of the time.
    let chaos_args = ["--ci", "--lanes", "2"].map(str::to_owned);

    report.step("fmt", || cargo(&["fmt", "--all", "--check"], None));
    report.step("tidy", || tidy::run(workspace));
    if has_cargo_deny() {
        report.step("deny", || cargo(&deny, None));
    } else {
        report.line("deny", "not run: cargo-deny is not installed (cargo install cargo-deny --locked)", None);
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
    report.step("features", || each_feature(workspace, &|args| cargo(args, None)));
    report.step("test", || test::run(workspace, interrupt, None, &[]));
    report.step("chaos", || chaos::run(workspace, interrupt, None, &chaos_args));

    say!("\n{}\n{:<9} {}", report.lines.join("\n"), "all", display(began.elapsed()));
    interrupt.check()?;
    Ok(report.passed)
}

#[derive(Debug)]
struct Report<'a> {
    interrupt: &'a Interrupt,
    lines: Vec<String>,
    passed: bool,
}

impl Report<'_> {
    fn step(&mut self, name: &str, check: impl FnOnce() -> Result<bool>) {
        let began = Instant::now();
        let verdict = match self.interrupt.check().and_then(|()| check()) {
            Ok(true) => "ok".to_owned(),
            Ok(false) => "FAILED".to_owned(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        self.passed &= verdict == "ok";
        self.line(name, &verdict, Some(began.elapsed()));
    }

    /// Said at once, for whoever watches, and again at the end, for whoever reads a log from below.
    fn line(&mut self, name: &str, verdict: &str, took: Option<Duration>) {
        let line = format!("{name:<9} {:<12} {verdict}", took.map(display).unwrap_or_default());
        say!("== {line}");
        self.lines.push(line);
    }
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

fn has_cargo_deny() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join("cargo-deny").is_file())
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

    #[test]
    fn a_failed_step_fails_the_report_and_the_next_still_runs() {
        let interrupt = Interrupt::listen().unwrap();
        let mut report = Report { interrupt: &interrupt, lines: Vec::new(), passed: true };
        report.step("one", || Ok(false));
        report.step("two", || Ok(true));
        assert!(!report.passed);
        assert_eq!(report.lines.len(), 2);
    }
}
