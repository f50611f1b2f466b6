//! `machinist failures`: groups failed tasks by cause.

use machinist::{FailureGroup, settings::Settings};
use serde::Serialize;

use super::connect_reader;
use crate::{
    args::FailuresArgs,
    exit::{CliError, Code},
    output,
    people::People,
};

#[derive(Serialize)]
struct GroupRow<'a> {
    fingerprint: &'a str,
    task: &'a str,
    kind: &'a str,
    error: &'a str,
    count: u64,
    last_hour: u64,
    last_day: u64,
    first_seen: String,
    last_seen: String,
    /// Id of the task that failed last.
    example: &'a str,
}

impl<'a> From<&'a FailureGroup> for GroupRow<'a> {
    fn from(group: &'a FailureGroup) -> Self {
        Self {
            fingerprint: &group.fingerprint,
            task: &group.task,
            kind: &group.kind,
            error: &group.error,
            count: group.count,
            last_hour: group.last_hour,
            last_day: group.last_day,
            first_seen: group.first_seen.to_string(),
            last_seen: group.last_seen.to_string(),
            example: group.example.as_str(),
        }
    }
}

pub(super) async fn run(args: &FailuresArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let since = args.since.map(|age| app.clock().now().minus(age));
    let found = app.client().failures(since).await?;
    let rows: Vec<GroupRow<'_>> = found.groups.iter().map(Into::into).collect();
    if json {
        output::json(&rows)?;
    } else {
        let people = People::at_output();
        let head = ["fingerprint", "task", "kind", "count", "1h", "24h", "last seen", "example", "error"];
        let cells = |row: GroupRow<'_>| {
            vec![
                row.fingerprint.to_owned(),
                row.task.to_owned(),
                row.kind.to_owned(),
                row.count.to_string(),
                row.last_hour.to_string(),
                row.last_day.to_string(),
                people.time(&row.last_seen),
                row.example.to_owned(),
                row.error.to_owned(),
            ]
        };
        output::table(&head, rows.into_iter().map(cells))?;
    }
    output::note(&format!("machinist: looked at {} of {} listed failures", found.looked_at, found.listed));
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
