//! `machinist scheduled`: which tasks wait for their time; with `--now` one of them does not wait any longer.

use std::time::Duration;

use machinist::settings::{Settings, show_duration};
use serde::Serialize;

use super::{connect, connect_reader};
use crate::{
    args::Scheduled,
    exit::{Code, Failure},
    output,
};

#[derive(Serialize)]
struct Row {
    id: String,
    name: Option<String>,
    queue: Option<String>,
    due: String,
    sent_at: Option<String>,
    expires_at: Option<String>,
}

pub(super) async fn run(what: Scheduled, settings: &Settings, json: bool) -> Result<Code, Failure> {
    // Whoever lets a task run now signs it; the list needs no key.
    let app = match what.now {
        Some(_) => connect(settings).await?,
        None => connect_reader(settings).await?,
    };
    let client = app.client();
    if let Some(id) = what.now {
        client.run_now(&id).await?;
        if json {
            output::json(&serde_json::json!({ "id": id.as_str() }))?;
        } else {
            output::line("it runs as soon as a worker is free")?;
        }
    } else {
        let now = app.clock().now();
        let waiting = client.scheduled(what.limit as usize).await?;
        if json {
            let instant = |at: Option<machinist::clock::Timestamp>| at.map(|at| at.to_string());
            let row = |task: machinist::Scheduled| Row {
                id: task.record.id.to_string(),
                name: task.record.name,
                queue: task.record.queue,
                due: task.due.to_string(),
                sent_at: instant(task.record.sent_at),
                expires_at: instant(task.record.expires_at),
            };
            output::json(&waiting.into_iter().map(row).collect::<Vec<_>>())?;
        } else {
            let row = |task: machinist::Scheduled| {
                let text = |name: Option<String>| name.unwrap_or_else(|| "-".to_owned());
                let left = Duration::from_secs(task.due.since(now).as_secs());
                vec![
                    task.record.id.to_string(),
                    text(task.record.name),
                    text(task.record.queue),
                    task.due.to_string(),
                    show_duration(left),
                ]
            };
            output::table(&["id", "name", "queue", "due", "in"], waiting.into_iter().map(row))?;
        }
    }
    app.broker().close().await;
    Ok(Code::Success)
}
