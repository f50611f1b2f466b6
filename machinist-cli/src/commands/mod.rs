//! What the program does, one file for each command.

mod config;
mod doctor;
mod init;
mod queues;
mod retry;
mod revoke;
mod scheduled;
mod send;
mod status;
mod worker;

use clap::CommandFactory;
use machinist::{
    App, AppExt,
    settings::Settings,
    url::{Role, Scheme},
};

use crate::{
    BuildWorker,
    args::{Cli, Command},
    exit::{Code, Failure},
    output,
};

/// Does what the command line says.
///
/// # Errors
/// [`Failure`] says why it could not be done.
pub(crate) async fn run(cli: Cli, build: BuildWorker<'_>) -> Result<Code, Failure> {
    let worker = match &cli.command {
        Command::Worker(worker) => Some(worker),
        _ => None,
    };
    let flags = cli.global.overrides(worker);
    let json = cli.global.json;
    match cli.command {
        Command::Init(what) => init::run(&what, flags.config, json),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "machinist", &mut script);
            output::raw(&String::from_utf8_lossy(&script))?;
            Ok(Code::Success)
        }
        Command::Config => config::run(&Settings::load(flags)?, json),
        Command::Doctor => doctor::run(&Settings::load(flags)?, json).await,
        Command::Queues => queues::run(&Settings::load(flags)?, json).await,
        Command::Revoke(what) => revoke::run(&what, &Settings::load(flags)?, json).await,
        Command::Retry(what) => retry::run(&what, &Settings::load(flags)?, json).await,
        Command::Scheduled(what) => scheduled::run(what, &Settings::load(flags)?, json).await,
        Command::Status(what) => status::run(what, &Settings::load(flags)?, json).await,
        Command::Send(what) => send::run(*what, &Settings::load(flags)?, json).await,
        Command::Worker(what) => worker::run(what, &Settings::load(flags)?, build).await,
    }
}

/// The application that the settings name.
///
/// # Errors
/// It cannot be reached, or lives in this process alone: what is sent there would be gone when the command ends.
async fn connect(settings: &Settings) -> Result<App, Failure> {
    for (role, setting) in [(Role::Broker, &settings.broker), (Role::Backend, &settings.backend)] {
        if setting.value.scheme() == Scheme::Memory {
            let (origin, role) = (&setting.origin, role.as_str());
            let text = format!(
                "{origin}: the {role} memory:// lives in one process, and is gone when this one ends"
            );
            return Err(Failure::new(Code::Configuration, text)
                .remedy("take sqlite://machinist.db, which needs no server either"));
        }
    }
    Ok(App::from_settings(settings).await?)
}
