//! What the program does, one file for each command.

mod config;
mod dead;
mod doctor;
mod init;
mod keygen;
mod keys;
mod queues;
mod retry;
mod revoke;
mod scheduled;
mod send;
mod status;
mod worker;

use clap::CommandFactory;
use machinist::{
    App, AppExt, Servers,
    settings::Settings,
    url::{Role, Scheme},
};

use crate::{
    BuildWorker,
    args::{Cli, CliCommand},
    exit::{CliError, Code},
    output,
};

/// Does what the command line says.
///
/// # Errors
/// [`CliError`] says why it could not be done.
pub(crate) async fn run(cli: Cli, build: BuildWorker<'_>) -> Result<Code, CliError> {
    let worker = match &cli.command {
        CliCommand::Worker(worker) => Some(worker),
        _ => None,
    };
    let flags = cli.global.overrides(worker);
    let json = cli.global.json;
    match cli.command {
        CliCommand::Init(what) => init::run(&what, flags.config, json),
        CliCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "machinist", &mut script);
            output::raw(&String::from_utf8_lossy(&script))?;
            Ok(Code::Success)
        }
        CliCommand::Keygen(what) => keygen::run(&what, json),
        CliCommand::Keys(what) => keys::run(what, flags, json),
        CliCommand::Config => config::run(&Settings::load(flags)?, json),
        CliCommand::Doctor => doctor::run(&Settings::load(flags)?, json).await,
        CliCommand::Dead(what) => dead::run(what, &Settings::load(flags)?, json).await,
        CliCommand::Queues(what) => queues::run(&what, &Settings::load(flags)?, json).await,
        CliCommand::Revoke(what) => revoke::run(&what, &Settings::load(flags)?, json).await,
        CliCommand::Retry(what) => retry::run(&what, &Settings::load(flags)?, json).await,
        CliCommand::Scheduled(what) => scheduled::run(what, &Settings::load(flags)?, json).await,
        CliCommand::Status(what) => status::run(what, &Settings::load(flags)?, json).await,
        CliCommand::Send(what) => send::run(*what, &Settings::load(flags)?, json).await,
        CliCommand::Worker(what) => worker::run(what, flags, build).await,
    }
}

/// The application that the settings name, for those who send or work.
///
/// # Errors
/// It cannot be reached, has no key, or lives in this process alone: what is sent there would be gone when the
/// command ends.
async fn connect(settings: &Settings) -> Result<App, CliError> {
    outlives(settings)?;
    Ok(App::from_settings(settings).await?)
}

/// The application that the settings name, for those who only look: they need no key.
///
/// # Errors
/// It cannot be reached, or lives in this process alone.
async fn connect_reader(settings: &Settings) -> Result<App, CliError> {
    outlives(settings)?;
    Ok(Servers::reach(settings).await.reader(settings).await?)
}

fn outlives(settings: &Settings) -> Result<(), CliError> {
    for (role, setting) in [(Role::Broker, &settings.broker), (Role::Backend, &settings.backend)] {
        if setting.value.scheme() == Scheme::Memory {
            let (origin, role) = (&setting.origin, role.as_str());
            let text = format!(
                "{origin}: the {role} memory:// lives in one process, and is gone when this one ends"
            );
            return Err(CliError::new(Code::Configuration, text)
                .remedy("take sqlite://machinist.db, which needs no server either"));
        }
    }
    Ok(())
}
