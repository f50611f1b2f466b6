//! `machinist send --flow`: sends a workflow that a file describes, and with `--wait` waits for its end.

use std::path::Path;

use machinist::{ResultError, TaskId, Workflow, settings::Settings, view::WorkflowView};
use serde::Serialize;
use tokio::time::Instant;

use super::{connect, workflow};
use crate::{
    args::{ExpiryArg, SendArgs},
    exit::{CliError, Code},
    flow_file, output,
    workflow_view::WorkflowText,
};

#[derive(Serialize)]
struct SendFlowOutput<'a> {
    id: &'a str,
    workflow_name: Option<&'a str>,
}

pub(super) async fn run(
    args: SendArgs,
    file: &Path,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    refuse_what_does_not_fit(&args)?;
    // Before any connection, so that a wrong file is reported at once.
    let workflow = with_options(flow_file::read(file, settings)?, &args)?;
    let root = workflow.id().clone();
    let name = workflow.shown_name().map(str::to_owned);
    let app = connect(settings).await?;
    let client = app.client();
    let result = match args.wait_for_room {
        Some(longest) => client.send_when_room(workflow, longest).await?,
        None => client.send(workflow).await?,
    };
    let code = match args.wait {
        None => {
            if json {
                output::json(&SendFlowOutput { id: root.as_str(), workflow_name: name.as_deref() })?;
            } else {
                output::line(root.as_str())?;
            }
            Code::Success
        }
        Some(limit) => {
            if !json {
                output::line(root.as_str())?;
            }
            let deadline = Instant::now() + limit;
            match result.wait_record(deadline.saturating_duration_since(Instant::now())).await {
                Ok(_) | Err(ResultError::Timeout { .. }) => {}
                Err(error) => {
                    // The workflow runs: its id must not be lost.
                    if json {
                        let output = SendFlowOutput { id: root.as_str(), workflow_name: name.as_deref() };
                        output::json(&output)?;
                    }
                    return Err(error.into());
                }
            }
            show_outcome(&client, &root, deadline, json).await?
        }
    };
    app.broker().close().await;
    Ok(code)
}

async fn show_outcome(
    client: &machinist::Client,
    root: &TaskId,
    deadline: Instant,
    json: bool,
) -> Result<Code, CliError> {
    let status = loop {
        let status = workflow::read(client, root).await?;
        // The last step ends at the first failure, and others go on.
        let left = deadline.saturating_duration_since(Instant::now());
        if status.state.is_final() || left.is_zero() {
            break status;
        }
        tokio::time::sleep(workflow::WATCH_INTERVAL.min(left)).await;
    };
    let last = WorkflowView::last_results(client, &status).await?;
    let view = WorkflowView::new(&status, last.clone());
    if json {
        output::json(&view)?;
    } else {
        let outcome = view.outcome(&last);
        if !outcome.is_empty() {
            output::line(&outcome)?;
        }
    }
    Ok(Code::of(view.state))
}

/// Refuses options of a single task.
fn refuse_what_does_not_fit(args: &SendArgs) -> Result<(), CliError> {
    if let Some(name) = &args.name {
        let text = format!("task {name:?} does not go with --flow, which sends the tasks of a file");
        return Err(CliError::new(Code::Usage, text).remedy("leave it out, or leave --flow out"));
    }
    let given = [
        ("--arg", !args.options.named.is_empty()),
        ("--queue", args.options.queue.is_some()),
        ("--requires", !args.options.requires.is_empty()),
        ("--retries", args.options.retries.is_some()),
        ("--backoff", args.options.backoff.is_some()),
        ("--timeout", args.options.timeout.is_some()),
        ("--soft-timeout", args.options.soft_timeout.is_some()),
        ("--retry-for", args.options.retry_for.is_some()),
        ("--retry-timeouts", args.options.retry_timeouts),
        ("--label", !args.options.labels.is_empty()),
        ("--priority", args.options.priority.is_some()),
        ("--limit-key", args.options.limit_key.is_some()),
        ("--fair-key", args.options.fair_key.is_some()),
        ("--limit-cost", args.options.limit_cost.is_some()),
        ("--require-worker", args.options.require_worker),
        ("--count", args.count > 1),
    ];
    let misfit = given.into_iter().find(|(_, given)| *given).map(|(option, _)| option);
    misfit.map_or(Ok(()), |option| {
        Err(CliError::new(Code::Usage, format!("{option} is about one task and does not go with --flow"))
            .remedy("write it under [steps.NAME] in the file"))
    })
}

fn with_options(mut workflow: Workflow, args: &SendArgs) -> Result<Workflow, CliError> {
    if let Some(id) = &args.id {
        workflow = workflow.with_id(id.clone());
    }
    if let Some(countdown) = args.countdown {
        workflow = workflow.countdown(countdown);
    }
    if let Some(eta) = args.eta {
        workflow = workflow.eta(eta);
    }
    match args.options.expires {
        Some(ExpiryArg::In(duration)) => workflow = workflow.expires_in(duration),
        Some(ExpiryArg::At(instant)) => workflow = workflow.expires_at(instant),
        None => {}
    }
    Ok(workflow)
}
