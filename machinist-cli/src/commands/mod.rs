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
        Command::Keygen(what) => keygen::run(&what, json),
        Command::Keys(what) => keys::run(what, flags, json),
        Command::Config => config::run(&Settings::load(flags)?, json),
        Command::Doctor => doctor::run(&Settings::load(flags)?, json).await,
        Command::Dead(what) => dead::run(what, &Settings::load(flags)?, json).await,
        Command::Queues(what) => queues::run(&what, &Settings::load(flags)?, json).await,
        Command::Revoke(what) => revoke::run(&what, &Settings::load(flags)?, json).await,
        Command::Retry(what) => retry::run(&what, &Settings::load(flags)?, json).await,
        Command::Scheduled(what) => scheduled::run(what, &Settings::load(flags)?, json).await,
        Command::Status(what) => status::run(what, &Settings::load(flags)?, json).await,
        Command::Send(what) => send::run(*what, &Settings::load(flags)?, json).await,
        Command::Worker(what) => worker::run(what, flags, build).await,
    }
}

/// The application that the settings name, for those who send or work.
///
/// # Errors
/// It cannot be reached, has no key, or lives in this process alone: what is sent there would be gone when the
/// command ends.
async fn connect(settings: &Settings) -> Result<App, Failure> {
    outlives(settings)?;
    Ok(App::from_settings(settings).await?)
}

/// The application that the settings name, for those who only look: they need no key.
///
/// # Errors
/// It cannot be reached, or lives in this process alone.
async fn connect_reader(settings: &Settings) -> Result<App, Failure> {
    outlives(settings)?;
    Ok(Servers::reach(settings).await.reader(settings).await?)
}

fn outlives(settings: &Settings) -> Result<(), Failure> {
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
    Ok(())
}
