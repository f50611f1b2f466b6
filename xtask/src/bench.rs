//! Measuring: private servers, a release build, and the program that does the rest.
//!
//! The servers are always new ones, so that nothing another run left behind is measured.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
    services::{self, Services},
};

const PACKAGE: &str = "machinist-bench";

/// Builds, starts the servers, measures; whether that went well.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt, args: &[String]) -> Result<bool> {
    let mut build = workspace.cargo(["build", "--release", "--locked", "-p", PACKAGE]);
    // What counts allocations is too slow for anything else.
    if args.first().is_some_and(|arg| arg == "allocations") {
        build.args(["--features", "allocations"]);
    }
    let built = command::run(&mut build, interrupt)?;
    interrupt.check()?;
    ensure!(built.success(), "{PACKAGE} cannot be built");
    let dir = workspace.target_dir().join("bench");
    let mut bench = Command::new(workspace.target_dir().join("release").join(PACKAGE));
    match args.split_first() {
        Some((first, rest)) if first == "compare" => {
            bench.arg("compare").args(with_programs(workspace, interrupt, rest)?);
        }
        _ => {
            bench.args(args);
        }
    }
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return Ok(command::run(&mut bench, interrupt)?.success());
    }
    services::install_missing(&services::SERVERS)?;
    interrupt.check()?;
    let services = Services::at(&dir.join("services"))?;
    services.down()?;
    let up = services.up(interrupt)?;
    let measured = measure(&services, &up.endpoints, bench.env("MACHINIST_BENCH_DIR", &dir), interrupt);
    // Before the outcome is looked at: they end on failure and on Ctrl-C too.
    services.down()?;
    measured
}

/// Replaces the checkouts among the arguments of a comparison by programs. A checkout is built in a folder of this
/// workspace's target directory, so that nothing in it changes.
fn with_programs(workspace: &Workspace, interrupt: &Interrupt, args: &[String]) -> Result<Vec<String>> {
    let mut args = args.to_vec();
    // Wherever options stand: their values are no checkouts.
    let checkouts = args.iter_mut().filter(|arg| Path::new(arg.as_str()).join("Cargo.toml").is_file());
    for (place, name) in checkouts.zip(["first", "second"]) {
        let path = Path::new(place.as_str());
        let target = workspace.target_dir().join("bench").join(name);
        let mut build = workspace.cargo(["build", "--release", "--locked", "-p", PACKAGE, "--manifest-path"]);
        build.arg(path.join("Cargo.toml")).env("CARGO_TARGET_DIR", &target);
        let built = command::run(&mut build, interrupt)?;
        interrupt.check()?;
        ensure!(built.success(), "{} cannot be built", path.display());
        *place = target.join("release").join(PACKAGE).display().to_string();
    }
    Ok(args)
}

fn measure(
    services: &Services,
    endpoints: &services::Endpoints,
    bench: &mut Command,
    interrupt: &Interrupt,
) -> Result<bool> {
    bench
        .env("MACHINIST_BENCH_AMQP_URL", &endpoints.amqp_url)
        .env("MACHINIST_BENCH_REDIS_URL", &endpoints.redis_url)
        .env("MACHINIST_BENCH_RABBITMQ_PID", services.pid("rabbitmq")?.to_string())
        .env("MACHINIST_BENCH_REDIS_PID", services.pid("redis")?.to_string())
        .env("MACHINIST_BENCH_SERVERS", endpoints.summary());
    let status = command::run(bench, interrupt)?;
    interrupt.check()?;
    Ok(status.success())
}
