//! The program of an application: the commands of machinist with its tasks, hooks, connectors and own commands.

use std::{
    ffi::OsString,
    fmt,
    io::IsTerminal,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, error::ErrorKind};
use machinist::{AppBuilder, Connectors, WorkerBuilder, settings::Settings};
use machinist_metrics::Metrics;

use crate::{
    args::{Cli, CliCommand, GlobalArgs, LogFormat, TopArgs},
    asks_for_json, commands,
    exit::{CliError, Code, Exit},
    first_process, metrics, output,
    set_up::{BuildWorker, ChangeApp, Running, SetUpError, set_change_app},
    supervisor,
    telemetry::{LogPlace, Telemetry},
    usage_error,
};

type RunCommand = Box<dyn FnOnce(Settings, Vec<String>) -> Running<'static, ()>>;

/// A program with the commands of machinist, for an application that needs more than [`run`](crate::run).
///
/// # Examples
/// ```no_run
/// use machinist::prelude::*;
/// use machinist_cli::Program;
/// use std::process::ExitCode;
/// # #[derive(Clone)] struct Pool;
/// # impl Pool { async fn connect(_: &str) -> std::io::Result<Self> { Ok(Self) } }
///
/// const CLEAN: TaskDef<(), ()> = TaskDef::new("clean");
///
/// async fn clean(State(pool): State<Pool>) -> Result<(), TaskError> {
///     # let _ = pool;
///     Ok(())
/// }
///
/// fn main() -> ExitCode {
///     Program::new()
///         // `app serve`, beside `app worker`, `app send` and the others:
///         .command("serve", "Serve the web pages", async |settings, _arguments| {
///             let app = machinist::LazyApp::from_settings(settings)?;
///             // … until the server ends
///             # drop(app);
///             Ok(())
///         })
///         .run(async |worker| {
///             let pool = Pool::connect("postgres://localhost/shop").await?;
///             Ok(worker.state(pool).task(CLEAN, clean))
///         })
/// }
/// ```
#[derive(Default)]
#[must_use]
pub struct Program {
    connectors: Connectors,
    change_app: Option<ChangeApp>,
    commands: Vec<OwnCommand>,
}

struct OwnCommand {
    name: &'static str,
    about: &'static str,
    run: RunCommand,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commands: Vec<_> = self.commands.iter().map(|command| command.name).collect();
        f.debug_struct("Program").field("commands", &commands).finish_non_exhaustive()
    }
}

impl Program {
    /// Creates a program with the commands of machinist.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the connectors. All commands accept the URLs of their schemes, in flags, variables and machinist.toml.
    ///
    /// # Examples
    /// ```no_run
    /// use machinist::{
    ///     Connector, Connectors,
    ///     broker::Broker,
    ///     connector::{ConnectRequest, ConnectorError},
    ///     url::{Reach, Scheme},
    /// };
    /// use machinist_cli::Program;
    /// use std::{process::ExitCode, sync::Arc};
    /// # use machinist::memory::MemoryBroker as ToyBroker;
    ///
    /// #[derive(Debug)]
    /// struct Toy;
    ///
    /// #[async_trait::async_trait]
    /// impl Connector for Toy {
    ///     fn schemes(&self) -> Vec<Scheme> {
    ///         vec![Scheme::broker("toy", Reach::Network { over_tls: None })]
    ///     }
    ///     async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
    /// #       let _ = request;
    /// #       #[cfg(any())]
    ///         return Ok(Arc::new(ToyBroker::connect(request.url.expose(), request.namespace).await?));
    /// #       Ok(Arc::new(ToyBroker::new()))
    ///     }
    /// }
    ///
    /// // `app worker --broker toy://host` runs tasks from there.
    /// fn main() -> ExitCode {
    ///     Program::new().connectors(Connectors::default().with(Toy)).run(async |worker| Ok(worker))
    /// }
    /// ```
    pub fn connectors(self, connectors: Connectors) -> Self {
        Self { connectors, ..self }
    }

    /// Changes the builder of the application in every command that sends or works: hooks, codec, middleware, observers.
    /// Own commands connect by themselves.
    pub fn app(self, change: impl Fn(AppBuilder) -> AppBuilder + Send + Sync + 'static) -> Self {
        Self { change_app: Some(Box::new(change)), ..self }
    }

    /// Adds a command. It gets the settings, from flags, variables and machinist.toml, and its arguments as text, within a
    /// Tokio runtime. An error is printed with its causes, and the exit code is 1. A wrong setting or an error of a server
    /// among the causes has its own exit code, such as 78 or 69.
    ///
    /// # Panics
    /// When the program runs, if machinist has a command of this name.
    pub fn command(
        mut self,
        name: &'static str,
        about: &'static str,
        run: impl AsyncFnOnce(Settings, Vec<String>) -> Result<(), SetUpError> + 'static,
    ) -> Self {
        let run: RunCommand = Box::new(move |settings, arguments| Box::pin(run(settings, arguments)));
        self.commands.push(OwnCommand { name, about, run });
        self
    }

    /// Runs the command of the command line, and returns the exit code of the program.
    ///
    /// `tasks` adds the application's handlers, middleware and state to the worker that the command `worker` starts. It is
    /// called when the servers are connected, and before the worker takes a task. If it fails, the worker ends with the exit
    /// code 69, as without a broker, so that a service manager starts it again. A wrong setting among the causes, such as one of
    /// [`Settings::app_section`], has the exit code 78, because another start would not help.
    ///
    /// Call it first, from a `main` that is not async, as [`run`](crate::run) says.
    pub fn run(
        self,
        tasks: impl AsyncFnOnce(WorkerBuilder) -> Result<WorkerBuilder, SetUpError>,
    ) -> ExitCode {
        if let Some(ended) = supervisor::run_if_asked().or_else(first_process::run_if_first) {
            return ended;
        }
        if asks_for_json(std::env::args_os()) {
            output::use_json_errors();
        }
        let Self { connectors, change_app, commands } = self;
        if let Some(change) = change_app {
            set_change_app(change);
        }
        let ended = match parse(std::env::args_os(), &commands) {
            Ok(Parsed::Machinist(cli)) => {
                let worker = match &cli.command {
                    CliCommand::Worker(worker) => Some(worker),
                    _ => None,
                };
                let (is_worker, is_served) = (worker.is_some(), worker.map(|worker| worker.health.is_some()));
                let tasks: BuildWorker<'_> = Box::new(|worker| Box::pin(tasks(worker)));
                #[cfg(feature = "web")]
                let is_worker =
                    is_worker || matches!(&cli.command, CliCommand::Web(web) if web.command.is_none());
                let place = log_place(&cli.command);
                start(cli.global.log, &place, is_worker, || {
                    let metrics = is_served.and_then(metrics::start);
                    (commands::run(*cli, &connectors, tasks, metrics.clone()), metrics)
                })
            }
            Ok(Parsed::Own { global, name, arguments }) => {
                let log = global.log;
                start(log, &LogPlace::StandardError, true, || {
                    (run_own(*global, &connectors, commands, name, arguments), None)
                })
            }
            Err(ended) => ended.map(Exit::Code),
        };
        let exit = ended.unwrap_or_else(|failure| {
            output::failure(&failure);
            failure.code.into()
        });
        exit.into()
    }
}

/// Command line with its command.
enum Parsed {
    Machinist(Box<Cli>),
    Own { global: Box<GlobalArgs>, name: String, arguments: Vec<String> },
}

/// Reads the command line. Prints what clap answers by itself: help, the version, or a usage error.
fn parse(
    arguments: impl Iterator<Item = OsString>,
    own: &[OwnCommand],
) -> Result<Parsed, Result<Code, CliError>> {
    read(arguments, own).map_err(|error| {
        let text = error.render().to_string();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => output::raw(&text).map(|()| Code::Success),
            _ if asks_for_json(std::env::args_os()) => Err(usage_error(&text)),
            _ => {
                output::note(machinist::redact::text(&text).trim_end());
                Ok(Code::Usage)
            }
        }
    })
}

fn read(arguments: impl Iterator<Item = OsString>, own: &[OwnCommand]) -> Result<Parsed, clap::Error> {
    let mut matches = command(own).try_get_matches_from(arguments)?;
    if let Some((name, given)) = matches.subcommand()
        && own.iter().any(|command| command.name == name)
    {
        let global = Box::new(GlobalArgs::from_arg_matches(&matches)?);
        return Ok(Parsed::Own { global, name: name.to_owned(), arguments: own_arguments(given) });
    }
    Ok(Parsed::Machinist(Box::new(Cli::from_arg_matches_mut(&mut matches)?)))
}

const OWN_ARGUMENTS: &str = "ARG";

/// Returns the syntax of the command line.
fn command(own: &[OwnCommand]) -> clap::Command {
    own.iter().fold(Cli::command(), |cli, OwnCommand { name, about, .. }| {
        assert!(cli.find_subcommand(name).is_none(), "machinist has a command {name} already");
        let arguments = clap::Arg::new(OWN_ARGUMENTS)
            .num_args(0..)
            .trailing_var_arg(true)
            .allow_hyphen_values(true)
            .help("Arguments of this command");
        // Own commands come first in the help.
        cli.subcommand(clap::Command::new(*name).about(*about).arg(arguments).display_order(0))
    })
}

fn own_arguments(given: &ArgMatches) -> Vec<String> {
    given.get_many::<String>(OWN_ARGUMENTS).into_iter().flatten().cloned().collect()
}

async fn run_own(
    global: GlobalArgs,
    connectors: &Connectors,
    commands: Vec<OwnCommand>,
    name: String,
    arguments: Vec<String>,
) -> Result<Exit, CliError> {
    let settings = Settings::load_with(connectors, global.overrides(None))?;
    for command in commands {
        if command.name == name {
            let ended = (command.run)(settings, arguments).await;
            return match ended {
                Ok(()) => Ok(Code::Success.into()),
                Err(error) => Err(CliError::from_application(Code::Failed, &*error).context(name)),
            };
        }
    }
    Err(CliError::new(Code::Fault, format!("the command {name} is not there")))
}

/// Returns the place of a command's log. A terminal that shows a screen must not get it.
fn log_place(command: &CliCommand) -> LogPlace {
    match command {
        CliCommand::Top(TopArgs { log_file: Some(file) }) => LogPlace::File(file.clone()),
        CliCommand::Top(_) if std::io::stderr().is_terminal() => LogPlace::Nowhere,
        _ => LogPlace::StandardError,
    }
}

/// Runs a command in a runtime, with its log and its metrics.
fn start<Command: Future<Output = Result<Exit, CliError>>>(
    log: Option<LogFormat>,
    place: &LogPlace,
    is_service: bool,
    command: impl FnOnce() -> (Command, Option<Metrics>),
) -> Result<Exit, CliError> {
    // Errors inside of lapin are returned to us, and are reported once in our words.
    let level = if is_service { "info,lapin=off" } else { "warn,lapin=off" };
    let format = log.unwrap_or(LogFormat::Human);
    if format == LogFormat::Json {
        output::use_json_notes();
    }
    let telemetry = Telemetry::start(format, level, place)?;
    let (command, metrics) = command();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CliError::from_error(Code::Fault, &error).context("cannot start threads"))?;
    // The panic itself has been printed already.
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(Box::pin(command))));
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(metrics) = &metrics {
        metrics::finish(metrics);
    }
    telemetry.finish();
    ended
        .unwrap_or_else(|_| Err(CliError::new(Code::Fault, "this is a bug in the program; please report it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve() -> Vec<OwnCommand> {
        Program::new().command("serve", "Serve the pages", async |_, _| Ok(())).commands
    }

    fn read_line(line: &str) -> Result<Parsed, clap::Error> {
        read(line.split(' ').map(OsString::from), &serve())
    }

    #[test]
    fn an_own_command_gets_its_arguments_and_the_flags_of_all_commands() {
        for line in ["app --broker b serve 8080 -v", "app serve --broker b 8080 -v"] {
            let Ok(Parsed::Own { global, name, arguments }) = read_line(line) else { panic!("{line}") };
            assert_eq!(global.overrides(None).broker.as_deref(), Some("b"), "{line}");
            assert_eq!(
                (name.as_str(), arguments),
                ("serve", vec!["8080".to_owned(), "-v".to_owned()]),
                "{line}"
            );
        }
        assert!(
            matches!(read_line("app serve --port 8080"), Ok(Parsed::Own { arguments, .. }) if arguments.len() == 2)
        );
    }

    #[test]
    fn the_other_commands_stay_and_the_help_names_all() {
        assert!(matches!(read_line("app doctor"), Ok(Parsed::Machinist(_))));
        let help = read_line("app --help").err().unwrap().to_string();
        assert!(
            help.contains("serve") && help.contains("Serve the pages") && help.contains("worker"),
            "{help}"
        );
    }

    #[test]
    fn a_name_of_machinist_is_taken() {
        let program = Program::new().command("worker", "Mine", async |_, _| Ok(()));
        let panic = catch_unwind(AssertUnwindSafe(|| command(&program.commands))).err().unwrap();
        assert_eq!(*panic.downcast::<String>().unwrap(), "machinist has a command worker already");
    }
}
