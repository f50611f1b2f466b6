//! Pages, rendered here whole, so that they work without script. Each has one file.

mod chart;
mod dead;
mod failures;
mod fields;
mod graph;
mod layout;
mod login;
mod overview;
mod periodic;
mod queues;
mod send;
mod stages;
mod task;
mod tasks;
mod workers;
mod workflow;

pub(crate) use dead::{dead, find as find_letters};
pub(crate) use failures::failures;
pub(crate) use layout::{Frame, error_page};
pub(crate) use login::{log_in, log_out, login};
pub(crate) use overview::{live_part, overview};
pub(crate) use periodic::periodic;
pub(crate) use queues::{details as queue_details, queue, queues};
pub(crate) use send::{known as known_task, send};
pub(crate) use task::{task, view as task_view};
pub(crate) use tasks::{cursor, find as find_tasks, since, tasks};
pub(crate) use workers::{known as known_worker, worker, workers};
pub(crate) use workflow::{check as check_workflow, read as read_workflow, workflow};

use axum::response::Response;

use crate::{visit::Visit, web_error::WebError};

/// Answers with a page that does not exist.
pub(crate) async fn unknown_page(visit: Visit) -> Response {
    let error = WebError::unknown("there is no such page").remedy("the links at the top lead to all pages");
    error_page(&Frame::of(&visit), &error)
}
