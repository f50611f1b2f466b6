//! Decisions of the delivery protocol: the state of a task, the start of a delivery, the consequence of an outcome.
//!
//! A record is a growing set of write-once facts; nothing in it is overwritten, and the state is a function of the
//! facts. Everything here is pure: no clock, no server, no random number. The worker asks for a decision, then acts on
//! it.
//!
//! | module | question | answer |
//! |---|---|---|
//! | `facts` | what can be written? | names and shapes |
//! | `fold` | what does a record say? | [`Record`], [`TaskState`] |
//! | `poison` | do processes die because of a task? | no, perhaps, yes |
//! | `start` | what may a delivery do? | a commit, or the meaning of its refusal |
//! | `claim` | does a run still hold its attempt? | a status, a renewal's action |
//! | `follow_up` | what does a recorded outcome demand? | a message to publish |
//! | `verdict` | what follows from an outcome? | a verdict, its commit, its follow-up |
//! | `revoke` | how can a task be prevented from running? | a commit, or the run to ask |
//! | `progress` | how far has a run come? | a commit |
//! | `continuation` | what follows an end in a workflow? | tasks to publish, tasks that never run, joins |
//! | `join` | may a step run that waits for others? | a decision, a commit |
//! | `missing` | why has a member not joined? | the records to ask, a decision |
//! | `park` | what does a delivery do that may not start? | a decision, a commit |
//! | `control` | what holds for all workers? | a commit |
//! | `session` | is a worker alive? | a commit, or a look at its record |
//! | `worker_name` | who holds a worker's name, and what do people want of it? | a commit |

mod claim;
mod continuation;
mod control;
mod dead_reason;
mod facts;
mod fold;
mod follow_up;
mod join;
mod kind;
mod missing;
#[cfg(test)]
mod model;
mod overdue;
mod park;
mod poison;
mod presence;
mod progress;
mod retention;
mod revoke;
mod session;
mod start;
#[cfg(test)]
mod tests;
mod turn;
mod verdict;
mod worker_name;

pub use facts::{ErrorText, FactName, Facts, Parked, Progress};
pub use fold::{Attempt, Record, TaskState, fold};
pub use kind::FailureKind;
pub use presence::{PresenceState, WorkerHealth};

pub(crate) use claim::{Claim, ClaimStatus, RenewalAction, fencing_token};
pub(crate) use continuation::{
    Child, Joining, after_failure, after_success, awaited_join, continued_by, continued_by_record,
    join_record, joinings, never_after, spawned_by,
};
pub(crate) use control::{
    Newest, Switch, control_record, keep_listed_runs, keep_note, listed_runs_record, newest, note_record,
    set_switch, switches,
};
pub(crate) use dead_reason::DeadReason;
pub(crate) use facts::{
    Counters, EncodedResults, End, EndVerdict, Failure, ReservedStart, ReservedStarts, json, name,
};
#[cfg(test)]
pub(crate) use fold::state_of;
pub(crate) use fold::{abandoned_start, newest_start, parked};
pub(crate) use follow_up::{FollowUp, failure_of, followed_since, recorded_follow_up};
pub(crate) use join::{
    EndedMember, JoinDecision, JoinedMember, decide_join, ended_members, extend_join, forget_join,
    gathered_fact, join, may_be_decided, upstream_error, waiting_callback,
};
pub(crate) use missing::{
    LostDecision, MemberSlot, MissingMember, decide_lost, has_published, is_replacement_under_way,
    member_slots, missing_member,
};
pub(crate) use overdue::{
    KEPT_FROM, OVERDUE_AFTER, WaitingAttempt, is_overtaken, overdue_attempt, waiting_attempt,
};
pub(crate) use park::{ParkDecision, decide_parking, keep_reserved, park, reserved_starts, unpark};
pub(crate) use poison::{Suspicion, suspicion};
pub(crate) use presence::{MAX_DESCRIBED_TASKS, OrderAnswer, WorkCounts, memory_to_show};
pub(crate) use progress::{add_progress, progress_commit};
pub(crate) use retention::{MAX_DELAY, UNFINISHED_TTL, retention};
pub(crate) use revoke::{
    NextAttempt, RevokeDecision, RevokeMode, decide_revoke, late_message, next_attempt, revoke_root,
    revoked_root,
};
pub(crate) use session::{
    ShownWork, WorkChange, close_session, is_alive, open_session, rename_session, renew_session, wake_session,
};
pub(crate) use start::{StartDecision, StartRequest, decide_start};
pub(crate) use turn::{end_turn, keep_turn, take_turn};
pub(crate) use verdict::{
    CommitRefusal, RunOutcome, Verdict, add_trace, decide, explain_refusal, failure_without_run,
    follow_up_of, outcome_commit,
};
pub(crate) use worker_name::{
    answer_of, answer_order, claim_name, give_lasting_order, give_order, holder_of, keep_name, name_record,
    numbered_name, orders, restore_wanted, withdraw_order,
};
