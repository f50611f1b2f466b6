//! `machinist registered`: lists the task names that live workers know, and disables or enables one for all workers.

use machinist::{
    Client, RegisteredName, WorkerAction, WorkerFilter, args::ArgInfo, nearest, settings::Settings,
};

use super::{connect, connect_reader, workers::cannot_order};
use crate::{
    args::{RegisteredArgs, RegisteredCommand},
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(args: RegisteredArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match args.command {
        None => {
            let app = connect_reader(settings).await?;
            let mut tasks = app.client().registered_tasks().await?;
            output::note_next(args.page.cut(&mut tasks, |task| task.name.clone()));
            if json {
                output::json(&tasks)?;
            } else {
                let list = |names: std::collections::BTreeSet<String>| Vec::from_iter(names).join(", ");
                let row = |task: RegisteredName| {
                    let enabled = if task.enabled { "yes" } else { "no" }.to_owned();
                    let arguments = arguments(&task);
                    vec![task.name, arguments, enabled, list(task.queues), list(task.workers)]
                };
                output::table(
                    &["task", "arguments", "enabled", "queues", "workers"],
                    tasks.into_iter().map(row),
                )?;
            }
            app.broker().close().await;
        }
        Some(RegisteredCommand::Disable { name }) => {
            // The question to the workers is signed.
            let app = connect(settings).await?;
            let client = app.client();
            client.disable_task(&name).await.map_err(cannot_order)?;
            let unaware = unaware(&client).await?;
            let answer =
                serde_json::json!({ "name": name.as_str(), "enabled": false, "unconfirmed": unaware });
            say(json, &answer, "its tasks wait")?;
            note_unknown(&client.registered_tasks().await?, name.as_str());
            if !unaware.is_empty() {
                output::note(&format!(
                    "machinist: these workers did not confirm it, and may start such tasks until their next renewal: {}",
                    unaware.join(", ")
                ));
            }
            app.broker().close().await;
        }
        Some(RegisteredCommand::Enable { name }) => {
            // The tasks that wait are signed again.
            let app = connect(settings).await?;
            let released = app.client().enable_task(&name).await.map_err(cannot_order)?;
            let answer = serde_json::json!({ "name": name.as_str(), "enabled": true, "released": released });
            say(json, &answer, &format!("tasks that waited and run now: {released}"))?;
            app.broker().close().await;
        }
    }
    Ok(Code::Success)
}

/// Returns the arguments and results of a task, like `src, width: int64 -> string`.
fn arguments(task: &RegisteredName) -> String {
    let text = |arg: &ArgInfo| match (&arg.name, &arg.kind) {
        (Some(name), Some(kind)) => format!("{name}: {kind}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "?".to_owned(),
    };
    let args = match &task.args {
        Some(args) => args.iter().map(text).collect::<Vec<_>>().join(", "),
        None => "any".to_owned(),
    };
    let results = task.results.as_ref().filter(|results| !results.is_empty());
    results.map_or_else(|| args.clone(), |results| format!("{args} -> {}", results.join(", ")))
}

/// Notes a name that no live worker knows. It may be that of a task to come, so it is disabled.
fn note_unknown(tasks: &[RegisteredName], name: &str) {
    let known = tasks.iter().filter(|task| !task.workers.is_empty()).map(|task| &*task.name);
    if known.clone().all(|known| known != name) {
        let meant = nearest(name, known).map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        output::note(&format!("machinist: no live worker knows the task {name}{meant}"));
    }
}

/// Returns the live workers that did not confirm that they have read what is disabled: a worker that answers has.
async fn unaware(client: &Client) -> Result<Vec<String>, CliError> {
    let workers = client.workers(&WorkerFilter::new()).await?;
    let (_, results) =
        client.order_workers(&workers, WorkerAction::Ping, false).await.map_err(cannot_order)?;
    Ok(results.into_iter().filter(|result| !result.done).map(|result| result.worker).collect())
}

fn say(json: bool, answer: &serde_json::Value, text: &str) -> Result<(), CliError> {
    if json { output::json(answer) } else { output::line(text) }
}
