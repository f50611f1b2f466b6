//! `machinist periodic`: adds, lists and controls periodic tasks.

use machinist::{
    Client, Signature,
    clock::Timestamp,
    periodic::{Periodic, PeriodicError, PeriodicTask, PeriodicTick, Schedule},
    settings::{Settings, show_duration},
    view::{PeriodicDetailsView, PeriodicView},
};

use super::{connect, connect_reader, receivers, send, send_flow};
use crate::{
    args::{ExpiryArg, PeriodicAddArgs, PeriodicCommand},
    exit::{CliError, Code},
    input, output, visible,
};

pub(super) async fn run(command: PeriodicCommand, settings: &Settings, json: bool) -> Result<Code, CliError> {
    // Before any connection, so that a wrong argument is reported at once.
    let added = match &command {
        PeriodicCommand::Add(args) => Some(definition(args, settings)?),
        _ => None,
    };
    let reads =
        matches!(command, PeriodicCommand::List(_) | PeriodicCommand::Show(_) | PeriodicCommand::Next(_));
    let app = if reads { connect_reader(settings).await? } else { connect(settings).await? };
    let client = app.client();
    let done = match command {
        PeriodicCommand::Add(_) => match added {
            Some(added) => {
                let task = client.add_periodic(&added).await?;
                receivers::note(&client, &task.queue, Some(&task.task)).await;
                added_page(&task, json)
            }
            None => Ok(()),
        },
        PeriodicCommand::Remove(args) => {
            client.remove_periodic(&args.name).await?;
            changed(&client, &args.name, "removed", json).await
        }
        PeriodicCommand::Pause(args) => {
            client.pause_periodic(&args.name).await?;
            changed(&client, &args.name, "paused", json).await
        }
        PeriodicCommand::Resume(args) => {
            client.resume_periodic(&args.name).await?;
            changed(&client, &args.name, "resumed", json).await
        }
        PeriodicCommand::Trigger(args) => {
            let sent = client.trigger_periodic(&args.name).await?;
            if json {
                let tick = sent.tick.to_string();
                output::json(&serde_json::json!({ "id": sent.id.as_str(), "tick": tick }))
            } else {
                output::line(sent.id.as_str())
            }
        }
        PeriodicCommand::List(page) => {
            let mut tasks = client.periodic_tasks().await?;
            output::note_next(page.cut(&mut tasks, |task| task.name.clone()));
            list(&tasks, json)
        }
        PeriodicCommand::Show(args) => {
            let task = known(&client, &args.name).await?;
            receivers::note(&client, &task.queue, Some(&task.task)).await;
            show(&task, json)
        }
        PeriodicCommand::Next(args) => {
            let task = known(&client, &args.name).await?;
            let next = task.upcoming(app.clock().now(), usize::from(args.count));
            let next: Vec<_> = next.iter().map(Timestamp::to_string).collect();
            if json { output::json(&next) } else { next.iter().try_for_each(|tick| output::line(tick)) }
        }
    };
    app.broker().close().await;
    done.map(|()| Code::Success)
}

async fn known(client: &Client, name: &str) -> Result<PeriodicTask, CliError> {
    Ok(client.known_periodic_task(name).await?)
}

/// Returns the definition of the command line.
fn definition(args: &PeriodicAddArgs, settings: &Settings) -> Result<Periodic, CliError> {
    let usage = |text: String| CliError::new(Code::Usage, text);
    if let Some((option, why)) = args.refused.given() {
        return Err(usage(format!("{option} cannot be given for a periodic task: {why}")));
    }
    if let Some(ExpiryArg::At(_)) = args.options.expires {
        return Err(usage("--expires needs a time from each tick for a periodic task, like 10m".to_owned()));
    }
    let schedule = match (&args.when.cron, args.when.every) {
        (Some(cron), _) => Schedule::cron(cron),
        (None, every) => Schedule::every(every.unwrap_or_default()),
    };
    let schedule = match &args.time_zone {
        Some(zone) => schedule.and_then(|schedule| schedule.time_zone(zone)),
        None => schedule,
    };
    let schedule = schedule.map_err(PeriodicError::from)?;
    let mut periodic = match (&args.flow, &args.task) {
        (Some(file), task) => {
            send_flow::refuse_task(task.as_deref())?;
            send_flow::refuse_options(&args.options, &[])?;
            let mut workflow = send_flow::read_file(file, settings)?;
            if let Some(ExpiryArg::In(time)) = args.options.expires {
                workflow = workflow.expires_in(time);
            }
            Periodic::new(&args.periodic, schedule, workflow)?
        }
        (None, task) => {
            // The parser requires one of the two.
            let mut signature = Signature::new(task.as_deref().unwrap_or_default());
            for text in &args.args {
                signature = signature.arg(input::value(text).map_err(usage)?);
            }
            let signature = send::with_options(signature, &args.options, settings)?;
            Periodic::new(&args.periodic, schedule, signature)?
        }
    };
    if let Some(misfire) = args.misfire {
        periodic = periodic.misfire(misfire);
    }
    if let Some(overlap) = args.overlap {
        periodic = periodic.overlap(overlap);
    }
    if let Some(jitter) = args.jitter {
        periodic = periodic.jitter(jitter);
    }
    if let Some(from) = args.from {
        periodic = periodic.from(from);
    }
    if let Some(until) = args.until {
        periodic = periodic.until(until);
    }
    if let Some(age) = args.catch_up {
        periodic = periodic.catch_up(age);
    }
    periodic.check()?;
    Ok(periodic)
}

fn added_page(task: &PeriodicTask, json: bool) -> Result<(), CliError> {
    if json {
        return output::json(&PeriodicDetailsView::from(task));
    }
    match task.next {
        Some(next) => output::line(&format!("{} ticks next at {next}", task.name)),
        None if task.paused.is_some() => output::line(&format!("{} is paused", task.name)),
        None => output::line(&format!("{} has no more ticks", task.name)),
    }
}

async fn changed(client: &Client, name: &str, change: &str, json: bool) -> Result<(), CliError> {
    if !json {
        return output::line(&format!("{name} is {change}"));
    }
    match client.periodic_task(name).await? {
        Some(task) => output::json(&PeriodicDetailsView::from(&task)),
        None => output::json(&serde_json::json!({ "name": name, "removed": true })),
    }
}

fn list(tasks: &[PeriodicTask], json: bool) -> Result<(), CliError> {
    if json {
        return output::json(&tasks.iter().map(PeriodicView::from).collect::<Vec<_>>());
    }
    let row = |task: &PeriodicTask| {
        let last = task.ticks.first();
        vec![
            task.name.clone(),
            task.task.to_string(),
            schedule(task),
            next(task),
            last.map_or_else(|| "-".to_owned(), |tick| tick.tick.to_string()),
            last.map_or_else(String::new, state),
            match task.restored {
                Some(_) => format!("{}, written back", task.source),
                None => task.source.to_string(),
            },
        ]
    };
    let head = ["name", "task", "schedule", "next", "last", "state", "source"];
    output::table(&head, tasks.iter().map(row))
}

fn show(task: &PeriodicTask, json: bool) -> Result<(), CliError> {
    if json {
        return output::json(&PeriodicDetailsView::from(task));
    }
    let policies = &task.policies;
    let owner = match &task.worker {
        Some(worker) => format!("{} of worker {worker}", task.source),
        None => task.source.to_string(),
    };
    let mut lines = vec![
        ("name", task.name.clone()),
        ("task", task.task.to_string()),
        ("queue", task.queue.to_string()),
        ("schedule", schedule(task)),
        ("next", next(task)),
        ("source", owner),
        ("misfire", format!("{}, up to {} late", policies.misfire, show_duration(policies.catch_up))),
        ("overlap", policies.overlap.to_string()),
        ("jitter", show_duration(policies.jitter)),
    ];
    lines.extend(policies.from.map(|from| ("from", from.to_string())));
    lines.extend(policies.until.map(|until| ("until", until.to_string())));
    lines.extend(task.restored.map(|at| ("restored", format!("{at}: the backend had lost it"))));
    lines.extend(task.problem.clone().map(|problem| ("problem", problem)));
    for (label, value) in lines {
        output::line(&format!("{label:9} {}", visible::one_line(&value)))?;
    }
    for tick in &task.ticks {
        output::line(&format!("tick      {}  {}  {}", tick.tick, state(tick), tick.id))?;
    }
    Ok(())
}

fn schedule(task: &PeriodicTask) -> String {
    task.schedule.as_ref().map_or_else(
        || "unreadable".to_owned(),
        |schedule| match schedule.interval() {
            Some(interval) => format!("every {}", show_duration(interval)),
            None => schedule.to_string(),
        },
    )
}

fn next(task: &PeriodicTask) -> String {
    match (task.next, task.paused) {
        _ if task.problem.is_some() => "see `periodic show`".to_owned(),
        (_, Some(since)) => format!("paused since {since}"),
        (Some(next), None) => next.to_string(),
        (None, None) => "never".to_owned(),
    }
}

fn state(tick: &PeriodicTick) -> String {
    tick.state.map_or_else(|| "forgotten".to_owned(), |state| state.to_string())
}
