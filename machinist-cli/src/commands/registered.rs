//! `machinist registered`: lists the task names that live workers know, and disables or enables one for all workers.

use machinist::{RegisteredName, settings::Settings};
use serde::Serialize;

use super::connect_reader;
use crate::{
    args::{RegisteredArgs, RegisteredCommand},
    exit::{CliError, Code},
    output,
};

#[derive(Serialize)]
struct RegisteredRow {
    /// Workers do not tell the arguments of their tasks yet.
    args: Option<Vec<String>>,
    results: Option<Vec<String>>,
    #[serde(flatten)]
    task: RegisteredName,
}

pub(super) async fn run(args: RegisteredArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match args.command {
        None => {
            let app = connect_reader(settings).await?;
            let tasks = app.client().registered_tasks().await?;
            if json {
                let row = |task| RegisteredRow { args: None, results: None, task };
                output::json(&tasks.into_iter().map(row).collect::<Vec<_>>())?;
            } else {
                let list = |names: std::collections::BTreeSet<String>| Vec::from_iter(names).join(", ");
                let row = |task: RegisteredName| {
                    let enabled = if task.enabled { "yes" } else { "no" }.to_owned();
                    vec![task.name, enabled, list(task.queues), list(task.workers)]
                };
                output::table(&["task", "enabled", "queues", "workers"], tasks.into_iter().map(row))?;
            }
            app.broker().close().await;
        }
        Some(RegisteredCommand::Disable { name }) => {
            let app = connect_reader(settings).await?;
            app.client().disable_task(&name).await?;
            say(json, &serde_json::json!({ "name": name.as_str(), "enabled": false }), "its tasks wait")?;
            app.broker().close().await;
        }
        Some(RegisteredCommand::Enable { name }) => {
            // The tasks that wait are signed again.
            let app = super::connect(settings).await?;
            let released = app.client().enable_task(&name).await?;
            let answer = serde_json::json!({ "name": name.as_str(), "enabled": true, "released": released });
            say(json, &answer, &format!("tasks that waited and run now: {released}"))?;
            app.broker().close().await;
        }
    }
    Ok(Code::Success)
}

fn say(json: bool, answer: &serde_json::Value, text: &str) -> Result<(), CliError> {
    if json { output::json(answer) } else { output::line(text) }
}
