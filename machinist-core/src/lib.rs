//! The words, decisions, worker and client of machinist.
//!
//! This crate knows no network: brokers and backends are behind two seams, [`broker`] and [`backend`].

pub mod admission;
mod affinity;
mod app;
pub mod args;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod builtin;
mod client;
mod consequence;
mod context;
mod context_builder;
mod continue_with;
mod control;
mod dead_letters;
mod definition;
mod delay;
mod duration;
mod ended;
pub mod error;
pub mod event;
mod event_reader;
pub mod event_stream;
pub mod extract;
mod failures;
mod fair_queues;
mod fleet;
mod flow;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod handler;
mod history;
mod history_reader;
mod instant;
mod known_args;
mod left_out;
pub mod limit;
mod listed_tasks;
mod live_limits;
mod log_lines;
mod log_reader;
mod log_scope;
mod middleware;
mod mirror;
mod mirrored_record;
mod nearest;
#[cfg(test)]
mod numbered;
mod panics;
mod parking;
mod peek;
pub mod periodic;
mod prepared_signature;
mod priority_queues;
mod purge;
mod queue_age;
mod queue_depths;
mod queue_details;
mod queue_list;
mod receivers;
pub mod record;
mod refused;
mod result;
mod retry;
mod rfc3339;
mod security;
mod send_buffer;
mod sent_name;
pub mod sign;
mod signature;
pub mod slot;
mod tag;
mod task;
mod task_error;
mod task_log;
mod task_search;
mod trace;
mod unique;
pub mod view;
mod why;
mod wire;
pub mod worker;
pub mod workflow;
pub mod workflow_status;

#[cfg(feature = "tls")]
pub use machinist_adapter::tls;
pub use machinist_adapter::{backend, broker, clock, diagnose, id, url_list};

pub use affinity::base_queue;
pub use app::{App, AppBuilder, AppError};
pub use args::{Arg, Json, Rest, Results};
pub use client::{BufferedSend, Client, PreparedSend};
pub use context::TaskContext;
pub use context_builder::TaskContextBuilder;
pub use continue_with::Continue;
pub use control::{ControlError, Revoked, Scheduled};
pub use dead_letters::{DeadFilter, DeadLetter, DeadLetterOutcome};
pub use duration::show_duration;
pub use error::{ResultError, SendError, TaskError};
pub use event::Observer;
pub use event_reader::{EventFilter, EventStream};
pub use extract::State;
pub use failures::{FailedTasks, FailureGroup, FailureGroups};
pub use fair_queues::FairShare;
pub use fleet::{
    FleetRoles, LeaderInfo, OrderError, OrderReport, OrderResult, RegisteredName, ShardInfo, WorkerFilter,
    WorkerInfo,
};
pub use history::{HistoryCount, HistoryMark, HistoryStep, Latencies, MarkError, QueueGauges, TaskHistory};
pub use history_reader::{History, HistoryPoint, HistorySelection};
pub use id::{QueueName, QueuePattern, TaskId, TaskName};
pub use instant::IntoInstant;
pub use known_args::KnownArgs;
pub use listed_tasks::{TaskFilter, TaskList, TaskPage};
pub use live_limits::LimitInfo;
#[cfg(feature = "task-log")]
pub use log_scope::TaskLogLayer;
pub use middleware::{Middleware, Next, PublishHook};
pub use mirror::{
    Followed, Mirror, MirroredOutcome, MirroredState, MirroredTask, MirroredTick, OwedMessage, PassingState,
    SentGroup, SentTask,
};
pub use nearest::nearest;
pub use parking::ParkedTask;
pub use peek::{PeekError, QueuePeek};
pub use purge::{PurgeMode, PurgeReport};
pub use queue_details::QueueDetails;
pub use receivers::{NoReceiver, ReceiverError};
pub use refused::RefusedMessages;
pub use result::{AsyncResult, wait_all, wait_any};
pub use retry::{Backoff, RetryPolicy};
pub use security::{QueueOptions, WorkerAction, WorkerChange};
pub use send_buffer::{BufferCounts, BufferLimits};
pub use signature::Signature;
pub use task::TaskDef;
pub use task_log::{LogLevel, LogLine, TaskLog};
pub use task_search::{FoundTasks, TaskSearch};
pub use unique::{OnConflict, Unique, UniqueUntil};
pub use why::{Evidence, TimeSpent, Why, WhyClass, WhyReason};
pub use wire::{Codec, MaxSizes, NestedGroup, NestedTask, NestedTasks, Profile, ProfileError, TaskMessage};
pub use worker::{Worker, WorkerBuilder};
pub use workflow::Workflow;

/// The examples of `docs/time.md` are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/time.md")]
struct DocsOfTime;

/// The example of `docs/fleet.md` is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/fleet.md")]
struct DocsOfFleet;

/// The example of `docs/periodic.md` is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/periodic.md")]
struct DocsOfPeriodicTasks;

/// The example of `docs/events.md` is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/events.md")]
struct DocsOfEvents;

/// The examples of `docs/adapters.md` are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/adapters.md")]
struct DocsOfAdapters;

/// The example of `docs/options.md` is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/options.md")]
struct DocsOfOptions;

/// The examples of `docs/limits.md` are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/limits.md")]
struct DocsOfLimits;

/// The example of `docs/from-machinery.md` is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/from-machinery.md")]
struct DocsOfMachinery;
