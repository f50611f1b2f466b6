//! The plan of a workflow, as its messages and records hold it: plain values.
//!
//! | module | content |
//! |---|---|
//! | `step` | steps, joins and policies: the part of a body that makes a task one of a workflow |
//! | `place` | ids of the tasks of a workflow |
//! | `outline` | the steps of a workflow as they are shown |
//!
//! Users describe workflows with [`workflow`](crate::workflow).

mod outline;
mod place;
mod step;

pub use step::Policy;

pub(crate) use outline::{Outline, OutlineStep};
pub(crate) use place::{StepPlace, is_step_name, spawned_id, spawned_root};
pub(crate) use step::{Catch, Flow, JoinPart, MAX_MEMBERS, MAX_STEPS, Membership, Replaced, Spawned, Step};
