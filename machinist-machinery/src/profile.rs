//! The wire profile: the translation between a message of Go machinery and a task.
//!
//! Everything that a task has no place for stays in the body: a retry is the body that came, with other numbers.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use machinist_core::{
    Backoff, NestedTask, Profile, ProfileError, QueueName, RetryPolicy, TaskId, TaskMessage, TaskName,
    broker::Message,
};

use crate::{
    json::{RawFields, raw, write_text},
    mark::{MARK, RetryMark},
    signature::{GoSignature, next_retry_timeout},
};

/// Maximum number of waits that a retry policy lists; later ones are all like the last, of more than ten years.
const MAX_WAITS: i64 = 45;

/// Format of the messages of Go machinery, version 2.
///
/// # Examples
/// ```
/// use machinist_core::QueueOptions;
/// use machinist_machinery::MachineryProfile;
///
/// let options = QueueOptions::default()
///     .profile(MachineryProfile::new("machinery_tasks"))
///     .allow_unsigned(["add", "mail.*"]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineryProfile {
    routing_key: String,
    /// Routing keys of other queues.
    routing_keys: BTreeMap<QueueName, String>,
}

impl MachineryProfile {
    /// Creates the profile of a queue that gets its messages under this routing key, which messages repeat.
    pub fn new(routing_key: impl Into<String>) -> Self {
        Self { routing_key: routing_key.into(), routing_keys: BTreeMap::new() }
    }

    /// Names the routing key of another queue, to which the later tasks of a workflow can go.
    #[must_use]
    pub fn queue(mut self, queue: QueueName, routing_key: impl Into<String>) -> Self {
        self.routing_keys.insert(queue, routing_key.into());
        self
    }

    /// Writes what follows a task into its body.
    fn put_nested(&self, signature: &mut GoSignature, task: &TaskMessage) -> Result<(), ProfileError> {
        let nested = &task.nested;
        let ignoring = nested.on_success.iter().filter(|next| next.ignores_results).count();
        if ignoring > 0 && ignoring < nested.on_success.len() {
            return Err(inexpressible(format!(
                "the results of {} go to some of the tasks that follow it; in Go machinery they go to all or to none",
                task.name
            )));
        }
        if ignoring > 0 {
            signature.put_raw("Immutable", raw("true".to_owned()));
        }
        for (field, callbacks) in [("OnSuccess", &nested.on_success), ("OnError", &nested.on_error)] {
            if !callbacks.is_empty() {
                signature.put_raw(field, self.nested_list(callbacks)?);
            }
        }
        let Some(group) = &nested.group else { return Ok(()) };
        signature.put_text("GroupUUID", group.id.as_str());
        signature.put_number("GroupTaskCount", group.size.into());
        let Some(callback) = &group.callback else { return Ok(()) };
        let mut body = self.nested_signature(callback)?;
        let follows = &callback.task.nested.on_success;
        if follows.iter().any(|next| next.ignores_results != callback.ignores_results) {
            return Err(inexpressible(format!(
                "task {} follows a group and is followed by others: in Go machinery either all of them get results, or \
                 none does",
                callback.task.name
            )));
        }
        if callback.ignores_results {
            body.put_raw("Immutable", raw("true".to_owned()));
        }
        signature.put_raw("ChordCallback", raw(body.to_text()));
        Ok(())
    }

    fn nested_list(&self, tasks: &[NestedTask]) -> Result<Box<serde_json::value::RawValue>, ProfileError> {
        let mut out = String::from("[");
        for (at, task) in tasks.iter().enumerate() {
            let _ =
                write!(out, "{}{}", if at > 0 { "," } else { "" }, self.nested_signature(task)?.to_text());
        }
        out.push(']');
        Ok(raw(out))
    }

    /// Returns the body of a task inside another one. It names its routing key: a worker of Go that has another queue than
    /// its sender would take its own otherwise.
    fn nested_signature(&self, nested: &NestedTask) -> Result<GoSignature, ProfileError> {
        let mut signature = self.new_signature(&nested.task)?;
        signature.put_text("UUID", nested.task.id.as_str());
        let key = self.routing_keys.get(&nested.queue).ok_or_else(|| {
            inexpressible(format!(
                "task {} goes to queue {}, whose routing key is not known; add [queues.{}] with profile = \"machinery\"",
                nested.task.name, nested.queue, nested.queue
            ))
        })?;
        signature.put_text("RoutingKey", key);
        write_retries(&mut signature, &nested.task)?;
        Ok(signature)
    }

    /// Returns the body of a new task.
    fn new_signature(&self, task: &TaskMessage) -> Result<GoSignature, ProfileError> {
        let lacks = |what: &str| Err(inexpressible(format!("Go machinery has no {what}; leave it out")));
        if task.timeout.is_some() || task.soft_timeout.is_some() {
            return lacks("timeout of a task");
        }
        if task.expires.is_some() {
            return lacks("expiry of a task");
        }
        let mut signature = GoSignature::new();
        signature.put_text("Name", task.name.as_str());
        signature.put_text("RoutingKey", &self.routing_key);
        signature.put_number("Priority", task.priority.unwrap_or(0).into());
        signature.put_args(&task.args).map_err(inexpressible)?;
        let mut headers = RawFields::default();
        for (name, text) in &task.headers {
            headers.put(name, raw_text(text));
        }
        signature.put_headers(&headers);
        self.put_nested(&mut signature, task)?;
        Ok(signature)
    }
}

impl Profile for MachineryProfile {
    fn name(&self) -> &str {
        "machinery"
    }

    fn read(&self, message: &Message) -> Result<TaskMessage, ProfileError> {
        let signature = GoSignature::parse(&message.body).map_err(ProfileError::Malformed)?;
        let name = signature.text("Name").map_err(ProfileError::Malformed)?;
        let name = TaskName::parse(&name).map_err(malformed)?;
        let id = signature.text("UUID").map_err(ProfileError::Malformed)?;
        if id.is_empty() {
            return Err(ProfileError::Unidentified);
        }
        let mut task = TaskMessage::new(TaskId::parse(&id).map_err(malformed)?, name);
        if let Err(error) = read_rest(&signature, &mut task) {
            task.invalid = Some(error);
        }
        Ok(task)
    }

    fn write(&self, task: &TaskMessage, source: Option<&Message>) -> Result<Message, ProfileError> {
        let (mut message, mut signature) = match source {
            Some(source) => (source.clone(), GoSignature::parse(&source.body).map_err(inexpressible)?),
            None => (Message::default(), self.new_signature(task)?),
        };
        signature.put_text("UUID", task.id.as_str());
        if signature.eta().is_ok() {
            signature.put_eta(task.eta);
        }
        write_retries(&mut signature, task)?;
        if source.is_none() {
            message.content_type = Some("application/json".to_owned());
            message.priority = Some(task.priority.unwrap_or(0));
            // Go copies the headers of the body.
            let headers = task.headers.iter();
            message.headers.extend(headers.map(|(name, text)| (name.clone().into(), text.as_str().into())));
        }
        message.body = signature.to_text().into();
        Ok(message)
    }

    fn nests(&self) -> bool {
        true
    }

    fn identify(&self, message: &Message, id: &TaskId) -> Option<Message> {
        let mut signature = GoSignature::parse(&message.body).ok()?;
        signature.put_text("UUID", &format!("task_{id}"));
        Some(Message { body: signature.to_text().into(), ..message.clone() })
    }
}

/// Reads everything but the name and the id of a task. A task whose message is wrong there can still be told to its
/// sender.
fn read_rest(signature: &GoSignature, task: &mut TaskMessage) -> Result<(), String> {
    signature.check()?;
    task.args = signature.args()?;
    task.eta = signature.eta()?;
    let priority = signature.number("Priority")?;
    let priority =
        u8::try_from(priority).map_err(|_| format!("Priority {priority} is no number from 0 to 255"))?;
    task.priority = (priority > 0).then_some(priority.min(9));
    let headers = signature.headers()?;
    let mark = RetryMark::of(&headers);
    task.headers = headers_of(&headers);
    let left = signature.number("RetryCount")?;
    let (attempt, spent) = match &mark {
        Some(mark) => mark.counts(left, task.eta),
        None => (1, 0),
    };
    task.attempt = attempt;
    task.retries = Some(spent);
    task.retry = Some(policy(left, signature.number("RetryTimeout")?, spent));
    Ok(())
}

/// Returns the text headers of a body, by name. Others are given as JSON.
fn headers_of(headers: &RawFields) -> BTreeMap<String, String> {
    let others = headers.iter().filter(|(name, _)| *name != MARK);
    let text = |value: &str| serde_json::from_str(value).unwrap_or_else(|_| value.to_owned());
    others.map(|(name, value)| (name.to_owned(), text(value.get()))).collect()
}

/// Returns the policy of a message with so many retries left, after so many were spent.
fn policy(left: i64, timeout: i64, spent: u32) -> RetryPolicy {
    let left = u32::try_from(left.max(0)).unwrap_or(u32::MAX);
    let mut waits = Vec::new();
    let mut timeout = timeout;
    for _ in 0..i64::from(left).min(MAX_WAITS) {
        timeout = next_retry_timeout(timeout);
        waits.push(Duration::from_secs(timeout.unsigned_abs()));
    }
    // The list counts from the first retry, which is over.
    let first = waits.first().copied().unwrap_or_default();
    let mut all = vec![first; (spent as usize).min(1000)];
    all.extend(waits);
    // Go runs a task again after every error, and has no time limits of its own.
    RetryPolicy::new(left.saturating_add(spent)).backoff(Backoff::list(&all)).retry_timeouts()
}

/// Writes how many retries are left, and what Go would have counted until this attempt.
fn write_retries(signature: &mut GoSignature, task: &TaskMessage) -> Result<(), ProfileError> {
    let Ok(before) = signature.number("RetryCount") else { return Ok(()) };
    let spent = task.retries.unwrap_or_else(|| task.attempt.saturating_sub(1));
    let max = task.retry.as_ref().map_or(0, |retry| retry.max_retries);
    let left = i64::from(max.saturating_sub(spent));
    if left != before.max(0) {
        let timeout = signature.number("RetryTimeout").unwrap_or(0);
        // One retry for each number less. A task that is sent again as a new one starts from the beginning.
        let steps = (before - left).clamp(0, MAX_WAITS);
        let timeout = if left > before { 0 } else { (0..steps).fold(timeout, |t, _| next_retry_timeout(t)) };
        signature.put_number("RetryCount", left);
        signature.put_number("RetryTimeout", timeout);
    }
    let Ok(mut headers) = signature.headers() else { return Ok(()) };
    let mark = RetryMark::new(task.attempt, spent, left, signature.eta().ok().flatten());
    match (task.attempt > 1, headers.get(MARK).is_some()) {
        (true, _) => headers.put(MARK, raw_text(&mark.to_string())),
        (false, true) => headers.remove(MARK),
        (false, false) => return Ok(()),
    }
    signature.put_headers(&headers);
    Ok(())
}

fn raw_text(text: &str) -> Box<serde_json::value::RawValue> {
    let mut out = String::new();
    write_text(&mut out, text);
    raw(out)
}

fn malformed(error: impl std::fmt::Display) -> ProfileError {
    ProfileError::Malformed(error.to_string())
}

fn inexpressible(error: impl std::fmt::Display) -> ProfileError {
    ProfileError::Inexpressible(error.to_string())
}
