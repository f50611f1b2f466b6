//! The JSON API: the fields of the commands, and actions that forms of the pages use too.

mod act;
mod live;
mod read;

pub(crate) use act::{
    drain_worker, pause_periodic, pause_queue, pause_worker, purge_letters, replay_letters, resume_periodic,
    resume_queue, resume_worker, retry_task, revoke_task, send_task, silence_group, trigger_periodic,
    unsilence_group,
};
pub(crate) use live::events;
pub(crate) use read::{
    failures, history, letters, members, openapi, overview, periodic, periodic_task, queue, queues,
    registered, task, task_log, task_why, tasks, unknown, worker, workers, workflow,
};
