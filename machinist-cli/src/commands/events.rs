//! `machinist events`: prints the events of all processes as they come.

use std::time::Duration;

use machinist::{
    backend::BackendError,
    event_stream::{EventFilter, StreamedEvent},
    settings::Settings,
};

use super::connect_reader;
use crate::{
    args::EventsArgs,
    exit::{CliError, Code},
    output,
    people::People,
    visible,
};

/// Wait before the backend is asked again that has not answered.
const RETRY_WAIT: Duration = Duration::from_secs(2);

pub(super) async fn run(args: EventsArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let mut filter = EventFilter::new();
    (filter.task, filter.queue) = (args.task, args.queue);
    (filter.state, filter.worker, filter.since) = (args.state, args.worker, args.since);
    let mut events = app.client().events(filter);
    let people = People::at_output();
    let mut left = args.limit;
    while left != Some(0) {
        let event = match events.next().await {
            Ok(event) => event,
            // It may come back, and the events of the last minute with it.
            Err(error @ BackendError::Unavailable(_)) => {
                output::note(&format!("machinist: {}", CliError::from(error).text));
                tokio::time::sleep(RETRY_WAIT).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if json {
            output::json(&event)?;
        } else {
            output::line(&shown(&event, &people))?;
        }
        left = left.map(|left| left - 1);
    }
    app.broker().close().await;
    Ok(Code::Success)
}

/// Returns an event as one line for people.
fn shown(event: &StreamedEvent, people: &People) -> String {
    let text = |text: &Option<String>| visible::one_line(text.as_deref().unwrap_or("-"));
    let mut line = format!("{}  {:<14}", people.time(&event.at), visible::one_line(&event.event));
    if let Some(missing) = event.missing {
        return format!("{line}  {missing} or more events are missing: read the records");
    }
    for part in [&event.state, &event.task, &event.id, &event.queue, &event.worker] {
        line = format!("{line}  {}", text(part));
    }
    let more = [&event.kind, &event.reason, &event.progress, &event.error];
    for part in more.into_iter().flatten() {
        line = format!("{line}  {}", visible::one_line(part));
    }
    line
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn event(json: serde_json::Value) -> StreamedEvent {
        serde_json::from_value(json).expect("an event")
    }

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let people = People::plain(TimeZone::UTC);
        let failed = event(serde_json::json!({
            "at": "2026-11-28T21:02:11.093000Z", "event": "ended", "id": "1", "task": "mail", "queue": "q",
            "state": "FAILURE", "worker": "w", "kind": "error", "error": "a\nb\u{1b}[31m",
        }));
        let line = shown(&failed, &people);
        assert!(line.ends_with("FAILURE  mail  1  q  w  error  a\\nb\\u{1b}[31m"), "{line}");
        assert!(line.starts_with("2026-11-28 21:02:11.093 UTC  ended"), "{line}");
        let gap = event(serde_json::json!({"at": "2026-11-28T21:02:11Z", "event": "gap", "missing": 3}));
        assert!(
            shown(&gap, &people).ends_with("gap             3 or more events are missing: read the records")
        );
    }
}
