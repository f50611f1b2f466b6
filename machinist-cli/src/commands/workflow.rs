//! Workflows, as `status` shows them.

use std::time::Duration;

use machinist::{
    App, Client, TaskId,
    view::{MemberView, StepView, WorkflowView},
    workflow_status::{TaskPlace, WorkflowStatus},
};
use serde::Serialize;

use crate::{
    args::StatusArgs,
    exit::{CliError, Code, unknown},
    output,
    workflow_view::{WorkflowText, member_cells, step_page},
};

/// Interval at which the records of a workflow are read by those who wait for its end.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Columns of the tree.
const TREE: [&str; 6] = ["step", "task", "state", "started", "duration", "note"];

/// Reads a workflow that is known to be one.
pub(super) async fn read(client: &Client, root: &TaskId) -> Result<WorkflowStatus, CliError> {
    client.workflow(root).await?.ok_or_else(|| unknown(root))
}

/// Returns the workflow that a task belongs to, or that it is the root of.
pub(super) async fn place_of(client: &Client, id: &TaskId) -> Result<Option<TaskPlace>, CliError> {
    Ok(client.workflows_of(std::slice::from_ref(id)).await?.into_iter().next().flatten())
}

/// Shows a workflow.
pub(super) async fn show(app: &App, args: &StatusArgs, json: bool) -> Result<Code, CliError> {
    let client = app.client();
    if let Some(step) = &args.members {
        return show_members(&client, args, step, json).await;
    }
    let mut view = view(&client, &args.id).await?;
    if args.watch {
        let mut lines = view.changes(None);
        let mut shown_json = None;
        loop {
            if json {
                // The whole in each line, whenever something has changed.
                let text = serde_json::to_value(&view).map_err(|e| CliError::from_error(Code::Fault, &e))?;
                if shown_json.as_ref() != Some(&text) {
                    output::json(&text)?;
                    shown_json = Some(text);
                }
            } else {
                lines.iter().try_for_each(|line| output::line(line))?;
            }
            if view.state.is_final() {
                break;
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
            let newer = self::view(&client, &args.id).await?;
            lines = newer.changes(Some(&view));
            view = newer;
        }
        if !json {
            output::line("")?;
        }
    }
    if json && !args.watch {
        output::json(&view)?;
    } else if !json {
        output::raw(&view.page())?;
        output::line("")?;
        output::table(&TREE, view.rows())?;
    }
    Ok(Code::of(view.state))
}

async fn view(client: &Client, root: &TaskId) -> Result<WorkflowView, CliError> {
    Ok(WorkflowView::read(client, root).await?)
}

async fn show_members(client: &Client, args: &StatusArgs, step: &str, json: bool) -> Result<Code, CliError> {
    let status = read(client, &args.id).await?;
    if !status.steps.iter().any(|known| known.name == step && known.members.is_some()) {
        let groups = status.steps.iter().filter(|known| known.members.is_some());
        let groups: Vec<&str> = groups.map(|group| group.name.as_str()).collect();
        let remedy = match groups.as_slice() {
            [] => "the workflow has no groups".to_owned(),
            groups => format!("the groups are {}", groups.join(", ")),
        };
        let text = format!("--members {step:?} is no group of workflow {}", args.id);
        return Err(CliError::new(Code::Usage, text).remedy(remedy));
    }
    let first = args.after.map_or(0, |after| after.saturating_add(1));
    let members = client.workflow_members(&args.id, step, first, args.limit as usize).await?;
    let rows: Vec<MemberView> = (first..)
        .zip(&members)
        .map(|(index, (id, record))| MemberView::new(index, id, record.as_ref()))
        .collect();
    if json {
        output::json(&rows)?;
    } else {
        output::table(&["member", "state", "ended", "outcome"], rows.iter().map(member_cells))?;
    }
    Ok(Code::Success)
}

/// Part of a workflow without a record: a group, or a task that is not sent yet.
#[derive(Serialize)]
struct PartView<'a> {
    workflow: &'a str,
    #[serde(flatten)]
    step: &'a StepView,
}

/// Shows a part of a workflow that has no record.
pub(super) async fn show_part(
    client: &Client,
    id: &TaskId,
    place: &TaskPlace,
    json: bool,
) -> Result<Code, CliError> {
    let status = read(client, &place.root).await?;
    let Some(step) = status.steps.iter().find(|step| step.id == *id) else { return Err(unknown(id)) };
    let view = StepView::from(step);
    if json {
        output::json(&PartView { workflow: place.root.as_str(), step: &view })?;
    } else {
        output::raw(&step_page(&view, place.root.as_str()))?;
    }
    Ok(Code::of(view.state))
}
