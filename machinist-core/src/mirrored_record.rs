//! Records of tasks that another program may have run: what our facts say, and what its store says.
//!
//! Our facts go first. An end that a worker of machinist has recorded is signed; the other program signs nothing. So its
//! store is asked only about tasks of a queue that is shared with it, and only until our record has an end.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    error::ResultError,
    flow::{JoinPart, StepPlace},
    id::{QueueName, RecordId, TaskId},
    mirror::{Mirror, MirroredState},
    record::{
        EndVerdict, EndedMember, ErrorText, Facts, Failure, FailureKind, JoinDecision, Record, TaskState,
        decide_join, name, upstream_error,
    },
};

/// Number of records that are read at once.
const PAGE_SIZE: usize = 500;

/// Tasks on whose ends the result of a workflow depends that another program runs: nobody there records that a task never
/// runs because an earlier one has failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AwaitedTasks {
    /// Root of the workflow.
    pub(crate) root: TaskId,
    /// Steps whose failures keep the last task from running.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) before: Vec<JoinPart>,
    /// Steps whose results together are the result. Without any, it is that of the task itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) parts: Vec<JoinPart>,
}

impl AwaitedTasks {
    fn ids(&self, parts: &[JoinPart]) -> Vec<TaskId> {
        // Names lie in the scope of the root: any step there is as good as another.
        let scope = StepPlace::root(self.root.clone()).step("awaits");
        parts.iter().flat_map(|part| part.tasks(&scope)).collect()
    }
}

impl App {
    /// Returns what is known about a task: what its facts say, and what another program says that may have run it. `queue` is
    /// its queue, if that is known for certain.
    pub(crate) async fn full_record(
        &self,
        id: &TaskId,
        facts: Facts,
        queue: Option<&QueueName>,
    ) -> Result<Option<Record>, ResultError> {
        if !self.0.rules.has_mirrors() {
            return self.record_of(id, facts);
        }
        let awaited: Option<AwaitedTasks> = facts.read(name::AWAITED);
        let own = self.record_of(id, facts)?;
        let record = self.with_mirrored(vec![(id.clone(), own)], queue).await?.pop().flatten();
        match (awaited, record) {
            (Some(awaited), Some(record)) if !record.state.is_final() => {
                let before = self.records(&awaited.ids(&awaited.before)).await?;
                let parts = self.records(&awaited.ids(&awaited.parts)).await?;
                Ok(Some(decide_awaited(record, &awaited.parts, &before, &parts)))
            }
            (_, record) => Ok(record),
        }
    }

    /// Adds to each record, if the task has not ended in it, what another program says about the task.
    pub(crate) async fn with_mirrored(
        &self,
        own: Vec<(TaskId, Option<Record>)>,
        queue: Option<&QueueName>,
    ) -> Result<Vec<Option<Record>>, ResultError> {
        let (ids, mut records): (Vec<TaskId>, Vec<Option<Record>>) = own.into_iter().unzip();
        for (shared, mirror) in self.0.rules.mirrors() {
            let asked = |record: &Option<Record>| match (record, queue) {
                (Some(record), _) if record.state.is_final() => false,
                (_, Some(queue)) => self.is_shown_by(queue, mirror),
                (Some(Record { queue: Some(queue), .. }), None) => {
                    QueueName::parse(queue).is_ok_and(|queue| self.is_shown_by(&queue, mirror))
                }
                (_, None) => true,
            };
            let places: Vec<usize> = (0..ids.len()).filter(|at| asked(&records[*at])).collect();
            if places.is_empty() {
                continue;
            }
            let wanted: Vec<TaskId> = places.iter().map(|at| ids[*at].clone()).collect();
            for (at, theirs) in places.into_iter().zip(mirror.states(&wanted).await?) {
                if let Some(theirs) = theirs {
                    records[at] = Some(merged(&ids[at], records[at].take(), theirs, shared));
                }
            }
        }
        Ok(records)
    }

    fn is_shown_by(&self, queue: &QueueName, mirror: &Arc<dyn Mirror>) -> bool {
        self.0.rules.mirror(queue).is_some_and(|of_queue| Arc::ptr_eq(of_queue, mirror))
    }

    /// Reads records, with what another program says.
    async fn records(&self, ids: &[TaskId]) -> Result<Vec<(TaskId, Option<Record>)>, ResultError> {
        let mut records = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE_SIZE) {
            let names: Vec<RecordId> = page.iter().map(RecordId::from).collect();
            let mut own = Vec::with_capacity(page.len());
            for (id, facts) in page.iter().zip(self.0.backend.read(&names).await?) {
                own.push((id.clone(), self.record_of(id, facts)?));
            }
            records.extend(page.iter().cloned().zip(self.with_mirrored(own, None).await?));
        }
        Ok(records)
    }
}

/// Returns the record of a task with what another program says about it.
fn merged(id: &TaskId, own: Option<Record>, theirs: MirroredState, queue: &QueueName) -> Record {
    let begun = own.as_ref().is_some_and(|own| own.state != TaskState::Pending);
    if let Some(own) = own.as_ref().filter(|_| begun && !theirs.state.is_final()) {
        // A worker of ours has it, or had it last, and knows more.
        return own.clone();
    }
    let mut record = own.unwrap_or_else(|| Record::of(id.clone(), theirs.state));
    record.state = theirs.state;
    record.mirrored = true;
    record.name.get_or_insert(theirs.name);
    record.queue.get_or_insert_with(|| queue.to_string());
    record.sent_at = record.sent_at.or(theirs.sent_at);
    match theirs.state {
        TaskState::Success => (record.results, record.error) = (Some(theirs.results), None),
        TaskState::Failure => {
            record.kind = Some(FailureKind::Error);
            record.error = Some(ErrorText::new([theirs.error]));
        }
        _ => {}
    }
    record
}

/// Decides about the result of a workflow, from the records of the tasks that it depends on; `record` has not ended.
fn decide_awaited(
    mut record: Record,
    parts: &[JoinPart],
    before: &[(TaskId, Option<Record>)],
    members: &[(TaskId, Option<Record>)],
) -> Record {
    let ended = |(id, record): &(TaskId, Option<Record>)| ended_member(id, record.as_ref()?);
    let upstream = before.iter().filter_map(ended).find_map(|member| match member.verdict {
        EndVerdict::Failure(failure) => Some(upstream_error(&member.id, &failure)),
        EndVerdict::Success { .. } => None,
    });
    let ends = (0..).zip(members).filter_map(|(index, member)| Some((index, ended(member)?))).collect();
    let decision = match upstream {
        Some(upstream) => JoinDecision::Upstream(upstream),
        None if parts.is_empty() => JoinDecision::Undecided(Vec::new()),
        None => decide_join(parts, &ends),
    };
    match decision {
        JoinDecision::Run(results) => {
            (record.state, record.results) = (TaskState::Success, Some(crate::args::Results(results)));
        }
        JoinDecision::Upstream(error) => {
            (record.state, record.kind) = (TaskState::Failure, Some(FailureKind::Upstream));
            record.error = Some(ErrorText::new([error]));
        }
        JoinDecision::Undecided(_) => {
            let begun = |(_, record): &(TaskId, Option<Record>)| {
                record.as_ref().is_some_and(|record| record.state != TaskState::Pending)
            };
            if record.state == TaskState::Pending && before.iter().chain(members).any(begun) {
                record.state = TaskState::Started;
            }
        }
    }
    record.mirrored = true;
    record
}

/// Returns the end of a task; `None` if it has not ended.
fn ended_member(id: &TaskId, record: &Record) -> Option<EndedMember> {
    let verdict = match record.state {
        TaskState::Success => EndVerdict::Success { results: record.results.clone().unwrap_or_default() },
        TaskState::Failure => {
            let error = record.error.as_ref().map_or("", |error| error.message());
            EndVerdict::Failure(Failure::new(record.kind.unwrap_or(FailureKind::Error), error))
        }
        _ => return None,
    };
    Some(EndedMember { id: id.clone(), verdict })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        args::{Arg, Results},
        flow::Policy,
    };

    fn id(text: &str) -> TaskId {
        text.try_into().unwrap()
    }

    fn own(state: TaskState) -> Record {
        Record::of(id("t"), state)
    }

    fn theirs(state: TaskState) -> MirroredState {
        MirroredState {
            results: Results(vec![Arg::from_value(json!(7))]),
            error: "boom".to_owned(),
            ..MirroredState::new(state, "add")
        }
    }

    fn queue() -> QueueName {
        "q".try_into().unwrap()
    }

    #[test]
    fn the_other_program_says_what_our_record_does_not_know() {
        let seen =
            |own: Option<TaskState>, state| merged(&id("t"), own.map(self::own), theirs(state), &queue());
        let success = seen(Some(TaskState::Pending), TaskState::Success);
        assert_eq!(
            (success.state, success.results.unwrap().0[0].value.clone()),
            (TaskState::Success, json!(7))
        );
        assert!(success.mirrored);
        let failure = seen(None, TaskState::Failure);
        assert_eq!((failure.kind, failure.error.unwrap().message()), (Some(FailureKind::Error), "boom"));
        assert_eq!((failure.name.as_deref(), failure.queue.as_deref()), (Some("add"), Some("q")));
        assert_eq!(seen(Some(TaskState::Pending), TaskState::Started).state, TaskState::Started);
        // A worker of ours had it, and Go after it.
        assert_eq!(seen(Some(TaskState::Retry), TaskState::Success).state, TaskState::Success);
        let running = seen(Some(TaskState::Started), TaskState::Pending);
        assert!(running.state == TaskState::Started && !running.mirrored);
    }

    #[test]
    fn a_result_depends_on_the_tasks_before_it() {
        let ended = |name: &str, state| (id(name), Some(merged(&id(name), None, theirs(state), &queue())));
        let pending = || own(TaskState::Pending);
        let failed = decide_awaited(pending(), &[], &[ended("a", TaskState::Failure)], &[]);
        assert_eq!((failed.state, failed.kind), (TaskState::Failure, Some(FailureKind::Upstream)));
        assert_eq!(failed.error.unwrap().message(), "task a ended in FAILURE/error: boom");
        let begun = decide_awaited(pending(), &[], &[ended("a", TaskState::Success)], &[]);
        assert_eq!(begun.state, TaskState::Started);
        assert_eq!(decide_awaited(pending(), &[], &[(id("a"), None)], &[]).state, TaskState::Pending);

        let part = |step: &str, members| JoinPart {
            step: step.to_owned(),
            members,
            between: Vec::new(),
            last: None,
            policy: Policy::Fail,
            sources: Vec::new(),
        };
        let parts = [part("all", Some(2)), part("one", None)];
        let mut members =
            vec![ended("all.0", TaskState::Success), ended("all.1", TaskState::Success), (id("one"), None)];
        assert_eq!(decide_awaited(pending(), &parts, &[], &members).state, TaskState::Started);
        members[2] = ended("one", TaskState::Success);
        let results = decide_awaited(pending(), &parts, &[], &members).results.unwrap();
        let values: Vec<_> = results.0.into_iter().map(|arg| arg.value).collect();
        assert_eq!(values, [json!([7, 7]), json!(7)], "those of a group are one list");
        members[0] = ended("all.0", TaskState::Failure);
        assert_eq!(decide_awaited(pending(), &parts, &[], &members).kind, Some(FailureKind::Upstream));
    }

    #[test]
    fn the_ids_follow_from_the_root() {
        let part = |step: &str, members| JoinPart {
            step: step.to_owned(),
            members,
            between: Vec::new(),
            last: None,
            policy: Policy::Fail,
            sources: Vec::new(),
        };
        let awaited = AwaitedTasks {
            root: id("R"),
            before: vec![part("s0", None), part("many", Some(2))],
            parts: Vec::new(),
        };
        let ids: Vec<String> = awaited.ids(&awaited.before).iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["R.s0", "R.many.0", "R.many.1"]);
    }
}
