//! `machinist limits`: lists the limits of tasks and queues, and sets or resets one for all workers.

use machinist::{
    App, LimitInfo, QueueName,
    broker::QueueDepth,
    limit::{Limit, LimitKey, LimitTarget},
    nearest,
    settings::{Setting, Settings},
};
use serde::Serialize;

use super::{connect, connect_reader};
use crate::{
    args::{LimitKeyArgs, LimitsCommand},
    exit::{CliError, Code},
    output,
};

/// The maximum depth of a queue, which the senders with this configuration keep.
#[derive(Serialize)]
struct DepthLimit {
    target: String,
    max_depth: u64,
    waiting: Option<u64>,
    source: String,
}

/// A row of the list.
#[derive(Serialize)]
#[serde(untagged)]
enum ListedLimit {
    Limit(Box<LimitInfo>),
    Depth(DepthLimit),
}

/// A limit, with the tasks that run under it.
#[derive(Serialize)]
struct ShownLimit {
    #[serde(flatten)]
    limit: LimitInfo,
    tasks: Vec<String>,
}

pub(super) async fn run(command: LimitsCommand, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match command {
        LimitsCommand::List => {
            let app = connect_reader(settings).await?;
            let limits = app.client().limits().await?;
            let differs = limits.iter().any(|limit| limit.differs);
            let depths = depth_limits(&app, settings).await?.into_iter().map(ListedLimit::Depth);
            let all: Vec<_> = limits.into_iter().map(listed).chain(depths).collect();
            if json {
                output::json(&all)?
            } else {
                print(&all)?
            }
            if differs {
                output::note(
                    "machinist: workers have different limits for one target: each counts by its own numbers; make them \
                     the same, or set one live (`machinist limits set`)",
                );
            }
            app.broker().close().await;
        }
        LimitsCommand::Show(LimitKeyArgs { target, key }) => {
            let app = connect_reader(settings).await?;
            let client = app.client();
            let limits = client.limit(&target, key.as_deref()).await?;
            let tasks = client.runs_under_limit(&target, key.as_deref()).await?;
            let tasks: Vec<_> = tasks.iter().map(ToString::to_string).collect();
            app.broker().close().await;
            if limits.is_empty() {
                return Err(CliError::new(
                    Code::Usage,
                    format!("no live worker has a limit of {target}, and none is set"),
                )
                .remedy("`machinist limits list` lists those in force"));
            }
            if json {
                let shown = |limit| ShownLimit { limit, tasks: tasks.clone() };
                output::json(&limits.into_iter().map(shown).collect::<Vec<_>>())?;
            } else {
                print(&limits.into_iter().map(listed).collect::<Vec<_>>())?;
                tasks.iter().try_for_each(|task| output::line(&format!("running: {task}")))?;
            }
        }
        LimitsCommand::Set { target, options } => {
            let limit = limit_of(&options)?;
            // It is signed.
            let app = connect(settings).await?;
            let before = app.client().limit(&target, None).await?;
            app.client().set_limit(&target, &limit).await?;
            app.broker().close().await;
            say(json, &target, &serde_json::json!({ "limit": limit }), &format!("{target}: {limit}"))?;
            if limit.is_paused() {
                output::note("machinist: a limit of zero pauses these tasks until it is reset or raised");
            }
            if let Some(key) = key_of(&before).filter(|_| limit.limit_key().is_none()) {
                output::note(&format!(
                    "machinist: the limit of {target} had limit_key={key}; without it, all these tasks count together: add it \
                     to keep their keys apart"
                ));
            }
        }
        LimitsCommand::Reset(LimitKeyArgs { target, key }) => {
            // The tasks that wait are signed again.
            let app = connect(settings).await?;
            let client = app.client();
            let before = client.limit(&target, None).await?;
            let known = if before.is_empty() { client.limits().await? } else { Vec::new() };
            let released = client.reset_limit(&target, key.as_deref()).await?;
            app.broker().close().await;
            let text = format!("{target}: tasks that waited and run now: {released}");
            say(json, &target, &serde_json::json!({ "released": released }), &text)?;
            if before.is_empty() {
                note_unknown(&target, &known);
            } else if key_of(&before).is_some() && key.is_none() {
                output::note(&format!(
                    "machinist: the limit of {target} has keys; with --key KEY, the tasks that wait for that key are released"
                ));
            }
        }
    }
    Ok(Code::Success)
}

/// Reads the options of a limit.
fn limit_of(options: &[String]) -> Result<Limit, CliError> {
    let wrong = |text: String| CliError::new(Code::Usage, text);
    let mut limit = Limit::new();
    for option in options {
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| wrong(format!("{option:?} is no KEY=VALUE; write rate=5/s")))?;
        limit.set(name, value).map_err(wrong)?;
    }
    limit.check().map_err(wrong)?;
    Ok(limit)
}

/// Returns the template of the keys of a limit, if one of its definitions has one.
fn key_of(definitions: &[LimitInfo]) -> Option<&LimitKey> {
    definitions.iter().find_map(|definition| definition.limit.limit_key())
}

/// Notes a target that has no limit. Tasks may wait for one that a worker had, so it is reset.
fn note_unknown(target: &LimitTarget, known: &[LimitInfo]) {
    let meant = nearest(&target.to_string(), known.iter().map(|limit| &*limit.target))
        .map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
    output::note(&format!("machinist: no live worker has a limit of {target}, and none was set{meant}"));
}

fn say(json: bool, target: &LimitTarget, more: &serde_json::Value, text: &str) -> Result<(), CliError> {
    if !json {
        return output::line(text);
    }
    let mut answer = more.clone();
    answer["target"] = target.to_string().into();
    output::json(&answer)
}

fn listed(limit: LimitInfo) -> ListedLimit {
    ListedLimit::Limit(Box::new(limit))
}

/// Returns the maximum depths of this configuration, with what waits now.
async fn depth_limits(app: &App, settings: &Settings) -> Result<Vec<DepthLimit>, CliError> {
    let queues: Vec<_> = settings.max_depths.keys().cloned().collect();
    if queues.is_empty() {
        return Ok(Vec::new());
    }
    let depths = app.broker().depth(&queues).await?;
    let row = |(depth, (queue, most)): (QueueDepth, (&QueueName, &Setting<u64>))| DepthLimit {
        target: LimitTarget::Queue(queue.clone()).to_string(),
        max_depth: most.value,
        waiting: depth.ready,
        source: most.origin.to_string(),
    };
    Ok(depths.into_iter().zip(&settings.max_depths).map(row).collect())
}

fn print(limits: &[ListedLimit]) -> Result<(), CliError> {
    fn shown(value: Option<impl ToString>) -> String {
        value.map_or_else(|| "-".to_owned(), |value| value.to_string())
    }
    let row = |limit: &ListedLimit| match limit {
        ListedLimit::Limit(limit) => vec![
            limit.target.clone(),
            limit.limit.to_string(),
            shown(limit.running),
            shown(limit.waiting),
            shown(limit.next_at),
            limit.source.clone(),
        ],
        ListedLimit::Depth(depth) => vec![
            depth.target.clone(),
            format!("max_depth={}", depth.max_depth),
            shown(None::<u64>),
            shown(depth.waiting),
            shown(None::<u64>),
            depth.source.clone(),
        ],
    };
    output::table(&["target", "limit", "running", "waiting", "next", "source"], limits.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_limit_are_read_and_wrong_ones_are_told() {
        let limit = |text: &str| limit_of(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(limit("rate=5/s burst=10").unwrap().to_string(), "rate=5/s burst=10");
        for wrong in ["rate", "rate=x", "speed=1", "burst=1"] {
            assert_eq!(limit(wrong).unwrap_err().code, Code::Usage, "{wrong}");
        }
    }
}
