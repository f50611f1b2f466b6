//! List of ended tasks: each process lists the tasks that end in it, many at once, for those who search.
//!
//! [`Client::search_tasks`](crate::Client::search_tasks) reads it. A batch is a record with a row for each task, and a line in
//! an index. Failed and succeeded tasks have separate batches and bounds, so that many successes never push a failure out.
//! The list is best effort, and nothing derives state from it.
//!
//! # Why not a line for each task
//! An index of all tasks costs a write and a line for each, and a search has to read each record. A batch costs the same
//! for one task and for hundreds, and its rows say what most searches ask for.

mod list;
mod row;
mod scan;

pub(crate) use list::{EndedList, unlist_expired};
pub(crate) use row::EndedRow;
pub(crate) use scan::EndedScan;

use std::time::Duration;

/// Time for which rows are kept.
const LISTED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// Maximum time between the ends of the tasks of one batch.
const BATCH_SPAN: Duration = Duration::from_secs(10);
