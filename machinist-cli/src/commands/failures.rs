//! `machinist failures`: groups failed tasks by cause, and acts on a group.

use std::{collections::BTreeSet, time::Duration};

use machinist::{
    App, DeadFilter, DeadLetter, DeadLetterOutcome, FailedTasks, FailureGroup, TaskId, settings::Settings,
    view::FailureGroupView,
};
use serde::Serialize;

use super::{
    bulk::{self, BulkChange, BulkWay},
    connect, connect_reader, question,
};
use crate::{
    args::{FailuresArgs, FailuresCommand, GroupArgs},
    exit::{CliError, Code},
    output,
    people::People,
};

/// Maximum number of tasks of a group that one command changes.
const MAX_SELECTED: usize = 100_000;

pub(super) async fn run(args: &FailuresArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match &args.command {
        None => list(args, settings, json).await,
        Some(FailuresCommand::Retry(group)) => retry(group, settings, json).await,
        Some(FailuresCommand::Purge(group)) => purge(group, settings, json).await,
        Some(FailuresCommand::Silence { fingerprint, duration, off }) => {
            let duration = if *off { Duration::ZERO } else { *duration };
            silence(fingerprint, duration, settings, json).await
        }
    }
}

/// Returns the failed tasks of a group.
async fn tasks_of(app: &App, group: &GroupArgs) -> Result<FailedTasks, CliError> {
    let since = group.since.map(|age| app.clock().now().minus(age));
    let limit = group.count.map_or(MAX_SELECTED, |count| count as usize).min(MAX_SELECTED);
    let found = app.client().failed_tasks(&group.fingerprint, since, limit).await?;
    found.ok_or_else(|| unknown(&group.fingerprint))
}

fn unknown(fingerprint: &str) -> CliError {
    CliError::new(Code::UnknownId, format!("no listed failure has the fingerprint {fingerprint}"))
        .remedy("`machinist failures --all` lists the groups with their fingerprints")
}

async fn retry(group: &GroupArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    // Looking needs no key.
    let app = if group.dry_run { connect_reader(settings).await? } else { connect(settings).await? };
    let found = tasks_of(&app, group).await?;
    let way = BulkWay { dry_run: group.dry_run, yes: group.yes, rate: group.rate };
    let code = bulk::change_each(&app, BulkChange::Retry, &found.records, way, &looked(&found), json).await?;
    app.flush_events().await;
    app.broker().close().await;
    Ok(code)
}

/// Returns a note about the look at a group.
fn looked(found: &FailedTasks) -> String {
    let bound = if found.is_complete { "" } else { ", and stopped there" };
    format!("machinist: the group has {} tasks among the listed failures{bound}", found.records.len())
}

/// Dead letter of a group.
#[derive(Serialize)]
struct PurgedRow {
    dead_id: String,
    task: Option<String>,
    /// `purged`, `refused`, `missing`; with --dry-run `selected`.
    done: &'static str,
}

impl PurgedRow {
    fn new(letter: &DeadLetter, done: &'static str) -> Self {
        Self { dead_id: letter.dead_id.clone(), task: letter.task.as_ref().map(ToString::to_string), done }
    }
}

async fn purge(group: &GroupArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let client = app.client();
    let found = tasks_of(&app, group).await?;
    let ids: BTreeSet<&TaskId> = found.records.iter().map(|record| &record.id).collect();
    let mut letters = client.dead_letters(&DeadFilter::default(), usize::MAX).await?;
    letters.retain(|letter| letter.task.as_ref().is_some_and(|task| ids.contains(task)));
    let question = format!("purge {} dead letters?", letters.len());
    if !letters.is_empty() && !group.dry_run && !group.yes && !question::confirmed(&question, json)? {
        output::note("machinist: nothing was changed");
        return Ok(Code::Success);
    }
    let mut rows = Vec::new();
    let pace = group.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate);
    let purged = if group.dry_run {
        rows.extend(letters.iter().map(|letter| PurgedRow::new(letter, "selected")));
        Ok(())
    } else {
        let report = |letter: &DeadLetter, outcome| {
            let done = match outcome {
                DeadLetterOutcome::Purged => "purged",
                DeadLetterOutcome::Refused(_) => "refused",
                _ => "missing",
            };
            rows.push(PurgedRow::new(letter, done));
        };
        client.purge_dead_letters(&letters, pace, report).await
    };
    if json {
        output::json(&rows)?;
    } else {
        for row in &rows {
            output::line(&format!("{}  {}", row.dead_id, row.done))?;
        }
    }
    output::note(&looked(&found));
    purged?;
    app.broker().close().await;
    let refused = rows.iter().any(|row| row.done == "refused");
    Ok(if refused { Code::Failed } else { Code::Success })
}

async fn silence(
    fingerprint: &str,
    duration: Duration,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let Some(until) = app.client().silence_failures(fingerprint, duration).await? else {
        return Err(unknown(fingerprint));
    };
    if json {
        let silenced_until = (!duration.is_zero()).then(|| until.to_string());
        output::json(&serde_json::json!({ "fingerprint": fingerprint, "silenced_until": silenced_until }))?;
    } else if duration.is_zero() {
        output::line("listed again")?;
    } else {
        output::line(&format!("silenced until {}", People::at_output().time(&until.to_string())))?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}

async fn list(args: &FailuresArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let since = args.since.map(|age| app.clock().now().minus(age));
    let found = app.client().failures(since).await?;
    let is_shown = |group: &&FailureGroup| args.all || group.silenced_until.is_none();
    let rows: Vec<FailureGroupView<'_>> = found.groups.iter().filter(is_shown).map(Into::into).collect();
    let silenced = found.groups.len() - rows.len();
    if json {
        output::json(&rows)?;
    } else {
        let people = People::at_output();
        let head =
            ["fingerprint", "task", "kind", "count", "1h", "24h", "7d", "last seen", "example", "error"];
        let cells = |row: FailureGroupView<'_>| {
            vec![
                row.fingerprint.to_owned(),
                row.task.to_owned(),
                row.kind.to_owned(),
                row.count.to_string(),
                row.last_hour.to_string(),
                row.last_day.to_string(),
                row.last_week.to_string(),
                people.time(&row.last_seen),
                row.example.to_owned(),
                row.error.to_owned(),
            ]
        };
        output::table(&head, rows.into_iter().map(cells))?;
    }
    output::note(&format!("machinist: looked at {} of {} listed failures", found.looked_at, found.listed));
    if silenced > 0 {
        output::note(&format!("machinist: {silenced} groups are silenced, and listed by --all"));
    }
    if found.other > 0 {
        output::note(&format!(
            "machinist: {} further failures have other causes: too many groups",
            found.other
        ));
    }
    if found.cut > 0 {
        output::note(&format!(
            "machinist: {} failures are no longer listed: too many tasks have failed",
            found.cut
        ));
    }
    app.broker().close().await;
    Ok(Code::Success)
}
