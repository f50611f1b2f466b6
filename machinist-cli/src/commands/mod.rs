//! The commands of the program, one file for each.

#[cfg(feature = "sqlite")]
mod backup;
mod bulk;
mod config;
mod dead;
mod delays;
mod doctor;
mod events;
mod failures;
mod fleet;
mod history;
mod init;
mod keygen;
mod keys;
mod limits;
#[cfg(feature = "man")]
mod man;
mod mark;
#[cfg(feature = "postgres")]
mod migrate;
mod periodic;
mod profile;
mod question;
mod queue_list;
mod queue_pause;
mod queue_peek;
mod queues;
mod receivers;
mod refused;
mod registered;
mod reload;
mod retry;
mod revoke;
mod scheduled;
mod send;
mod send_flow;
mod status;
mod task_log;
mod tasks;
mod top;
#[cfg(feature = "web")]
mod web;
mod why;
mod worker;
mod worker_tasks;
mod workers;
mod workflow;

use clap::CommandFactory;
use machinist::{
    App, AppExt, Connectors, Servers,
    settings::Settings,
    url::{Reach, Role},
};

use machinist_metrics::Metrics;

use crate::{
    args::{Cli, CliCommand},
    exit::{CliError, Code, Exit},
    output,
    set_up::{BuildWorker, change_app},
};

/// Runs the command of the command line.
///
/// # Errors
/// [`CliError`] of the command.
pub(crate) async fn run(
    cli: Cli,
    connectors: &Connectors,
    build: BuildWorker<'_>,
    metrics: Option<Metrics>,
) -> Result<Exit, CliError> {
    let flags = cli.overrides();
    let json = cli.global.json;
    let settings = |flags| Settings::load_with(connectors, flags);
    let code = match cli.command {
        CliCommand::Worker(args) => return worker::run(args, flags, connectors, build, metrics).await,
        CliCommand::Init(args) => init::run(&args, flags.config, json),
        CliCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "machinist", &mut script);
            output::raw(&String::from_utf8_lossy(&script))?;
            Ok(Code::Success)
        }
        #[cfg(feature = "man")]
        CliCommand::Man { folder } => man::run(&folder),
        CliCommand::Keygen(args) => keygen::run(&args, json),
        CliCommand::Keys(args) => keys::run(args, flags, connectors, json),
        CliCommand::Config(args) => config::run(&args, &settings(flags)?, json),
        CliCommand::Doctor => doctor::run(&settings(flags)?, json).await,
        #[cfg(feature = "sqlite")]
        CliCommand::Backup(args) => backup::run(&args, &settings(flags)?, json).await,
        #[cfg(feature = "postgres")]
        CliCommand::Migrate(args) => migrate::run(&args, &settings(flags)?, json).await,
        CliCommand::Dead(args) => dead::run(args, &settings(flags)?, json).await,
        CliCommand::Events(args) => events::run(args, &settings(flags)?, json).await,
        CliCommand::Tasks(args) => tasks::run(args, &settings(flags)?, json).await,
        CliCommand::History(args) => history::run(args, &settings(flags)?, json).await,
        CliCommand::Mark(args) => mark::run(&args.text, &settings(flags)?, json).await,
        CliCommand::Failures(args) => failures::run(&args, &settings(flags)?, json).await,
        CliCommand::Log(args) => task_log::run(&args, &settings(flags)?, json).await,
        CliCommand::Limits(command) => limits::run(command, &settings(flags)?, json).await,
        CliCommand::Periodic(command) => periodic::run(command, &settings(flags)?, json).await,
        CliCommand::Queues(args) => queues::run(args, &settings(flags)?, json).await,
        CliCommand::Fleet(page) => fleet::run(&page, &settings(flags)?, json).await,
        CliCommand::Registered(args) => registered::run(args, &settings(flags)?, json).await,
        CliCommand::Top(_) => Box::pin(top::run(&settings(flags)?, json)).await,
        #[cfg(feature = "web")]
        CliCommand::Web(args) => web::run(args, &settings(flags)?, json).await,
        CliCommand::Why(args) => why::run(&args, &settings(flags)?, json).await,
        CliCommand::Workers(args) => workers::run(args, &settings(flags)?, json).await,
        CliCommand::Revoke(args) => revoke::run(&args, &settings(flags)?, json).await,
        CliCommand::Retry(args) => retry::run(&args, &settings(flags)?, json).await,
        CliCommand::Scheduled(args) => scheduled::run(args, &settings(flags)?, json).await,
        CliCommand::Status(args) => status::run(args, &settings(flags)?, json).await,
        CliCommand::Send(args) => send::run(*args, &settings(flags)?, json).await,
    };
    code.map(Exit::Code)
}

/// Connects to the configured servers, for a command that sends or works.
///
/// # Errors
/// A server cannot be reached, there is no key, or the server is in this process only: its messages would be lost when
/// the command ends.
async fn connect(settings: &Settings) -> Result<App, CliError> {
    check_outlives_process(settings)?;
    Ok(App::from_settings_with(settings, change_app).await?)
}

/// Connects to the configured servers, for a worker with metrics.
///
/// # Errors
/// As [`connect`].
async fn connect_measured(settings: &Settings, metrics: &Metrics) -> Result<App, CliError> {
    check_outlives_process(settings)?;
    let mut servers = Servers::reach(settings).await;
    servers.backend = servers.backend.map(|backend| metrics.timed(backend));
    Ok(servers.app_with(settings, |app| change_app(app.observer(metrics.clone()))).await?)
}

/// Connects to the configured servers, for a command that only reads and needs no key.
///
/// # Errors
/// A server cannot be reached, or is in this process only.
async fn connect_reader(settings: &Settings) -> Result<App, CliError> {
    check_outlives_process(settings)?;
    Ok(Servers::reach(settings).await.reader(settings).await?)
}

/// Returns `true` if every outcome that is read is verified: there is a key, and none may be unsigned.
///
/// # Errors
/// A configured key cannot be used.
fn verifies(settings: &Settings) -> Result<bool, CliError> {
    Ok(settings.keyring()?.is_some() && !settings.allow_unsigned.value)
}

fn check_outlives_process(settings: &Settings) -> Result<(), CliError> {
    for (role, setting) in [(Role::Broker, &settings.broker), (Role::Backend, &settings.backend)] {
        let scheme = setting.value.scheme();
        if scheme.reach() == Reach::Process {
            let origin = &setting.origin;
            let role = role.as_str();
            let text = format!(
                "{origin}: the {role} {scheme}:// exists in one process only, and is gone when this one ends"
            );
            return Err(CliError::new(Code::Configuration, text)
                .remedy("use sqlite://machinist.db, which needs no server either"));
        }
    }
    Ok(())
}
