//! `machinist tasks`: searches tasks that have ended, run or wait, and says how far it has looked.

use machinist::{
    FoundTasks, TaskFilter, TaskSearch, event_stream::PublishedEvents, record::Record, record::TaskState,
    settings::Settings, view::TaskView,
};

use super::{connect_reader, verifies};
use crate::{
    args::TasksArgs,
    exit::{CliError, Code},
    input, output,
    people::People,
};

pub(super) async fn run(args: TasksArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let labels = args.labels.iter().map(|text| input::label(text)).collect::<Result<Vec<_>, _>>();
    let labels = labels.map_err(|why| CliError::new(Code::Usage, why))?;
    let app = connect_reader(settings).await?;
    let verifies = verifies(settings)?;
    let now = app.clock().now();
    let mut filter = TaskFilter::new();
    filter.state = args.state;
    filter.name = args.name.as_ref().map(ToString::to_string);
    filter.queue = args.queue.as_ref().map(ToString::to_string);
    (filter.worker, filter.error) = (args.worker, args.error);
    filter.since = args.since.map(|age| now.minus(age));
    let mut search = TaskSearch::new(filter);
    search.labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    (search.after, search.limit) = (args.after, args.limit as usize);
    let found = app.client().search_tasks(&search).await?;
    if json {
        // Of a task whose record has expired, nothing proves what was listed.
        let proven = |record: &Record| verifies && (record.sent_at.is_some() || record.started_at.is_some());
        let view = |record: &Record| TaskView::from(record).verified(proven(record)).at(record, now);
        output::json(&found.records.iter().map(view).collect::<Vec<_>>())?;
    } else {
        let people = People::at_output();
        let head = ["id", "state", "name", "queue", "worker", "at", "error"];
        output::table(&head, found.records.iter().map(|record| cells(record, &people)))?;
    }
    note_bounds(&found, args.state, settings.events.value);
    app.broker().close().await;
    Ok(Code::Success)
}

fn cells(record: &Record, people: &People) -> Vec<String> {
    let text = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), Clone::clone);
    let at = match record.state {
        state if state.is_final() => record.ended_at,
        TaskState::Started => record.started_at,
        _ => record.eta.or(record.sent_at),
    };
    let error = record.error.as_ref().map(|error| error.message().to_owned());
    vec![
        record.id.to_string(),
        record.state.to_string(),
        text(record.name.as_ref()),
        text(record.queue.as_ref()),
        text(record.worker.as_ref()),
        at.map_or_else(|| "-".to_owned(), |at| people.time(&at.to_string())),
        error.or_else(|| record.locked.clone()).unwrap_or_default(),
    ]
}

/// Says how far the search has looked, and what it leaves out.
fn note_bounds(found: &FoundTasks, state: Option<TaskState>, events: PublishedEvents) {
    let FoundTasks { next, looked_at, listed, cut, unnamed, queued, .. } = found;
    output::note(&format!("machinist: looked at {looked_at} of {listed} listed tasks"));
    if let Some((at, id)) = next {
        output::note(&format!("machinist: go on with --after {at}/{id}"));
    }
    if *cut > 0 {
        output::note(&format!("machinist: {cut} ended tasks are no longer listed: too many have ended"));
    }
    if *unnamed > 0 {
        output::note(&format!("machinist: {unnamed} further tasks run, and are only counted"));
    }
    if let Some(queued) = queued {
        output::note(&format!("machinist: {queued} tasks wait in queues, and are only counted"));
    }
    if state.is_none_or(|state| state == TaskState::Success) && events != PublishedEvents::All {
        output::note(&format!(
            "machinist: tasks that succeed are listed by workers with events = \"all\"; here it is \"{events}\""
        ));
    }
}
