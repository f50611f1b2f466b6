//! `machinist status`: shows the state of a task; with `--watch` until it has ended.

use std::time::Duration;

use machinist::{
    App, QueueName, ResultError, WhyReason,
    clock::Timestamp,
    record::{Record, TaskState},
    settings::Settings,
    view::TaskView,
};

use super::{connect_reader, delays, profile, verifies, workflow};
use crate::{
    args::StatusArgs,
    args_view::arguments,
    exit::{CliError, Code, chain},
    output,
    people::People,
    view::{TaskText, linked},
    visible,
};

/// Maximum time without a wake-up of the backend before the record is read again.
const MAX_CHANGE_WAIT: Duration = Duration::from_secs(3600);
/// Time without a step from which it is asked if something is left that continues an unfinished task.
const QUIET: Duration = Duration::from_secs(600);

pub(super) async fn run(args: StatusArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let with_profile;
    let settings = match args.profile {
        Some(profile) => {
            let queue = args.queue.clone().map_or_else(|| profile::default_queue(profile), Ok)?;
            with_profile = profile::settings_of(settings, profile, &queue, "*")?;
            &with_profile
        }
        None => settings,
    };
    let app = connect_reader(settings).await?;
    let verifies = verifies(settings)?;
    let place = workflow::place_of(&app.client(), &args.id).await?;
    if place.as_ref().is_some_and(|place| place.path.is_none()) {
        let code = workflow::show(&app, &args, json).await?;
        app.broker().close().await;
        return Ok(code);
    }
    if let Some(step) = &args.members {
        let text = format!("--members {step:?} needs the id of a workflow's root, and {} is none", args.id);
        return Err(CliError::new(Code::Usage, text).remedy("`machinist send --flow` prints the root's id"));
    }
    let result = app.result(args.id.clone());
    let found = result.record().await;
    if let (Err(ResultError::Unknown { .. }), Some(place)) = (&found, &place) {
        let code = workflow::show_part(&app.client(), &args.id, place, json).await?;
        app.broker().close().await;
        return Ok(code);
    }
    let mut record = found?;
    let root = place.map(|place| place.root.to_string());
    let view = |record: &Record| {
        let now = app.clock().now();
        let template = settings.trace_link.as_ref().map(|setting| &setting.value);
        let view = TaskView::from(record).verified(verifies && !record.mirrored).at(record, now);
        linked(view.of_workflow(root.clone()), template)
    };
    let with_args = async |record: &Record| {
        let asked = [(record.id.clone(), record.name.as_deref())];
        let args = arguments(&app, settings, &asked).await?.pop().unwrap_or_default();
        Ok::<_, CliError>(view(record).with_args(args))
    };
    if args.watch {
        show_change(&record, &view(&record), json)?;
        while !record.state.is_final() {
            let newer = result.changed(Some(&record), MAX_CHANGE_WAIT).await?;
            if newer != record {
                show_change(&newer, &view(&newer), json)?;
            }
            record = newer;
        }
        if !json {
            output::raw(&format!("\n{}", with_args(&record).await?.page(&People::at_output())))?;
        }
    } else if json {
        output::json(&with_args(&record).await?)?;
    } else {
        output::raw(&with_args(&record).await?.page(&People::at_output()))?;
    }
    let queue = record.queue.as_deref().filter(|_| !record.state.is_final());
    if let Some(queue) = queue.and_then(|queue| QueueName::parse(queue).ok())
        && let Some(reason) = app.client().waiting_reason(&record.id, &queue).await?
    {
        output::note(&format!(
            "machinist: the workers of queue {queue} cannot read a message that claims to be this task, and it waits: {}",
            visible::one_line(&reason)
        ));
    }
    if waits_past_its_time(&record, app.clock().now()) {
        delays::note(&app).await;
    }
    if is_quiet(&record, app.clock().now()) {
        note_if_lost(&app, &record).await;
    }
    app.broker().close().await;
    Ok(Code::of(record.state))
}

/// Returns whether nothing has happened for long to a task that has not ended.
fn is_quiet(record: &Record, now: Timestamp) -> bool {
    let last = record.eta.max(record.started_at).max(record.received_at).max(record.sent_at);
    !record.state.is_final() && !record.mirrored && last.is_some_and(|last| now.since(last) >= QUIET)
}

/// Prints a note if nothing is left that continues the task, or perhaps nothing.
async fn note_if_lost(app: &App, record: &Record) {
    match app.client().why(&record.id).await {
        Ok(why) if matches!(why.reason, WhyReason::Stranded | WhyReason::WorkerGone) => {
            let (sentence, advice) = (visible::one_line(&why.sentence), visible::one_line(&why.advice));
            output::note(&format!("machinist: {sentence}; {advice}"));
        }
        Ok(_) => {}
        Err(error) => {
            let error = chain(&error);
            output::note(&format!(
                "machinist: whether something continues it is not known: {}",
                visible::one_line(&error)
            ));
        }
    }
}

/// Returns whether no worker has received it although its time has come. The delay queues of the broker may hold it up.
fn waits_past_its_time(record: &Record, now: Timestamp) -> bool {
    matches!(record.state, TaskState::Pending | TaskState::Retry)
        && record.parked.is_none()
        && record.eta.is_some_and(|eta| eta <= now)
}

/// Prints a change in one line; in JSON one object per line.
fn show_change(record: &Record, view: &TaskView, json: bool) -> Result<(), CliError> {
    if json {
        return output::json(view);
    }
    let people = People::at_output();
    output::raw(&format!("{}  {}\n", people.time(&latest(record)), view.line(&people)))
}

/// Returns the newest instant of a record: that of its last change.
fn latest(record: &Record) -> String {
    let instants = [record.sent_at, record.received_at, record.started_at, record.ended_at];
    let of_history = record.history.last().map(|attempt| attempt.ended_at);
    let of_progress = record.progress.as_ref().map(|progress| progress.at);
    let of_parking = record.parked.as_ref().map(|parked| parked.since);
    instants
        .into_iter()
        .chain([of_history, of_progress, of_parking])
        .flatten()
        .max()
        .map_or_else(|| "-".to_owned(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use machinist::{
        TaskId,
        record::{Facts, fold},
    };

    use super::*;

    #[test]
    fn only_a_task_to_which_nothing_has_happened_for_ten_minutes_is_quiet() {
        let sent = Timestamp::from_micros(1_700_000_000_000_000);
        let after = |seconds| sent.plus(Duration::from_secs(seconds));
        let mut facts = Facts::new();
        facts.put("sent", serde_json::to_vec(&sent).unwrap());
        let mut record = fold(&TaskId::parse("t").unwrap(), &facts).unwrap();
        assert!(!is_quiet(&record, after(599)) && is_quiet(&record, after(600)));
        (record.state, record.started_at) = (TaskState::Started, Some(after(60)));
        assert!(!is_quiet(&record, after(600)) && is_quiet(&record, after(660)));
        record.state = TaskState::Success;
        assert!(!is_quiet(&record, after(3600)));
    }
}
