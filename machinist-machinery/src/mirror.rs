//! The states of tasks in the Redis of Go machinery, and the messages that follow them.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use machinist_backend_redis::RedisValues;
use machinist_core::{
    Followed, Mirror, MirroredOutcome, MirroredState, MirroredTask, MirroredTick, OwedMessage, PassingState,
    QueueName, SentGroup, SentTask, TaskId,
    backend::BackendError,
    broker::{HeaderValue, Message},
    clock::Timestamp,
    record::TaskState,
};
use serde_json::Value;

use crate::{
    callback::{after_chord, after_failure, after_success},
    signature::GoSignature,
    state::{
        GoState, GroupMeta, MemberState, NewState, decide_end_again, decide_state, pending, read_state,
        results_as_args,
    },
    tick::{TickDecision, TickLock},
};

/// Time for which Go keeps a state unless its configuration says otherwise.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(3600);
/// Key of the lock under which a chord is triggered: one for all of them.
const CHORD_LOCK: &str = "TriggerChordMutex";
/// Time for which that lock is held at most.
const LOCK_EXPIRY: Duration = Duration::from_secs(8);
/// Number of tries for that lock, and the pause between them.
const LOCK_TRIES: (u32, Duration) = (32, Duration::from_millis(100));
/// Number of tries to replace a record that somebody else replaces at the same time.
const REPLACE_TRIES: u32 = 16;

/// Shows the states of the tasks of a queue to clients and workers of Go machinery, in their Redis, and lets callbacks and
/// chords follow as a worker of Go does.
///
/// A chord that a worker of machinist triggers carries its id in the record of the group (`TriggeredBy`), in the same
/// write as `ChordTriggered`. A worker of machinist that takes over after a crash reads there that it owes the callback. A
/// guard, which only workers of machinist get, is in the broker before that write.
///
/// # Examples
/// ```no_run
/// use machinist_backend_redis::{RedisBackend, RedisOptions};
/// use machinist_core::{QueueName, QueueOptions, backend::BackendError};
/// use machinist_machinery::{MachineryMirror, MachineryProfile};
///
/// # async fn options() -> Result<QueueOptions, BackendError> {
/// let redis = RedisBackend::connect("redis://localhost/0", RedisOptions::default()).await?;
/// let mirror = MachineryMirror::new(redis.values(), "machinery_tasks");
/// # Ok(
/// QueueOptions::default()
///     .profile(MachineryProfile::new("machinery_tasks"))
///     .allow_unsigned(["add"])
///     .shared()
///     .mirror(mirror)
/// # )
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MachineryMirror {
    values: RedisValues,
    expiry: Duration,
    /// Routing key of callbacks that name none.
    routing_key: String,
    queues: BTreeMap<String, QueueName>,
    /// Base name of the program of Go with which ticks are shared.
    program: Option<String>,
}

impl MachineryMirror {
    /// Creates the mirror of a queue. Callbacks without a routing key get this one.
    pub fn new(values: RedisValues, routing_key: impl Into<String>) -> Self {
        Self {
            values,
            expiry: DEFAULT_EXPIRY,
            routing_key: routing_key.into(),
            queues: BTreeMap::new(),
            program: None,
        }
    }

    /// Names the queue of a routing key. Callbacks with a key that leads to no queue become dead letters.
    #[must_use]
    pub fn queue(mut self, routing_key: impl Into<String>, queue: QueueName) -> Self {
        self.queues.insert(routing_key.into(), queue);
        self
    }

    /// Sets the time for which a state is kept: Go's `results_expire_in`. Default: an hour.
    #[must_use]
    pub fn expiry(mut self, expiry: Duration) -> Self {
        self.expiry = expiry;
        self
    }

    /// Shares the ticks of periodic tasks with those of a program of Go that has this base name: each tick is taken by one of
    /// both, if they have the same name and the same cron expression.
    #[must_use]
    pub fn program(mut self, base_name: impl Into<String>) -> Self {
        self.program = Some(base_name.into());
        self
    }

    /// Takes a tick by its lock.
    async fn lock_tick(&self, program: &str, tick: &MirroredTick<'_>) -> Result<bool, BackendError> {
        let lock = TickLock::new(program, tick);
        for _ in 0..REPLACE_TRIES {
            let found = match self.values.read(&[lock.key.as_str()]).await {
                Ok(mut found) => found.pop().flatten(),
                // As in Go, and as for a text that is no time: nobody can take it. The next ticks must not wait for that.
                Err(BackendError::Record { reason }) => {
                    tracing::error!(
                        name = tick.name,
                        reason,
                        "the lock of a periodic task is no lock: nobody takes its ticks until that key is deleted"
                    );
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            match lock.decide(found.as_deref(), tick) {
                TickDecision::Ours => return Ok(true),
                TickDecision::Theirs => return Ok(false),
                TickDecision::Take { expiry } => {
                    let value = lock.value.as_bytes();
                    if self.values.replace(&lock.key, found.as_deref(), value, expiry).await? {
                        return Ok(true);
                    }
                }
            }
        }
        Err(BackendError::Unavailable(format!("others write the lock {} all the time", lock.key).into()))
    }

    /// Writes a state, unless what is there says that it must not be written.
    async fn put(&self, new: &NewState<'_>) -> Result<(), BackendError> {
        self.put_as(new, decide_state).await
    }

    /// Writes the record that is decided on from the one that is there.
    async fn put_as(
        &self,
        new: &NewState<'_>,
        decide: fn(Option<&[u8]>, &NewState<'_>) -> Option<String>,
    ) -> Result<(), BackendError> {
        for _ in 0..REPLACE_TRIES {
            let found = match self.values.read(&[new.id]).await {
                Ok(mut found) => found.pop().flatten(),
                Err(BackendError::Record { reason }) => {
                    tracing::error!(
                        id = new.id,
                        reason,
                        "the state of a task of Go was overwritten; it is written again"
                    );
                    let Some(record) = decide_state(None, new) else { return Ok(()) };
                    return self.values.write(new.id, record.as_bytes(), self.expiry).await;
                }
                Err(error) => return Err(error),
            };
            let Some(record) = decide(found.as_deref(), new) else { return Ok(()) };
            if self.values.replace(new.id, found.as_deref(), record.as_bytes(), self.expiry).await? {
                return Ok(());
            }
        }
        Err(BackendError::Unavailable(format!("others write the state of {} all the time", new.id).into()))
    }

    /// Shows that a task was sent, unless it is known already, and returns its message. `None` if a worker that died has
    /// sent it, and somebody has it already.
    async fn owed(
        &self,
        signature: &GoSignature,
        task: &MirroredTask,
    ) -> Result<Option<OwedMessage>, BackendError> {
        let at = task.at;
        let text = |name: &str| signature.text(name).unwrap_or_default();
        let (id, name, key) = (text("UUID"), text("Name"), text("RoutingKey"));
        let new = NewState { id: &id, name: &name, state: GoState::Pending, results: &[], error: "", at };
        if let Some(record) = decide_state(None, &new) {
            // One that is there was written before: by an earlier try of this, or by a run of the callback.
            let written = self.values.write_absent(&id, record.as_bytes(), self.expiry).await?;
            // A worker of Go would run it once more.
            if !written && task.repeated && self.has_begun(&id).await? {
                return Ok(None);
            }
        }
        let eta = signature.eta().ok().flatten();
        let queue = self.queues.get(&key).cloned().ok_or_else(|| {
            format!(
                "task {name} follows under the routing key {key:?}, which no queue here has; add \
                 [queues.NAME] with profile = \"machinery\" and this routing_key"
            )
        });
        Ok(Some(OwedMessage {
            message: message_of(signature),
            queue,
            delay: eta.map_or(Duration::ZERO, |eta| eta.since(at)),
        }))
    }

    /// Returns `true` if a worker has received this task.
    async fn has_begun(&self, id: &str) -> Result<bool, BackendError> {
        let state = self.read_one(id).await?;
        Ok(state.is_some_and(|state| state.state != TaskState::Pending))
    }

    /// Returns the callback of the chord of a member that has succeeded, if all of its members have and nobody else has
    /// triggered it.
    async fn chord(&self, member: &GoSignature, task: &MirroredTask) -> Result<Chord, BackendError> {
        let (id, group) = (task.id.as_str(), member.text("GroupUUID").unwrap_or_default());
        let Ok(Some(callback)) = member.chord_callback() else { return Ok(Chord::NotOwed) };
        if group.is_empty() {
            return Ok(Chord::NotOwed);
        }
        let count = member.number("GroupTaskCount").unwrap_or_default();
        let Some((_, meta)) = self.group(&group).await? else {
            tracing::error!(
                group,
                id,
                "the record of a group has expired, or another program has written over it: its chord is never triggered"
            );
            return Ok(Chord::NotOwed);
        };
        let owes = meta.is_owed_by(id, task.followed);
        if meta.triggered && !owes {
            return Ok(Chord::NotOwed);
        }
        let members: Vec<&str> = meta.members.iter().map(String::as_str).collect();
        let found = self.read_each(&members).await?;
        let states: Vec<MemberState> = found.iter().map(|found| MemberState::of(found.as_deref())).collect();
        let ended = states.iter().filter(|state| state.has_ended()).count();
        let (counted, all) = (i64::try_from(ended) == Ok(count), ended == members.len());
        let is_due = owes || (counted && all);
        if !is_due {
            let (members, running) = (members.len(), states.contains(&MemberState::Running));
            if counted || all {
                tracing::error!(
                    group,
                    count,
                    members,
                    "GroupTaskCount is not the number of members of the group: its chord is never triggered"
                );
            } else if !running {
                tracing::error!(
                    group,
                    id,
                    "the state of a member of a group is gone: its chord is triggered only if that member ends again"
                );
            }
            return Ok(Chord::NotOwed);
        }
        if !owes && !task.guarded {
            return Ok(Chord::NeedsGuard);
        }
        if !owes && !self.trigger(&group, task).await? {
            return Ok(Chord::NotOwed);
        }
        if states.contains(&MemberState::Failed) {
            if owes {
                tracing::error!(
                    group,
                    id,
                    "a member has failed since its chord was triggered: no callback follows"
                );
            }
            return Ok(Chord::NotOwed);
        }
        // All had succeeded when the chord was triggered. Since then, a worker of Go has got the message of one again.
        if states.contains(&MemberState::Running) {
            return Ok(Chord::Later);
        }
        let results = found.iter().map(|found| results_as_args(found.as_deref()?));
        let Some(results) = results.collect::<Option<Vec<_>>>() else {
            tracing::error!(group, id, "the state of a member of a group is gone: its chord has no results");
            return Ok(Chord::NotOwed);
        };
        match after_chord(callback, &group, &results.concat(), &self.routing_key) {
            Ok(callback) => Ok(Chord::Callback(callback)),
            Err(error) => {
                tracing::error!(group, id, error, "the callback of a chord is wrong");
                Ok(Chord::NotOwed)
            }
        }
    }

    /// Reads the state of a task.
    async fn read_one(&self, key: &str) -> Result<Option<MirroredState>, BackendError> {
        Ok(self.read_value(key).await?.and_then(|found| read_state(&found)))
    }

    /// Reads a value. One of another kind counts as none: asking again would not change it.
    async fn read_value(&self, key: &str) -> Result<Option<Vec<u8>>, BackendError> {
        match self.values.read(&[key]).await {
            Ok(mut found) => Ok(found.pop().flatten().map(Into::into)),
            Err(BackendError::Record { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads values. Those of another kind count as none, and the others are still answers.
    async fn read_each(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, BackendError> {
        match self.values.read(keys).await {
            Ok(found) => Ok(found.into_iter().map(|found| found.map(Into::into)).collect()),
            Err(BackendError::Record { .. }) => {
                let mut found = Vec::with_capacity(keys.len());
                for key in keys {
                    found.push(self.read_value(key).await?);
                }
                Ok(found)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the record of a group.
    async fn group(&self, group: &str) -> Result<Option<(Vec<u8>, GroupMeta)>, BackendError> {
        let found = self.read_value(group).await?;
        Ok(found.and_then(|found| {
            let meta = GroupMeta::parse(&found)?;
            Some((found, meta))
        }))
    }

    /// Sets the flag of a group under Go's lock. Returns `false` if somebody else has set it.
    async fn trigger(&self, group: &str, task: &MirroredTask) -> Result<bool, BackendError> {
        let token = TaskId::fresh().to_string();
        let mut tries = 0;
        while !self.lock_chords(token.as_bytes()).await? {
            tries += 1;
            if tries >= LOCK_TRIES.0 {
                let error = format!(
                    "the lock {CHORD_LOCK} is taken all the time; if no worker of Go runs, delete that key"
                );
                return Err(BackendError::Unavailable(error.into()));
            }
            tokio::time::sleep(LOCK_TRIES.1).await;
        }
        let set = self.set_triggered(group, task).await;
        // Unreleased, it expires.
        if let Err(error) = self.values.delete(CHORD_LOCK, token.as_bytes()).await {
            tracing::debug!(%error, "the lock of chords was not released");
        }
        set
    }

    /// Takes the lock of chords. Returns `false` if somebody else has it.
    async fn lock_chords(&self, token: &[u8]) -> Result<bool, BackendError> {
        if self.values.write_absent(CHORD_LOCK, token, LOCK_EXPIRY).await? {
            return Ok(true);
        }
        match self.values.read(&[CHORD_LOCK]).await {
            // A client of a cluster repeats a call whose reply was lost.
            Ok(found) => Ok(found.first().is_some_and(|found| found.as_deref() == Some(token))),
            // Nobody holds it or can take it, in Go either. The flag is replaced only if it is still as it was read.
            Err(BackendError::Record { reason }) => {
                tracing::error!(
                    reason,
                    "the lock of chords is no lock, and workers of Go trigger no chord until that key is deleted; going on \
                     without it"
                );
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    async fn set_triggered(&self, group: &str, task: &MirroredTask) -> Result<bool, BackendError> {
        let id = task.id.as_str();
        let Some((found, meta)) = self.group(group).await? else { return Ok(false) };
        if meta.triggered {
            return Ok(meta.is_owed_by(id, task.followed));
        }
        let record = meta.trigger(id, task.followed);
        // Not as found any more: another member was faster, whose lock had expired. What this very call has written before its
        // reply was lost counts as written.
        self.values.replace(group, Some(&found), record.as_bytes(), self.expiry).await
    }
}

#[async_trait]
impl Mirror for MachineryMirror {
    async fn show(&self, task: &MirroredTask, state: PassingState) {
        let state = match state {
            PassingState::Received => GoState::Received,
            _ => GoState::Started,
        };
        if let Err(error) = self.put(&new_state(task, state)).await {
            tracing::debug!(id = %task.id, %error, "a state is not shown to Go; the outcome will be");
        }
    }

    async fn follow(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError> {
        let parent = GoSignature::parse(&task.message.body).unwrap_or_else(|_| GoSignature::new());
        let mut callbacks = match outcome {
            MirroredOutcome::Success(results) => {
                self.put(&NewState { results, ..new_state(task, GoState::Success) }).await?;
                after_success(&parent, results, &self.routing_key)
            }
            MirroredOutcome::Failure(error) => {
                self.put(&NewState { error, ..new_state(task, GoState::Failure) }).await?;
                after_failure(&parent, error, &self.routing_key)
            }
            _ => {
                // Go sends the task again, which makes it PENDING.
                self.put(&new_state(task, GoState::Retry)).await?;
                self.put(&new_state(task, GoState::Pending)).await?;
                return Ok(Followed::Owes(Vec::new()));
            }
        }
        .unwrap_or_else(|error| {
            tracing::error!(id = %task.id, error, "the callbacks of a task are wrong, and none of them follows");
            Vec::new()
        });
        if matches!(outcome, MirroredOutcome::Success(_)) {
            match self.chord(&parent, task).await? {
                Chord::NotOwed => {}
                Chord::Callback(callback) => callbacks.push(callback),
                Chord::NeedsGuard => return Ok(Followed::NeedsGuard),
                Chord::Later => return Ok(Followed::Later),
            }
        }
        let mut owed = Vec::with_capacity(callbacks.len());
        for callback in &callbacks {
            owed.extend(self.owed(callback, task).await?);
        }
        Ok(Followed::Owes(owed))
    }

    async fn show_again(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<(), BackendError> {
        let end = match outcome {
            MirroredOutcome::Success(results) => NewState { results, ..new_state(task, GoState::Success) },
            MirroredOutcome::Failure(error) => NewState { error, ..new_state(task, GoState::Failure) },
            // It passes.
            _ => return Ok(()),
        };
        self.put_as(&end, decide_end_again).await
    }

    async fn owed_since(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError> {
        let nothing = Followed::Owes(Vec::new());
        let MirroredOutcome::Success(_) = outcome else { return Ok(nothing) };
        // While a worker of Go ran this member again, the others may have ended, and seen that it runs.
        let Ok(member) = GoSignature::parse(&task.message.body) else { return Ok(nothing) };
        match self.chord(&member, task).await? {
            Chord::NotOwed => Ok(nothing),
            Chord::Callback(callback) => {
                Ok(Followed::Owes(self.owed(&callback, task).await?.into_iter().collect()))
            }
            Chord::NeedsGuard => Ok(Followed::NeedsGuard),
            Chord::Later => Ok(Followed::Later),
        }
    }

    async fn sending(&self, tasks: &[SentTask], groups: &[SentGroup]) -> Result<(), BackendError> {
        // Go's time to live begins when a state is written: what is delayed must outlive its delay.
        let expiry = |at: Timestamp, due: Timestamp| self.expiry.saturating_add(due.since(at));
        let group = |group: &SentGroup| {
            let record = GroupMeta::new_record(group.id.as_str(), &group.members, group.at);
            (group.id.to_string(), record, expiry(group.at, group.due))
        };
        let task = |task: &SentTask| (task.id.to_string(), pending(task), expiry(task.at, task.due));
        self.values.write_all_absent(groups.iter().map(group).collect()).await?;
        self.values.write_all_absent(tasks.iter().map(task).collect()).await
    }

    async fn not_sent(&self, tasks: &[SentTask]) -> Result<(), BackendError> {
        for task in tasks {
            self.values.delete(task.id.as_str(), pending(task).as_bytes()).await?;
        }
        Ok(())
    }

    async fn take_tick(&self, tick: &MirroredTick<'_>) -> Result<bool, BackendError> {
        match &self.program {
            Some(program) => self.lock_tick(program, tick).await,
            None => Ok(true),
        }
    }

    async fn states(&self, ids: &[TaskId]) -> Result<Vec<Option<MirroredState>>, BackendError> {
        let keys: Vec<&str> = ids.iter().map(TaskId::as_str).collect();
        Ok(self.read_each(&keys).await?.into_iter().map(|found| read_state(&found?)).collect())
    }
}

/// Debt of a member that has succeeded to its chord.
enum Chord {
    /// Others have not ended, or somebody else has triggered it.
    NotOwed,
    Callback(GoSignature),
    /// The callback, once a guard is there: this member triggers the chord, and its message might go to a worker of Go.
    NeedsGuard,
    /// The callback, once a member that runs again has ended.
    Later,
}

fn new_state(task: &MirroredTask, state: GoState) -> NewState<'_> {
    NewState { id: task.id.as_str(), name: task.name.as_str(), state, results: &[], error: "", at: task.at }
}

/// Returns the message of a signature as Go publishes it.
fn message_of(signature: &GoSignature) -> Message {
    let mut message = Message { body: signature.to_text().into(), ..Message::default() };
    message.content_type = Some("application/json".to_owned());
    message.priority = Some(u8::try_from(signature.number("Priority").unwrap_or_default()).unwrap_or(0));
    for (name, value) in signature.headers().unwrap_or_default().iter() {
        // Go has no form for numbers there: they are in the body alone.
        let value = match serde_json::from_str(value.get()) {
            Ok(Value::String(text)) => HeaderValue::Text(text),
            Ok(Value::Bool(flag)) => HeaderValue::Bool(flag),
            _ => continue,
        };
        message.headers.insert(name.to_owned().into(), value);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::sample;

    #[test]
    fn headers_of_a_callback_are_those_of_its_message() {
        let sample = sample("messages", "headers");
        let body = sample["body_raw"].as_str().unwrap();
        let message = message_of(&GoSignature::parse(body.as_bytes()).unwrap());
        let headers = sample["headers"].as_object().unwrap();
        for (name, value) in headers {
            let expected = match value {
                Value::String(text) => Some(HeaderValue::from(text.as_str())),
                Value::Bool(flag) => Some(HeaderValue::Bool(*flag)),
                _ => None,
            };
            assert_eq!(message.headers.get(&**name), expected.as_ref(), "{name}");
        }
        assert!(headers.values().any(Value::is_boolean));
        assert_eq!(message.body, body.as_bytes());
    }
}
