//! The product crate alone with none of its features and with each by itself: what a user who wants only one adapter
//! compiles.
//!
//! Checked, not built: that finds the same mistakes. Most of the time goes into the core, which one thread checks, so two
//! cargos work at once, each in a target directory of its own. Features with TLS share few dependencies with the others.

use std::{collections::BTreeMap, fs, process::Command, thread};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
};

/// Checks each; whether all passed.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let path = workspace.root().join("machinist/Cargo.toml");
    let manifest = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let features = Features::read(&manifest);
    ensure!(!features.0.is_empty(), "{} has no [features]", path.display());
    let (with_tls, mut without): (Vec<_>, Vec<_>) =
        features.0.keys().copied().partition(|name| features.includes(name, "tls"));
    without.insert(0, "");
    let beside = workspace.target_dir().join("features");
    let check = |names: &[&str], apart: bool| -> Result<bool> {
        let mut passed = true;
        for name in names {
            let args = ["check", "--locked", "-p", "machinist", "--no-default-features", "--features", name];
            say!("+ cargo {}", args.join(" "));
            let mut cargo: Command = workspace.cargo(args);
            if apart {
                cargo.env("CARGO_TARGET_DIR", &beside);
            }
            passed &= command::run(&mut cargo, interrupt)?.success();
            interrupt.check()?;
        }
        Ok(passed)
    };
    thread::scope(|scope| {
        let apart = scope.spawn(|| check(&without, true));
        let passed = check(&with_tls, false)?;
        Ok(apart.join().map_err(|_panic| anyhow!("checking the features without TLS panicked"))?? && passed)
    })
}

/// The names in `[features]` without `default`, with what each brings.
struct Features<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Features<'a> {
    fn read(manifest: &'a str) -> Self {
        let section = manifest.lines().skip_while(|line| line.trim() != "[features]").skip(1);
        let features = section
            .take_while(|line| !line.starts_with('['))
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = ["))
            .filter(|(name, _)| *name != "default");
        Self(features.collect())
    }

    /// Whether a feature is another one, or brings it by whatever way.
    fn includes(&self, name: &str, other: &str) -> bool {
        let brought = self.0.get(name).into_iter().flat_map(|brings| brings.split('"').skip(1).step_by(2));
        name == other || brought.into_iter().any(|name| self.includes(name, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_the_manifest() {
        let manifest = "[package]\nname = \"x\"\n\n[features]\ndefault = [\"amqp\"]\n# why = [\"not\"]\n\
                        amqp = [\"dep:a\", \"tls\"]\nmachinery = [\"redis\"]\nredis = [\"tls\"]\ntls = []\n\
                        sqlite = [\"dep:tls\"]\n\n[dependencies]\nserde = [\"no\"]\n";
        let features = Features::read(manifest);
        let names: Vec<_> = features.0.keys().copied().collect();
        assert_eq!(names, ["amqp", "machinery", "redis", "sqlite", "tls"]);
        let with_tls: Vec<_> = names.into_iter().filter(|name| features.includes(name, "tls")).collect();
        assert_eq!(with_tls, ["amqp", "machinery", "redis", "tls"]);
    }
}
