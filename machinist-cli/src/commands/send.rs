//! `machinist send`: sends a task, once or many times, and with `--wait` waits for its result.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use machinist::{
    AsyncResult, Client, QueueName, ResultError, SendError, Signature, TaskName, Unique,
    record::FailureKind,
    settings::{DEBOUNCE_MAX_WAITS, Settings},
    view::TaskView,
    worker::Tag,
};
use serde::Serialize;
use tokio::time::Instant;

use super::{connect, profile, receivers, verifies};
use crate::{
    args::{ExpiryArg, SendArgs, SendOptions},
    exit::{CliError, Code},
    input, output,
    view::TaskText,
};

/// Maximum number of tasks that are sent and confirmed together.
const MAX_BATCH_TASKS: usize = 500;

/// Output for a task without `--wait`.
#[derive(Serialize)]
struct SendOutput<'a> {
    id: &'a str,
    queue: &'a str,
    /// `true` if nothing was sent, because this task has the unique key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

pub(super) async fn run(args: SendArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    if let Some(file) = args.flow.clone() {
        return Box::pin(super::send_flow::run(args, &file, settings, json)).await;
    }
    // INVARIANT: required without a workflow.
    let name = args.name.clone().unwrap_or_default();
    let mut queue = queue_of(&name, &args.options, settings);
    let with_profile;
    let settings = match args.profile {
        Some(profile) => {
            let queue = queue.get_or_insert(profile::default_queue(profile)?);
            with_profile = profile::settings_of(settings, profile, queue, &name)?;
            &with_profile
        }
        None => settings,
    };
    // Before any connection, so that a wrong argument is reported at once.
    let mut signature = signature(&args, &name, settings)?;
    if let Some(queue) = queue {
        signature = signature.queue(queue);
    }
    if let Some(rule) = unique(&args, &name, settings)? {
        signature = signature.unique(rule);
    }
    let app = connect(settings).await?;
    let queue = signature
        .queue_name(app.default_queue())
        .map_err(|error| CliError::new(Code::Usage, error.to_string()))?;
    let verifies = verifies(settings)?;
    let mut printer = Printer { json, list: args.count > 1, printed: 0, name, queue, verifies };
    printer.begin()?;
    let client = app.client();
    let receiver = (printer.queue.clone(), TaskName::parse(&printer.name).ok());
    let done = match args.wait {
        None if args.options.require_worker => send_to_workers(&client, signature, &args, &mut printer).await,
        None => {
            let sent = send_all(&client, signature, &args, |sent| printer.sent(&sent)).await;
            if sent.is_ok() {
                receivers::note(&client, &receiver.0, receiver.1.as_ref()).await;
            }
            sent.map(|()| Code::Success)
        }
        Some(limit) => {
            let deadline = Instant::now() + limit;
            let mut waiting = Vec::new();
            let sent = send_all(&client, signature, &args, |sent| {
                printer.waiting_for(&sent)?;
                waiting.push(sent);
                Ok(())
            });
            match sent.await {
                Ok(()) => {
                    receivers::note(&client, &receiver.0, receiver.1.as_ref()).await;
                    wait_all(waiting, deadline, &mut printer).await
                }
                Err(failure) => {
                    // The sent tasks run: their ids must not be lost.
                    waiting.iter().try_for_each(|sent| printer.given_up(sent))?;
                    Err(failure)
                }
            }
        }
    };
    printer.end()?;
    app.broker().close().await;
    done
}

/// Returns the queue of the command line, or of this task in machinist.toml.
fn queue_of(task: &str, options: &SendOptions, settings: &Settings) -> Option<QueueName> {
    let configured = || settings.tasks.get(task)?.queue.as_ref().map(|queue| queue.value.clone());
    options.queue.clone().or_else(configured)
}

/// Adds the queue and the tags of the command line, or those of the task in machinist.toml.
fn with_queue(signature: Signature, options: &SendOptions, settings: &Settings) -> Signature {
    let configured = settings.tasks.get(signature.name());
    let queue = queue_of(signature.name(), options, settings);
    let tags = match (&options.requires, configured.and_then(|task| task.requires.as_ref())) {
        (given, Some(configured)) if given.is_empty() => &configured.value,
        (given, _) => given,
    };
    let signature = signature.requires(tags.iter().map(Tag::as_str));
    queue.into_iter().fold(signature, |signature, queue| signature.queue(queue.as_str()))
}

fn signature(args: &SendArgs, name: &str, settings: &Settings) -> Result<Signature, CliError> {
    let mut signature = Signature::new(name);
    for text in &args.args {
        signature = signature.arg(input::value(text).map_err(|text| CliError::new(Code::Usage, text))?);
    }
    if let Some(id) = &args.id {
        signature = signature.with_id(id.clone());
    }
    if let Some(countdown) = args.countdown {
        signature = signature.countdown(countdown);
    }
    if let Some(eta) = args.eta {
        signature = signature.eta(eta);
    }
    with_options(signature, &args.options, settings)
}

/// Returns the rule by which a task is unique: that of the command line, or that of this task in machinist.toml.
fn unique(args: &SendArgs, task: &str, settings: &Settings) -> Result<Option<Unique>, CliError> {
    let configured = || settings.tasks.get(task)?.unique.as_ref().map(|unique| unique.value.clone());
    let longest =
        |wait: Duration| args.debounce_max.unwrap_or_else(|| wait.saturating_mul(DEBOUNCE_MAX_WAITS));
    let timed = match (args.debounce, args.throttle) {
        (Some(wait), _) => Some(Unique::debounce(wait, longest(wait))),
        (None, Some(period)) => Some(Unique::throttle(period)),
        (None, None) => None,
    };
    let configured = match timed {
        Some(timed) => Some(timed.keyed_as(configured().unwrap_or_default())),
        None => configured(),
    };
    let rule = match &args.unique {
        Some(key) => Some(configured.unwrap_or_default().key(key)),
        None => configured,
    };
    let Some(mut rule) = rule else {
        if args.unique_until.is_some() || args.on_conflict.is_some() {
            let text = "--unique-until and --on-conflict are for unique tasks; add --unique KEY, or unique = true in \
                        machinist.toml";
            return Err(CliError::new(Code::Usage, text));
        }
        return Ok(None);
    };
    if let Some(until) = args.unique_until {
        rule = rule.until(until);
    }
    if let Some(consequence) = args.on_conflict {
        rule = rule.on_conflict(consequence);
    }
    Ok(Some(rule))
}

/// Returns a signature with the options that hold for a task which is sent once and for a periodic one.
pub(super) fn with_options(
    mut signature: Signature,
    options: &SendOptions,
    settings: &Settings,
) -> Result<Signature, CliError> {
    let wrong = |text: String| CliError::new(Code::Usage, text);
    for text in &options.named {
        let (name, value) = input::named(text).map_err(wrong)?;
        signature = signature.named_arg(name, value);
    }
    for text in &options.labels {
        let (key, value) = input::label(text).map_err(wrong)?;
        signature = signature.label(key, value);
    }
    signature = with_queue(signature, options, settings);
    match options.expires {
        Some(ExpiryArg::At(instant)) => signature = signature.expires_at(instant),
        Some(ExpiryArg::In(duration)) => signature = signature.expires_in(duration),
        None => {}
    }
    if let Some(retries) = options.retries {
        signature = signature.retries(retries);
    }
    if let Some(backoff) = &options.backoff {
        signature = signature.backoff(backoff.clone());
    }
    if let Some(timeout) = options.timeout {
        signature = signature.timeout(timeout);
    }
    if let Some(limit) = options.soft_timeout {
        signature = signature.soft_timeout(limit);
    }
    if let Some(limit) = options.retry_for {
        signature = signature.retry_for(limit);
    }
    if options.retry_timeouts {
        signature = signature.retry_timeouts();
    }
    if options.require_worker {
        signature = signature.require_worker();
    }
    if let Some(key) = &options.limit_key {
        signature = signature.limit_key(key);
    }
    if let Some(key) = &options.fair_key {
        signature = signature.fair_key(key);
    }
    if let Some(cost) = options.limit_cost {
        signature = signature.limit_cost(cost);
    }
    if let Some(priority) = options.priority {
        signature = signature.priority(priority);
    }
    Ok(signature)
}

/// Sends a task as often as the arguments say, each time as a separate task, and passes each confirmed one to `sent`.
async fn send_all(
    client: &Client,
    signature: Signature,
    args: &SendArgs,
    mut sent: impl FnMut(AsyncResult) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let count = args.count;
    let progress = progress_bar(count, "sent");
    let mut rest = count as usize;
    let mut done = 0;
    while rest > 0 {
        let batch = rest.min(MAX_BATCH_TASKS);
        let copy = |_| match count {
            // The id of a single task may be given on the command line.
            1 => signature.clone(),
            _ => signature.clone().with_id(machinist::TaskId::fresh()),
        };
        let copies: Vec<_> = (0..batch).map(copy).collect();
        let mut failed = None;
        for (answer, copy) in client.send_all(copies.clone()).await.into_iter().zip(copies) {
            let answer = match (answer, args.wait_for_room) {
                // Nobody waits again for a room that has not come.
                (Err(SendError::QueueFull { .. }), Some(longest)) if failed.is_none() => {
                    client.send_when_room(copy, longest).await
                }
                (answer, _) => answer,
            };
            match answer {
                Ok(result) => {
                    done += 1;
                    // The progress bar and the lines share a terminal.
                    progress.suspend(|| sent(result))?;
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        progress.set_position(done);
        if let Some(error) = failed {
            progress.abandon();
            let failure = CliError::from(error);
            return Err(if count > 1 {
                failure.context(format_args!("{done} of {count} were sent"))
            } else {
                failure
            });
        }
        rest -= batch;
    }
    progress.finish_and_clear();
    Ok(())
}

/// Sends a task that requires a worker. One that has ended without a worker is printed with its outcome.
async fn send_to_workers(
    client: &Client,
    signature: Signature,
    args: &SendArgs,
    printer: &mut Printer,
) -> Result<Code, CliError> {
    let mut results = Vec::new();
    let sent = send_all(client, signature, args, |sent| {
        results.push(sent);
        Ok(())
    })
    .await;
    let mut code = Code::Success;
    for result in &results {
        match result.record().await {
            Ok(record) if record.kind == Some(FailureKind::NoWorker) => {
                printer.ended(result, &TaskView::from(&record))?;
                code = Code::Failed;
            }
            // The task was sent: its id must not be lost.
            _ => printer.sent(result)?,
        }
    }
    sent.map(|()| code)
}

/// Waits for all tasks until the same instant; the worst outcome is the exit code.
async fn wait_all(
    waiting: Vec<AsyncResult>,
    deadline: Instant,
    printer: &mut Printer,
) -> Result<Code, CliError> {
    let progress = progress_bar(u32::try_from(waiting.len()).unwrap_or(u32::MAX), "ended");
    let mut codes = Vec::new();
    let mut waiting = waiting.into_iter();
    while let Some(result) = waiting.next() {
        match outcome(&result, deadline, printer).await {
            Ok(None) => {
                codes.push(Code::UnknownId);
                progress.suspend(|| printer.vanished(&result))?;
                progress.inc(1);
            }
            Ok(Some(view)) => {
                codes.push(Code::of(view.state));
                progress.suspend(|| printer.ended(&result, &view))?;
                progress.inc(1);
            }
            Err(failure) => {
                progress.abandon();
                printer.given_up(&result)?;
                waiting.try_for_each(|rest| printer.given_up(&rest))?;
                return Err(failure);
            }
        }
    }
    progress.finish_and_clear();
    // A failure is final, and goes before a task that has not ended.
    let worst =
        [Code::Failed, Code::UnknownId, Code::NotFinished].into_iter().find(|code| codes.contains(code));
    Ok(worst.unwrap_or(Code::Success))
}

/// Returns the outcome of a task, or its state when the time is over; `None` if its record was there and is gone.
async fn outcome(
    result: &AsyncResult,
    deadline: Instant,
    printer: &Printer,
) -> Result<Option<TaskView>, CliError> {
    let record = match result.wait_record(deadline.saturating_duration_since(Instant::now())).await {
        Err(ResultError::Unknown { .. }) => return Ok(None),
        Err(ResultError::Timeout { .. }) => result.record().await,
        ended => ended,
    };
    match record {
        Ok(record) => Ok(Some(TaskView::from(&record).verified(printer.verifies && !record.mirrored))),
        Err(ResultError::Unknown { id }) => Ok(Some(TaskView::pending(&id, &printer.name, &printer.queue))),
        Err(error) => Err(error.into()),
    }
}

/// Returns a progress bar, which is shown on a terminal only, and only for several tasks.
fn progress_bar(count: u32, message: &'static str) -> ProgressBar {
    if count == 1 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}  {per_sec}  {eta}");
    let bar = ProgressBar::new(u64::from(count)).with_message(message);
    match style {
        Ok(style) => bar.with_style(style),
        // The template is fixed and valid; the default would do as well.
        Err(_) => bar,
    }
}

/// Printer of tasks: each as soon as it is known, as a list if there may be several.
struct Printer {
    json: bool,
    list: bool,
    printed: usize,
    name: String,
    queue: QueueName,
    /// `true` if a key here proves who wrote an outcome.
    verifies: bool,
}

impl Printer {
    fn begin(&self) -> Result<(), CliError> {
        if self.json && self.list { output::line("[") } else { Ok(()) }
    }

    fn sent(&mut self, result: &AsyncResult) -> Result<(), CliError> {
        let id = result.id().as_str();
        if self.json {
            // Not the one that was asked for, where priorities have queues.
            let queue = result.queue().unwrap_or(&self.queue).to_string();
            self.object(&SendOutput { id, queue: &queue, duplicate: result.is_duplicate() })
        } else {
            output::line(id)
        }
    }

    /// Prints the id of a task that is not waited for any more, unless it was printed before.
    fn given_up(&mut self, result: &AsyncResult) -> Result<(), CliError> {
        if self.json || self.list { self.sent(result) } else { Ok(()) }
    }

    /// Reports a task whose record is gone.
    fn vanished(&mut self, result: &AsyncResult) -> Result<(), CliError> {
        self.given_up(result)?;
        output::note(&format!(
            "machinist: task {} is unknown: its record was there, and is gone. It has expired, or somebody deleted it",
            result.id()
        ));
        Ok(())
    }

    /// Prints the id before the wait, so that a user who interrupts it has the id.
    fn waiting_for(&self, result: &AsyncResult) -> Result<(), CliError> {
        if self.json || self.list { Ok(()) } else { output::line(result.id().as_str()) }
    }

    fn ended(&mut self, result: &AsyncResult, view: &TaskView) -> Result<(), CliError> {
        if self.json {
            return self.object(view);
        }
        let outcome = view.outcome();
        match (self.list, outcome.is_empty()) {
            (true, _) => output::line(format!("{}  {}", result.id(), outcome.replace('\n', "  ")).trim_end()),
            (false, true) => Ok(()),
            (false, false) => output::line(&outcome),
        }
    }

    fn object<T: Serialize>(&mut self, value: &T) -> Result<(), CliError> {
        if self.printed > 0 {
            output::raw(",\n")?;
        }
        self.printed += 1;
        if !self.list {
            return output::json(value);
        }
        output::raw(&output::json_text(value)?)
    }

    fn end(&self) -> Result<(), CliError> {
        match (self.json && self.list, self.printed) {
            (false, _) => Ok(()),
            (true, 0) => output::line("]"),
            (true, _) => output::line("\n]"),
        }
    }
}
