//! `machinist revoke`: cancels a task or a workflow.

use machinist::{Revoked, record::TaskState, settings::Settings};
use serde::Serialize;

use super::{
    bulk::{self, BulkChange},
    connect,
};
use crate::{
    args::RevokeArgs,
    exit::{CliError, Code},
    output,
};

#[derive(Serialize)]
struct RevokeWorkflowOutput<'a> {
    id: &'a str,
    /// Number of tasks that have ended by it.
    ended: u32,
    /// Number of running tasks that were asked to end.
    asked: u32,
}

#[derive(Serialize)]
struct RevokeOutput<'a> {
    id: &'a str,
    /// `ended`: it will not run; `asked`: it runs, and was asked to end; `already`: it had ended.
    revoked: &'static str,
    /// State of the task at the time of the request.
    state: TaskState,
}

/// Returns the answer to a revocation as a word, the state of the task then, and a sentence.
pub(super) fn words(answer: &Revoked, terminate: bool) -> (&'static str, TaskState, String) {
    match answer {
        Revoked::Ended => ("ended", TaskState::Failure, "revoked: it will not run".to_owned()),
        Revoked::Asked if terminate => ("asked", TaskState::Started, "it runs, and is cut off".to_owned()),
        Revoked::Asked => ("asked", TaskState::Started, "it runs, and was asked to end".to_owned()),
        Revoked::Already(state) => ("already", *state, format!("it had ended already: {state}")),
    }
}

/// Returns a sentence about the revocation of a workflow.
pub(super) fn workflow_text(ended: u32, asked: u32) -> String {
    format!(
        "revoked: nothing more of it starts; tasks that ended: {ended}; running tasks asked to end: {asked}"
    )
}

pub(super) async fn run(args: &RevokeArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let Some(id) = &args.id else {
        return bulk::run(BulkChange::Revoke { terminate: args.terminate }, &args.bulk, settings, json).await;
    };
    let app = connect(settings).await?;
    let client = app.client();
    if client.is_workflow(id).await? {
        if args.terminate {
            let text = format!("--terminate is for single tasks, and {} is a workflow", id);
            let remedy = "revoke the workflow without it; `machinist status` names its running tasks";
            return Err(CliError::new(Code::Usage, text).remedy(remedy));
        }
        let (ended, asked) = client.revoke_workflow(id).await?;
        if json {
            output::json(&RevokeWorkflowOutput { id: id.as_str(), ended, asked })?;
        } else {
            output::line(&workflow_text(ended, asked))?;
        }
        app.flush_events().await;
        app.broker().close().await;
        return Ok(Code::Success);
    }
    let answer = if args.terminate { client.terminate(id).await? } else { client.revoke(id).await? };
    let (revoked, state, text) = words(&answer, args.terminate);
    if json {
        output::json(&RevokeOutput { id: id.as_str(), revoked, state })?;
    } else {
        output::line(&text)?;
    }
    app.flush_events().await;
    app.broker().close().await;
    Ok(Code::Success)
}
