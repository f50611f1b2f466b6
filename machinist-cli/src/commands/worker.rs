//! `machinist worker`: runs tasks until a signal stops it.

use std::{
    convert::Infallible,
    future::pending,
    io::{IsTerminal, stderr},
    sync::Arc,
};

use machinist::{
    Connectors, QueuePattern, TaskName, Worker, WorkerBuilder,
    settings::{Overrides, Settings, SettingsError},
    worker::{BuildError, Drained, Health, Stages, WorkerError},
};
use machinist_metrics::Metrics;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    connect, connect_measured,
    reload::Reload,
    worker_tasks::{command_tasks, fit_open_files, with_commands},
};
use crate::{
    args::WorkerArgs,
    command::{CommandTask, Host},
    demo,
    exit::{CliError, Code, Exit},
    health::HealthServer,
    metrics::MetricsPage,
    output,
    set_up::BuildWorker,
    systemd, telemetry,
};

pub(super) async fn run(
    args: WorkerArgs,
    flags: Overrides,
    connectors: &Connectors,
    build: BuildWorker<'_>,
    metrics: Option<Metrics>,
) -> Result<Exit, CliError> {
    let mut settings = Settings::load_with(connectors, flags.clone())?;
    // Before any connection, so that a mistake in the file is reported at once.
    command_tasks(&settings, &Host::new(&settings))?;
    // Before any connection, so that health checks are answered from the start.
    let health_server = match args.health {
        Some(address) => Some(HealthServer::open(address).await?),
        None => None,
    };
    let token_file = settings.worker.metrics_token_file.as_ref().map(|file| file.value.as_path());
    let served = metrics.clone().filter(|_| health_server.is_some());
    let page = served.map(|metrics| MetricsPage::open(metrics, token_file)).transpose()?;
    let app = match &metrics {
        Some(metrics) => connect_measured(&settings, metrics).await?,
        None => connect(&settings).await?,
    };
    let host = host(&mut settings)?;
    let settings = &settings;
    let commands = command_tasks(settings, &host)?;
    let builder = settings.configure(Worker::builder(&app)).set_log_level(telemetry::set_level);
    let builder = build(builder).await.map_err(|error| {
        CliError::from_application(Code::Unreachable, &*error)
            .context("the application cannot set up its tasks")
    })?;
    let worker = build_worker(builder, commands, args.demo)?;
    note_unconsumed(settings, &worker);
    if let Some(metrics) = &metrics {
        metrics.attach(worker.health());
    }
    if let Some(health_server) = &health_server {
        let address = health_server.address();
        output::note(&format!(
            "machinist: health checks at http://{address}/healthz and /readyz, metrics at /metrics"
        ));
    }
    let reload = Arc::new(Reload::new(&app, connectors, flags, settings.clone(), &host, worker.reloader()));
    let ordered = Arc::clone(&reload);
    worker.on_reload(move || {
        let ordered = Arc::clone(&ordered);
        async move { ordered.reload().await }
    });
    // Before the worker is ready: from then on a signal must not end the process directly.
    let process = WorkerProcess {
        signals: StopSignals::new()?,
        hangup: Hangup::new()?,
        health_server: health_server.map(|server| (server, page)),
        work: work(&worker, settings),
        reload: &reload,
    };
    let ended = process.run(worker).await;
    host.programs.kill_all().await;
    app.broker().close().await;
    match ended {
        Some(ended) => finished(ended.map_err(cannot_start)?),
        None => {
            output::note("machinist: stopped at once; other workers run the running tasks again");
            Ok(Code::TryLater.into())
        }
    }
}

/// Returns what the command tasks share. If the limit of open files allows fewer programs than are to run at once, the
/// concurrency becomes smaller.
fn host(settings: &mut Settings) -> Result<Host, CliError> {
    let mut host = Host::new(settings);
    host.open_files = fit_open_files(settings)?;
    Ok(host)
}

/// Checks what a worker would refuse before it connects: the command tasks.
///
/// # Errors
/// The task, its place and the problem.
pub(super) fn check(settings: &Settings) -> Result<(), SettingsError> {
    command_tasks(settings, &Host::new(settings)).map(drop)
}

/// Adds the command tasks, and the demo tasks if they are asked for.
fn build_worker(
    builder: WorkerBuilder,
    commands: Vec<(&String, CommandTask)>,
    demo: bool,
) -> Result<Worker, CliError> {
    let mut builder = with_commands(builder, commands);
    if demo {
        builder = builder
            .task_dyn("add", demo::add)
            .task_dyn("echo", demo::echo)
            .task_dyn("sleep", demo::sleep)
            .task_dyn("fail", demo::fail);
    }
    let worker = builder.build().map_err(|error| cannot_build(&error))?;
    if worker.tasks().is_empty() {
        return Err(CliError::new(Code::Configuration, "this worker would know no task").remedy(
            "`machinist init` writes a machinist.toml with one; --demo adds the tasks add, echo, sleep and fail",
        ));
    }
    Ok(worker)
}

/// Process around a worker that runs: signals, health checks, the service manager.
struct WorkerProcess<'a> {
    signals: StopSignals,
    hangup: Hangup,
    health_server: Option<(HealthServer, Option<MetricsPage>)>,
    /// Words about what the worker runs.
    work: String,
    reload: &'a Reload,
}

impl WorkerProcess<'_> {
    /// Runs the worker until it has ended. Returns `None` if the last signal ended all waiting.
    async fn run(mut self, worker: Worker) -> Option<Result<Drained, WorkerError>> {
        let (stages, health, ready) = (worker.stages(), worker.health(), worker.ready());
        let beside = async {
            let announced = announce(ready, &health, self.work);
            let checked = answer_health_checks(self.health_server, &health);
            let obeyed = self.hangup.obey(&stages, self.reload);
            tokio::join!(announced, checked, obeyed, systemd::watchdog(&health), tell_stopping(&stages)).0
        };
        let running = Box::pin(worker.run_until(pending()));
        tokio::select! {
            ended = running => Some(ended),
            never = beside => match never {},
            () = self.signals.pass_on(&stages) => None,
        }
    }
}

/// Reports once that the worker is ready.
async fn announce(ready: CancellationToken, health: &Health, work: String) -> Infallible {
    ready.cancelled().await;
    // Only now is it known which name its session holds.
    let line = format!("machinist: worker {} is ready: {work}; Ctrl-C stops it", health.worker());
    output::note(&line);
    systemd::ready(&line);
    pending().await
}

/// Tells the service manager once that the worker stops.
async fn tell_stopping(stages: &Stages) -> Infallible {
    stages.draining().await;
    systemd::stopping();
    pending().await
}

async fn answer_health_checks(
    health_server: Option<(HealthServer, Option<MetricsPage>)>,
    health: &Health,
) -> Infallible {
    match health_server {
        Some((health_server, page)) => health_server.serve(health.clone(), page).await,
        None => pending().await,
    }
}

fn cannot_build(error: &BuildError) -> CliError {
    let failure = CliError::from_error(Code::Configuration, error);
    match error {
        BuildError::Twice(_) => failure.remedy("rename it in [tasks] of machinist.toml, or leave --demo out"),
        _ => failure,
    }
}

fn cannot_start(error: WorkerError) -> CliError {
    let context = error.to_string();
    match error {
        WorkerError::Backend(error) => CliError::from(error).context(context),
        WorkerError::Broker(error) => CliError::from(error).context(context),
        error @ WorkerError::Role(_) => CliError::from_error(Code::Configuration, &error),
        error => CliError::from_error(Code::Fault, &error),
    }
}

fn finished(drained: Drained) -> Result<Exit, CliError> {
    if let Some(code) = drained.restart_exit_code {
        output::note(&format!("machinist: stopped with exit code {code}, so that it is started again"));
        return Ok(Exit::Restart(code));
    }
    if drained.is_clean() {
        output::note("machinist: stopped; everything that had started has ended");
        return Ok(Code::Success.into());
    }
    let count = drained.handed_back + drained.unfinished;
    output::note(&format!(
        "machinist: stopped; {count} running tasks were handed back, and other workers run them again"
    ));
    Ok(Code::TryLater.into())
}

/// Says what a worker runs, from where, and how much at once.
fn work(worker: &Worker, settings: &Settings) -> String {
    let tasks: Vec<&str> = worker.tasks().into_iter().map(|name| name.as_str()).collect();
    let queues: Vec<&str> = worker.queues().iter().map(QueuePattern::as_str).collect();
    format!(
        "runs {} from {}, {} at once",
        tasks.join(", "),
        queues.join(", "),
        settings.worker.concurrency.value
    )
}

/// Notes tasks of this worker whose queue it does not consume, which is often a mistake.
fn note_unconsumed(settings: &Settings, worker: &Worker) {
    let known: Vec<&str> = worker.tasks().into_iter().map(TaskName::as_str).collect();
    for (name, task) in settings.tasks.iter().filter(|(name, _)| known.contains(&name.as_str())) {
        if let Some(queue) = task.queue.as_ref().filter(|queue| !worker.takes_from(&queue.value)) {
            output::note(&format!(
                "machinist: {name} is sent to queue {} ({}), which this worker does not consume",
                queue.value, queue.origin
            ));
        }
    }
}

/// Signals that stop the worker: SIGINT and SIGTERM, with the same meaning.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

/// Receives a signal from now on.
///
/// # Errors
/// The system does not let this process receive it.
pub(super) fn listen(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind)
        .map_err(|error| CliError::from_error(Code::Fault, &error).context("signals cannot be received"))
}

/// SIGHUP, which has two meanings: a service manager asks to reload the configuration, or the system reports that the terminal of
/// the worker is gone.
struct Hangup {
    signal: Signal,
    on_terminal: bool,
}

enum HangupMeaning {
    Reload,
    TerminalGone,
}

impl Hangup {
    fn new() -> Result<Self, CliError> {
        Ok(Self { signal: listen(SignalKind::hangup())?, on_terminal: stderr().is_terminal() })
    }

    /// Reloads the configuration or advances the worker by one stage with each signal.
    async fn obey(&mut self, stages: &Stages, reload: &Reload) -> Infallible {
        loop {
            match self.next().await {
                // Its result is told to people.
                HangupMeaning::Reload => drop(reload.reload().await),
                HangupMeaning::TerminalGone => stages.advance(),
            }
        }
    }

    async fn next(&mut self) -> HangupMeaning {
        if self.signal.recv().await.is_none() {
            pending::<()>().await;
        }
        if self.on_terminal && !stderr().is_terminal() {
            HangupMeaning::TerminalGone
        } else {
            HangupMeaning::Reload
        }
    }
}

impl StopSignals {
    fn new() -> Result<Self, CliError> {
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Advances the worker by one stage with each signal. Completes with the fourth, which ends all waiting.
    async fn pass_on(&mut self, stages: &Stages) {
        for stage in [
            "machinist: stopping; running tasks may end, a second signal hands them back",
            "machinist: handing back the running tasks; a third signal cuts them off",
            "machinist: cutting off the running tasks",
        ] {
            self.next().await;
            output::note(stage);
            stages.advance();
        }
        self.next().await;
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use clap::Parser;
    use machinist::{
        App, AppExt, Connector, Signature,
        backend::Backend,
        broker::Broker,
        connector::{ConnectRequest, ConnectorError},
        memory::{MemoryBackend, MemoryBroker, MessagePlace},
        url::{Reach, Scheme},
    };

    use super::*;
    use crate::{
        args::{Cli, CliCommand},
        set_up::SetUpError,
    };

    /// Servers of `shelf://`, which outlive a worker.
    #[derive(Debug, Clone)]
    struct Shelf(MemoryBroker, MemoryBackend);

    #[async_trait]
    impl Connector for Shelf {
        fn schemes(&self) -> Vec<Scheme> {
            vec![Scheme::both("shelf", Reach::Network { over_tls: None })]
        }

        async fn broker(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
            Ok(Arc::new(self.0.connect()))
        }

        async fn backend(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
            Ok(Arc::new(self.1.clone()))
        }
    }

    #[tokio::test]
    async fn a_set_up_that_fails_says_why_and_takes_no_task() {
        let shelf = Shelf(MemoryBroker::new(), MemoryBackend::new());
        let connectors = Connectors::default().with(shelf.clone());
        let url = || Some("shelf://a".to_owned());
        let flags = Overrides { broker: url(), backend: url(), allow_unsigned: true, ..Overrides::default() };
        let settings = Settings::load_with(&connectors, flags.clone()).unwrap();
        let app = App::from_settings(&settings).await.unwrap();
        app.client().send(Signature::new("clean")).await.unwrap();

        let refused = std::io::Error::other("connection refused by postgres://shop:geheim@db/shop");
        let unset = SettingsError::new("machinist.toml:3", "app.sender is missing");
        for (error, code, text) in [
            (
                SetUpError::from(refused),
                Code::Unreachable,
                "connection refused by postgres://shop:***@db/shop",
            ),
            (SetUpError::from(unset), Code::Configuration, "machinist.toml:3: app.sender is missing"),
        ] {
            let Ok(CliCommand::Worker(args)) =
                Cli::try_parse_from(["machinist", "worker"]).map(|cli| cli.command)
            else {
                panic!("the command line of a worker")
            };
            let build: BuildWorker<'_> = Box::new(|_| Box::pin(async move { Err(error) }));
            let ended = Box::pin(run(args, flags.clone(), &connectors, build, None)).await;
            let failure = ended.unwrap_err();
            assert_eq!(failure.code, code);
            assert_eq!(failure.text, format!("the application cannot set up its tasks: {text}"));
        }
        let held = shelf.0.held();
        assert!(held.len() == 1 && matches!(held[0].place, MessagePlace::Ready), "{held:?}");
    }
}
