//! `machinist worker`: runs tasks until a signal stops it.

use std::{
    future::pending,
    io::{IsTerminal, stderr},
    pin::pin,
};

use machinist::{
    App, Connectors, QueueName,
    settings::{Overrides, Settings, SettingsError, TaskSettings},
    worker::{BuildError, Stages, TaskOptions, WorkerError},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connect;
use crate::{
    BuildWorker,
    args::WorkerArgs,
    command::{CommandTask, ProcessGroups},
    demo,
    exit::{CliError, Code},
    health::HealthServer,
    output, systemd,
};

pub(super) async fn run(
    args: WorkerArgs,
    flags: Overrides,
    connectors: &Connectors,
    build: BuildWorker<'_>,
) -> Result<Code, CliError> {
    let settings = &Settings::load_with(connectors, flags.clone())?;
    let groups = ProcessGroups::default();
    let mut commands = Vec::new();
    for (name, task) in &settings.tasks {
        commands.push((name, CommandTask::new(name, task, &groups)?, options(task)));
    }
    // Before any connection, so that health checks are answered from the start.
    let health_server = match args.health {
        Some(address) => Some(HealthServer::open(address).await?),
        None => None,
    };
    let app = connect(settings).await?;
    let mut builder = machinist::Worker::builder(&app)
        .concurrency(settings.worker.concurrency.value)
        .grace(settings.worker.grace.value)
        .consumer_timeout(settings.worker.consumer_timeout.value);
    for queue in &settings.worker.queues.value {
        builder = builder.queue(queue.as_str());
    }
    if let Some(name) = args.name {
        builder = builder.name(name);
    }
    builder = build(builder);
    for (name, task, options) in commands {
        builder = builder.task_dyn(name, task).options(name, options);
    }
    if args.demo {
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
    note_unconsumed(settings, worker.queues());
    // Before the worker is ready: from then on a signal must not end the process directly.
    let mut signals = StopSignals::new()?;
    let mut hangup = Hangup::new()?;
    let stages = worker.stages();
    let ready = worker.ready();
    let line = ready_line(&worker, settings);
    let health = worker.health();
    let queues = worker.queues().to_vec();
    if let Some(health_server) = &health_server {
        output::note(&format!(
            "machinist: health checks at http://{}/healthz and /readyz",
            health_server.address()
        ));
    }
    let ended = {
        let mut watched = pin!(async {
            let health_server = async {
                match health_server {
                    Some(health_server) => health_server.serve(health.clone(), &queues).await,
                    None => pending().await,
                }
            };
            tokio::join!(health_server, systemd::watchdog(&health)).0
        });
        let mut draining = pin!(stages.draining());
        let mut told_stopping = false;
        let mut running = Box::pin(worker.run_until(pending()));
        let told = signals.pass_on(&stages);
        tokio::pin!(told);
        let mut announced = false;
        loop {
            tokio::select! {
                ended = &mut running => break Some(ended),
                () = ready.cancelled(), if !announced => {
                    announced = true;
                    output::note(&line);
                    systemd::ready(&line);
                }
                () = &mut draining, if !told_stopping => {
                    told_stopping = true;
                    systemd::stopping();
                }
                never = &mut watched => match never {},
                hung_up = hangup.next() => match hung_up {
                    HangupMeaning::ReloadKeys => reload_keys(&app, connectors, &flags),
                    HangupMeaning::TerminalGone => stages.advance(),
                },
                () = &mut told => break None,
            }
        }
    };
    groups.kill_all();
    app.broker().close().await;
    match ended {
        Some(ended) => finished(ended.map_err(cannot_start)?),
        None => {
            output::note("machinist: stopped at once; other workers run the running tasks again");
            Ok(Code::HandedBack)
        }
    }
}

/// Reloads the configured keys. If one cannot be used, the keys in force stay.
fn reload_keys(app: &App, connectors: &Connectors, flags: &Overrides) {
    let ring = || -> Result<_, SettingsError> { Settings::load_with(connectors, flags.clone())?.keyring() };
    let report = match ring() {
        Ok(Some(ring)) => {
            let ids: Vec<String> = ring.keys().map(|key| key.id().to_string()).collect();
            match app.replace_keyring(ring) {
                Ok(()) => format!("keys reloaded: {}", ids.join(", ")),
                Err(error) => format!("keys unchanged: {error}"),
            }
        }
        Ok(None) => "keys unchanged: none is configured any more".to_owned(),
        Err(error) => format!("keys unchanged: {error}"),
    };
    output::note(&format!("machinist: {report}"));
}

fn options(task: &TaskSettings) -> TaskOptions {
    let mut options = TaskOptions::new();
    if let Some(retries) = &task.retries {
        options = options.retries(retries.value);
    }
    if let Some(backoff) = &task.backoff {
        options = options.backoff(backoff.value.clone());
    }
    if let Some(timeout) = &task.timeout {
        options = options.timeout(timeout.value);
    }
    if let Some(limit) = &task.soft_timeout {
        options = options.soft_timeout(limit.value);
    }
    if let Some(limit) = &task.retry_for {
        options = options.retry_for(limit.value);
    }
    if task.retry_timeouts.as_ref().is_some_and(|setting| setting.value) {
        options = options.retry_timeouts();
    }
    options
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
        error => CliError::from_error(Code::Fault, &error),
    }
}

fn finished(drained: machinist::worker::Drained) -> Result<Code, CliError> {
    if drained.is_clean() {
        output::note("machinist: stopped; everything that had started has ended");
        return Ok(Code::Success);
    }
    let count = drained.handed_back + drained.unfinished;
    output::note(&format!(
        "machinist: stopped; {count} running tasks were handed back, and other workers run them again"
    ));
    Ok(Code::HandedBack)
}

fn ready_line(worker: &machinist::Worker, settings: &Settings) -> String {
    let tasks: Vec<&str> = worker.tasks().into_iter().map(|name| name.as_str()).collect();
    let queues: Vec<&str> = worker.queues().iter().map(QueueName::as_str).collect();
    format!(
        "machinist: worker {} is ready: runs {} from {}, {} at once; Ctrl-C stops it",
        worker.name(),
        tasks.join(", "),
        queues.join(", "),
        settings.worker.concurrency.value
    )
}

/// Notes command tasks whose queue this worker does not consume, which is often a mistake.
fn note_unconsumed(settings: &Settings, queues: &[QueueName]) {
    for (name, task) in &settings.tasks {
        if let Some(queue) = task.queue.as_ref().filter(|queue| !queues.contains(&queue.value)) {
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

fn listen(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind)
        .map_err(|error| CliError::from_error(Code::Fault, &error).context("signals cannot be received"))
}

/// SIGHUP, which has two meanings: a service manager asks to reload the keys, or the system reports that the terminal of
/// the worker is gone.
struct Hangup {
    signal: Signal,
    on_terminal: bool,
}

enum HangupMeaning {
    ReloadKeys,
    TerminalGone,
}

impl Hangup {
    fn new() -> Result<Self, CliError> {
        Ok(Self { signal: listen(SignalKind::hangup())?, on_terminal: stderr().is_terminal() })
    }

    async fn next(&mut self) -> HangupMeaning {
        if self.signal.recv().await.is_none() {
            pending::<()>().await;
        }
        if self.on_terminal && !stderr().is_terminal() {
            HangupMeaning::TerminalGone
        } else {
            HangupMeaning::ReloadKeys
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
