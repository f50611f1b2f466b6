//! `machinist dead`: lists, shows, replays and purges dead letters.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use machinist::{
    App, ControlError, DeadFilter, DeadLetter, QueueName, TaskId, TaskName,
    settings::{Settings, show_duration},
    view::{ArgsView, DeadLetterView, SettledView},
};

use super::{connect, connect_reader, refused};
use crate::{
    args::{DeadCommand, DeadLetterActionArgs, DeadLetterSelection},
    args_view::{ArgsText, arguments},
    exit::{CliError, Code, chain},
    output,
    people::People,
    visible,
};

/// Returns what became of a letter, in a line for people.
fn settled_text(settled: &SettledView) -> String {
    let detail = settled.as_task.as_deref().map(|id| format!(" as {id}"));
    let detail = detail.or_else(|| settled.why.as_deref().map(|why| format!(": {why}")));
    format!("{}{}", settled.done, visible::one_line(&detail.unwrap_or_default()))
}

pub(super) async fn run(command: DeadCommand, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match command {
        DeadCommand::List { which, limit, args } => {
            let app = connect_reader(settings).await?;
            let letters = find(&app, &which, settings, limit as usize).await?;
            let roots = roots(&app, &letters).await?;
            let args = if args { Some(args_of(&app, settings, &letters).await?) } else { None };
            list(&app, &letters, &roots, args, json)?;
            refused::note(&app).await?;
            app.broker().close().await;
            Ok(Code::Success)
        }
        DeadCommand::Show { id } => {
            let app = connect_reader(settings).await?;
            let which = DeadLetterSelection { ids: vec![id.clone()], ..DeadLetterSelection::default() };
            let found = find(&app, &which, settings, 1).await?;
            let Some(letter) = found.first() else { return Err(unknown(&[id])) };
            let roots = roots(&app, std::slice::from_ref(letter)).await?;
            let args = args_of(&app, settings, std::slice::from_ref(letter)).await?.pop().unwrap_or_default();
            show(letter, roots.into_iter().next().flatten().as_ref(), args, json)?;
            app.broker().close().await;
            Ok(Code::Success)
        }
        DeadCommand::Replay(how) => settle(how, BulkAction::Replay, settings, json).await,
        DeadCommand::Purge(how) => settle(how, BulkAction::Purge, settings, json).await,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BulkAction {
    Replay,
    Purge,
}

async fn settle(
    how: DeadLetterActionArgs,
    action: BulkAction,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    if how.which.is_everything() && !how.all {
        return Err(CliError::new(Code::Usage, "this would change every dead letter")
            .remedy("select some by id, --queue, --reason, --task or --older-than, or all with --all"));
    }
    // Reading needs no key; replaying signs.
    let app = if action == BulkAction::Replay && !how.dry_run {
        connect(settings).await?
    } else {
        connect_reader(settings).await?
    };
    let count = how.count.map_or(usize::MAX, |count| count as usize);
    let letters = find(&app, &how.which, settings, count).await?;
    let missing: Vec<String> =
        how.which.ids.iter().filter(|id| !letters.iter().any(|l| l.dead_id == **id)).cloned().collect();
    if !missing.is_empty() && letters.len() < count {
        return Err(unknown(&missing));
    }
    let mut code = Code::Success;
    let mut rows = Vec::new();
    let mut report = |letter: &DeadLetter, outcome: SettledView| {
        if matches!(outcome.done, "refused") || (outcome.done == "missing" && action == BulkAction::Replay) {
            code = Code::Failed;
        }
        if !json {
            // The action goes on even if its result cannot be printed.
            let _ =
                output::line(&format!("{}  {}", visible::one_line(&letter.dead_id), settled_text(&outcome)));
        }
        rows.push((letter.clone(), outcome));
    };
    let pace = how.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate);
    let client = app.client();
    let settled = match action {
        _ if how.dry_run => {
            let done = if action == BulkAction::Replay { "would be replayed" } else { "would be purged" };
            letters.iter().for_each(|letter| report(letter, SettledView::done(done)));
            Ok(())
        }
        BulkAction::Replay => {
            let report_settled =
                |letter: &DeadLetter, settlement| report(letter, SettledView::from(&settlement));
            client.replay_dead_letters(&letters, pace, report_settled).await
        }
        BulkAction::Purge => {
            let report_settled =
                |letter: &DeadLetter, settlement| report(letter, SettledView::from(&settlement));
            client.purge_dead_letters(&letters, pace, report_settled).await
        }
    };
    if json {
        let letters: Vec<DeadLetter> = rows.iter().map(|(letter, _)| letter.clone()).collect();
        let roots = roots(&app, &letters).await?;
        let rows = rows.iter().zip(&roots).map(|((letter, outcome), root)| {
            DeadLetterView::new(letter, root.as_ref()).settled(outcome.clone())
        });
        let rows: Vec<_> = rows.collect();
        output::json(&rows)?;
    } else if letters.is_empty() {
        output::note("no dead letter matches");
    }
    settled?;
    app.broker().close().await;
    Ok(code)
}

/// Returns the selected dead letters. Those that the broker dead-lettered by itself are added to the index first.
async fn find(
    app: &App,
    which: &DeadLetterSelection,
    settings: &Settings,
    limit: usize,
) -> Result<Vec<DeadLetter>, CliError> {
    let client = app.client();
    // A process without keys must not decide about a task; workers update the index once a minute.
    let verifies = settings.allow_unsigned.value || settings.keyring()?.is_some();
    let queues = if verifies { queues(app, which, settings).await? } else { BTreeSet::new() };
    // Asked about all at once, because many of them may be gone.
    let depths = app.broker().depth(&queues.into_iter().collect::<Vec<_>>()).await?;
    let with_letters = depths.into_iter().filter(|depth| depth.dead.is_some_and(|dead| dead > 0));
    for queue in with_letters.map(|depth| depth.queue) {
        match client.index_dead_letters(&queue).await {
            Ok(0) => {}
            Ok(added) => output::note(&format!(
                "machinist: {added} dead letters of queue {queue} were added to the index, or had no mark and go back to \
                 their queue"
            )),
            // A backend that is full must not keep anybody from purging what is listed.
            Err(ControlError::Backend(error)) => output::note(&format!(
                "machinist: the index of queue {queue} is not complete: {}",
                chain(&error)
            )),
            Err(error) => return Err(error.into()),
        }
    }
    let now = app.clock().now();
    let filter = DeadFilter {
        queue: which.queue.clone(),
        reason: which.reason.clone(),
        name: which.task.clone(),
        until: which.older_than.map(|age| now.minus(age)),
        since: which.newer_than.map(|age| now.minus(age)),
        dead_ids: (!which.ids.is_empty()).then(|| which.ids.clone()),
    };
    Ok(client.dead_letters(&filter, limit).await?)
}

async fn queues(
    app: &App,
    which: &DeadLetterSelection,
    settings: &Settings,
) -> Result<BTreeSet<QueueName>, CliError> {
    if let Some(queue) = &which.queue {
        return Ok(BTreeSet::from([queue.clone()]));
    }
    super::queue_list::known(app, settings).await
}

/// Returns the root of each letter's workflow, if its task belongs to one.
async fn roots(app: &App, letters: &[DeadLetter]) -> Result<Vec<Option<TaskId>>, CliError> {
    let tasks: Vec<TaskId> = letters.iter().filter_map(|letter| letter.task.clone()).collect();
    let places = app.client().workflows_of(&tasks).await?;
    let roots: BTreeMap<TaskId, TaskId> =
        tasks.into_iter().zip(places).filter_map(|(task, place)| Some((task, place?.root))).collect();
    Ok(letters.iter().map(|letter| roots.get(letter.task.as_ref()?).cloned()).collect())
}

/// Returns the arguments of each letter's task, from the record of the task: the letter itself stays in its queue.
async fn args_of(app: &App, settings: &Settings, letters: &[DeadLetter]) -> Result<Vec<ArgsView>, CliError> {
    fn believed(letter: &DeadLetter) -> Option<(TaskId, Option<&str>)> {
        let id = letter.task.clone().filter(|id| letter.dead_id.starts_with(&format!("{id}!")))?;
        Some((id, letter.name.as_ref().map(TaskName::as_str)))
    }
    let asked: Vec<_> = letters.iter().filter_map(believed).collect();
    let mut known = arguments(app, settings, &asked).await?.into_iter();
    let view = |letter| match believed(letter) {
        Some(_) => known.next().unwrap_or_default(),
        None => ArgsView::hidden("its message is not believed"),
    };
    Ok(letters.iter().map(view).collect())
}

fn list(
    app: &App,
    letters: &[DeadLetter],
    roots: &[Option<TaskId>],
    args: Option<Vec<ArgsView>>,
    json: bool,
) -> Result<(), CliError> {
    let with_args = args.is_some();
    let mut args = args.unwrap_or_default().into_iter();
    if json {
        let rows = letters
            .iter()
            .zip(roots)
            .map(|(letter, root)| DeadLetterView::new(letter, root.as_ref()).with_args(args.next()));
        return output::json(&rows.collect::<Vec<_>>());
    }
    let now = app.clock().now();
    let cells = |(letter, root): (&DeadLetter, &Option<TaskId>)| {
        let age = Duration::from_secs(now.since(letter.at).as_secs());
        let mut cells = vec![
            letter.dead_id.clone(),
            letter.queue.to_string(),
            letter.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            letter.reason.clone(),
            show_duration(age),
            root.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            letter.error.message().lines().next().unwrap_or_default().to_owned(),
        ];
        cells.extend(args.next().map(|args| args.cell()));
        cells
    };
    let mut head = vec!["id", "queue", "task", "reason", "age", "workflow", "error"];
    if with_args {
        head.push("args");
    }
    output::table(&head, letters.iter().zip(roots).map(cells))
}

fn show(letter: &DeadLetter, root: Option<&TaskId>, args: ArgsView, json: bool) -> Result<(), CliError> {
    if json {
        return output::json(&DeadLetterView::new(letter, root).with_args(Some(args)));
    }
    let optional = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut lines = vec![
        ("id", letter.dead_id.clone()),
        ("queue", letter.queue.to_string()),
        ("reason", letter.reason.clone()),
        ("since", People::at_output().time(&letter.at.to_string())),
        ("task", optional(letter.task.as_ref().map(ToString::to_string))),
        ("name", optional(letter.name.as_ref().map(ToString::to_string))),
        ("workflow", optional(root.map(ToString::to_string))),
        ("attempt", optional(letter.attempt.map(|attempt| attempt.to_string()))),
        ("size", format!("{} bytes", letter.size)),
        ("args", args.text().unwrap_or_default()),
    ];
    let mut label = "error";
    for cause in &letter.error.chain {
        lines.push((label, cause.clone()));
        label = "";
    }
    for (label, text) in lines {
        output::line(format!("{label:<10}{}", visible::one_line(&text)).trim_end())?;
    }
    Ok(())
}

fn unknown(ids: &[String]) -> CliError {
    CliError::new(Code::UnknownId, format!("there is no dead letter {}", ids.join(", ")))
        .remedy("`machinist dead list` shows the existing ones")
}
