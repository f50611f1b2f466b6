//! `machinist send --flow`: sends a workflow that a file describes, and with `--wait` waits for its end.

use std::path::Path;

use machinist::{
    ResultError, TaskId, Workflow,
    settings::{
        Settings,
        flow_file::{self, FlowFileError},
    },
    view::WorkflowView,
};
use serde::Serialize;
use tokio::time::Instant;

use super::{connect, workflow};
use crate::{
    args::{ExpiryArg, SendArgs, SendOptions},
    exit::{CliError, Code, chain},
    output,
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
    refuse_task(args.name.as_deref())?;
    refuse_options(&args.options, &[("--count", args.count > 1)])?;
    // Before any connection, so that a wrong file is reported at once.
    let workflow = with_options(read_file(file, settings)?, &args)?;
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

/// Reads a workflow from a file; `-` is JSON on standard input.
pub(super) fn read_file(path: &Path, settings: &Settings) -> Result<Workflow, CliError> {
    let read = if path == Path::new("-") {
        flow_file::read_json(std::io::stdin().lock(), "standard input", &settings.tasks)
    } else {
        flow_file::read(path, &settings.tasks)
    };
    read.map_err(|error| {
        let (option, remedy) = match &error {
            FlowFileError::Unreadable { .. } => {
                ("--flow: ", "it takes a TOML or JSON file, or - for JSON on standard input")
            }
            _ => ("", "nothing was sent; docs/workflows.md describes the file"),
        };
        CliError::new(Code::Usage, format!("{option}{}", chain(&error))).remedy(remedy)
    })
}

/// Refuses a task beside a workflow.
pub(super) fn refuse_task(name: Option<&str>) -> Result<(), CliError> {
    name.map_or(Ok(()), |name| {
        let text = format!("task {name:?} does not go with --flow, which sends the tasks of a file");
        Err(CliError::new(Code::Usage, text).remedy("leave it out, or leave --flow out"))
    })
}

/// Refuses options of a single task.
pub(super) fn refuse_options(options: &SendOptions, others: &[(&'static str, bool)]) -> Result<(), CliError> {
    let given = [
        ("--arg", !options.named.is_empty()),
        ("--queue", options.queue.is_some()),
        ("--requires", !options.requires.is_empty()),
        ("--retries", options.retries.is_some()),
        ("--backoff", options.backoff.is_some()),
        ("--timeout", options.timeout.is_some()),
        ("--soft-timeout", options.soft_timeout.is_some()),
        ("--retry-for", options.retry_for.is_some()),
        ("--retry-timeouts", options.retry_timeouts),
        ("--label", !options.labels.is_empty()),
        ("--priority", options.priority.is_some()),
        ("--limit-key", options.limit_key.is_some()),
        ("--fair-key", options.fair_key.is_some()),
        ("--limit-cost", options.limit_cost.is_some()),
        ("--require-worker", options.require_worker),
    ];
    let misfit = given.iter().chain(others).find(|(_, given)| *given).map(|(option, _)| *option);
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
