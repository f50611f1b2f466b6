//! `machinist worker`: runs tasks until it is told to stop.

use std::{
    future::pending,
    io::{IsTerminal, stderr},
    pin::pin,
};

use machinist::{
    App, QueueName,
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
    what: WorkerArgs,
    flags: Overrides,
    build: BuildWorker<'_>,
) -> Result<Code, CliError> {
    let settings = &Settings::load(flags.clone())?;
    let groups = ProcessGroups::default();
    let mut commands = Vec::new();
    for (name, task) in &settings.tasks {
        commands.push((name, CommandTask::new(name, task, &groups)?, options(task)));
    }
    // Before anything is begun: who watches over the worker needs it.
    let health_server = match what.health {
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
    if let Some(name) = what.name {
        builder = builder.name(name);
    }
    builder = build(builder);
    for (name, task, options) in commands {
        builder = builder.task_dyn(name, task).options(name, options);
    }
    if what.demo {
        builder = builder
            .task_dyn("add", demo::add)
            .task_dyn("echo", demo::echo)
            .task_dyn("sleep", demo::sleep)
            .task_dyn("fail", demo::fail);
    }
    let worker = builder.build().map_err(|error| cannot_build(&error))?;
    if worker.tasks().is_empty() {
        return Err(CliError::new(Code::Configuration, "this worker would know no task").remedy(
            "`machinist init` writes a machinist.toml with one; --demo brings add, echo, sleep and fail",
        ));
    }
    tell_unconsumed(settings, worker.queues());
    // Before the worker is ready: from then on a signal must not end the process by itself.
    let mut signals = StopSignals::new()?;
    let mut hangup = Hangup::new()?;
    let (stages, ready, line) = (worker.stages(), worker.ready(), ready_line(&worker, settings));
    let (health, queues) = (worker.health(), worker.queues().to_vec());
    if let Some(health_server) = &health_server {
        output::note(&format!(
            "machinist: http://{}/healthz and /readyz tell how it is",
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
                    HangupMeaning::ReadKeys => read_keys(&app, &flags),
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
            output::note("machinist: stopped at once; what was running is run again by others");
            Ok(Code::HandedBack)
        }
    }
}

/// Puts the keys that are configured now in the place of those in force. What cannot be used changes nothing.
fn read_keys(app: &App, flags: &Overrides) {
    let ring = || -> Result<_, SettingsError> { Settings::load(flags.clone())?.keyring() };
    let told = match ring() {
        Ok(Some(ring)) => {
            let ids: Vec<String> = ring.keys().map(|key| key.id().to_string()).collect();
            match app.replace_keyring(ring) {
                Ok(()) => format!("the keys were read again: {}", ids.join(", ")),
                Err(error) => format!("the keys stay as they were: {error}"),
            }
        }
        Ok(None) => "the keys stay as they were: none is configured any more".to_owned(),
        Err(error) => format!("the keys stay as they were: {error}"),
    };
    output::note(&format!("machinist: {told}"));
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
        "machinist: stopped; {count} running tasks were handed back, and are run again by others"
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

/// A task that is sent to a queue which nobody here consumes is often a mistake, and sometimes not.
fn tell_unconsumed(settings: &Settings, queues: &[QueueName]) {
    for (name, task) in &settings.tasks {
        if let Some(queue) = task.queue.as_ref().filter(|queue| !queues.contains(&queue.value)) {
            output::note(&format!(
                "machinist: {name} is sent to queue {} ({}), which this worker does not consume",
                queue.value, queue.origin
            ));
        }
    }
}

/// SIGINT and SIGTERM, which mean the same.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

fn listen(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind)
        .map_err(|error| CliError::from_error(Code::Fault, &error).context("signals cannot be received"))
}

/// SIGHUP, which means two things: a service manager asks for new keys by it, and the system tells by it that the
/// terminal is gone from which a worker was started.
struct Hangup {
    signal: Signal,
    on_terminal: bool,
}

enum HangupMeaning {
    ReadKeys,
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
            HangupMeaning::ReadKeys
        }
    }
}

impl StopSignals {
    fn new() -> Result<Self, CliError> {
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Takes the worker one stage further with each signal. Completes with the fourth, when nothing is to be
    /// waited for any more.
    async fn pass_on(&mut self, stages: &Stages) {
        for stage in [
            "machinist: stopping; running tasks may end, a second signal hands them back",
            "machinist: handing back what runs; a third signal cuts it off",
            "machinist: cutting off what runs",
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
