//! `machinist worker`: runs tasks until it is told to stop.

use std::future::pending;

use machinist::{
    QueueName,
    settings::{Settings, TaskSettings},
    worker::{BuildError, Stages, TaskOptions, WorkerError},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connect;
use crate::{
    BuildWorker,
    args::Worker,
    command::{CommandTask, Groups},
    demo,
    exit::{Code, Failure},
    output,
};

pub(super) async fn run(what: Worker, settings: &Settings, build: BuildWorker<'_>) -> Result<Code, Failure> {
    let groups = Groups::default();
    let mut commands = Vec::new();
    for (name, task) in &settings.tasks {
        commands.push((name, CommandTask::new(name, task, &groups)?, options(task)));
    }
    let app = connect(settings).await?;
    let mut builder = machinist::Worker::builder(&app)
        .concurrency(settings.worker.concurrency.value)
        .grace(settings.worker.grace.value);
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
        return Err(Failure::new(Code::Configuration, "this worker would know no task").remedy(
            "`machinist init` writes a machinist.toml with one; --demo brings add, echo, sleep and fail",
        ));
    }
    tell_unconsumed(settings, worker.queues());
    // Before the worker is ready: from then on a signal must not end the process by itself.
    let mut signals = Signals::new()?;
    let (stages, ready, line) = (worker.stages(), worker.ready(), ready_line(&worker, settings));
    let ended = {
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
                }
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

fn cannot_build(error: &BuildError) -> Failure {
    let failure = Failure::of(Code::Configuration, error);
    match error {
        BuildError::Twice(_) => failure.remedy("rename it in [tasks] of machinist.toml, or leave --demo out"),
        _ => failure,
    }
}

fn cannot_start(error: WorkerError) -> Failure {
    let doing = error.to_string();
    match error {
        WorkerError::Backend(error) => Failure::from(error).doing(doing),
        WorkerError::Broker(error) => Failure::from(error).doing(doing),
        error => Failure::of(Code::Fault, &error),
    }
}

fn finished(drained: machinist::worker::Drained) -> Result<Code, Failure> {
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
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::of(Code::Fault, &error).doing("signals cannot be received"))
        };
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
