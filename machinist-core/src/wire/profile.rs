//! Profiles: formats of other programs, so that a queue of theirs is consumed beside ours.
//!
//! A profile translates between a message and a [`TaskMessage`], and knows nothing else. What its format has no place for
//! (attempt, guard generation, counters, fencing token, trace) travels in machinist's own headers, which the translation
//! here writes beside those of the profile and reads back. Inside, a foreign message is an envelope like any other.

use std::{fmt, sync::Arc, time::Duration};

use machinist_adapter::header;

use super::{Body, Codec, Envelope, MaxSizes, NestedTasks, Oversize, TaskMessage, envelope::Unreadable};
use crate::{
    broker::{HeaderValue, Headers, Message},
    clock::Timestamp,
    error::BoxError,
    id::{QueueName, TaskId},
};

/// Format of the messages of a queue, other than machinist's.
///
/// Reading and writing are pure: the same message always gives the same task. A profile neither writes nor reads headers
/// that begin with `machinist-`: they are added to what it writes, and hold what its format has no place for.
///
/// Other programs may publish to the queue. Only machinist's workers may consume from it, unless it is
/// [shared](crate::QueueOptions::shared): a worker publishes copies of running tasks that come back later, which a worker of
/// another program would run.
///
/// # Examples
/// ```
/// use machinist_core::{Arg, Profile, ProfileError, TaskMessage, broker::Message};
/// use serde_json::{Value, json};
///
/// /// `{"id": "7", "task": "add", "args": [2, 3]}`
/// #[derive(Debug)]
/// struct Plain;
///
/// impl Profile for Plain {
///     fn name(&self) -> &str {
///         "plain"
///     }
///
///     fn read(&self, message: &Message) -> Result<TaskMessage, ProfileError> {
///         let wrong = |what: &str| ProfileError::Malformed(what.to_owned());
///         let body: Value = serde_json::from_slice(&message.body).map_err(|_| wrong("it is not JSON"))?;
///         let id = body["id"].as_str().and_then(|id| id.try_into().ok());
///         let name = body["task"].as_str().and_then(|name| name.try_into().ok());
///         let mut task = TaskMessage::new(
///             id.ok_or_else(|| wrong("it has no id"))?,
///             name.ok_or_else(|| wrong("it has no task"))?,
///         );
///         let args = body["args"].as_array().ok_or_else(|| wrong("it has no args"))?;
///         task.args = args.iter().cloned().map(Arg::from_value).collect();
///         Ok(task)
///     }
///
///     fn write(&self, task: &TaskMessage, source: Option<&Message>) -> Result<Message, ProfileError> {
///         let args: Vec<&Value> = task.args.iter().map(|arg| &arg.value).collect();
///         let body = json!({"id": task.id.as_str(), "task": task.name.as_str(), "args": args});
///         Ok(Message { body: body.to_string().into(), ..source.cloned().unwrap_or_default() })
///     }
/// }
/// ```
pub trait Profile: fmt::Debug + Send + Sync + 'static {
    /// Returns its name, for errors and logs.
    fn name(&self) -> &str;

    /// Reads a message as a task.
    ///
    /// # Errors
    /// [`ProfileError::Malformed`] makes the message a dead letter, [`ProfileError::Newer`] offers it again for an hour.
    fn read(&self, message: &Message) -> Result<TaskMessage, ProfileError>;

    /// Writes a message that [`read`](Self::read) reads as this task: a new task, its next attempt, or a copy that comes
    /// back later.
    ///
    /// Core adds headers with the attempt, the guard generation, the times, the counters, the fencing token, the pairs and
    /// the trace. Everything else of a task is lost unless the format holds it: arguments, retry policy, timeouts, headers
    /// and priority. `source` is the message that the task was read from, if there is one. What a [`TaskMessage`] has no
    /// place for is best copied from it.
    ///
    /// # Errors
    /// [`ProfileError::Inexpressible`]: the task is not sent, or ends without another attempt.
    fn write(&self, task: &TaskMessage, source: Option<&Message>) -> Result<Message, ProfileError>;

    /// Gives a message without an id ([`ProfileError::Unidentified`]) this id. The worker publishes what is returned to the
    /// same queue, and then acknowledges the message. With `None`, which is the default, such a message becomes a dead
    /// letter.
    fn identify(&self, message: &Message, id: &TaskId) -> Option<Message> {
        let _ = (message, id);
        None
    }

    /// Returns `true` if [`write`](Self::write) writes what follows a task ([`TaskMessage::nested`]). Otherwise a workflow is
    /// not sent in this format. Default: `false`.
    fn nests(&self) -> bool {
        false
    }
}

/// Error of a profile. The text states what is wrong with the message or the task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The message is not in this format.
    #[error("{0}")]
    Malformed(String),
    /// The message has no id, and its program would run it all the same.
    #[error("it has no id")]
    Unidentified,
    /// The message is in a newer version of this format, which another worker may read.
    #[error("{0}")]
    Newer(String),
    /// The task has something that this format cannot express.
    #[error("{0}")]
    Inexpressible(String),
}

impl TaskMessage {
    /// Reads a message of machinist's own format, without verifying its signature: for tests and tools, never for a
    /// decision.
    ///
    /// # Errors
    /// [`ProfileError::Malformed`] if it cannot be read, or if it is encrypted.
    pub fn read(message: &Message) -> Result<Self, ProfileError> {
        let malformed = |error: BoxError| ProfileError::Malformed(error.to_string());
        let envelope = Envelope::read(message).map_err(|error| malformed(error.into()))?;
        let body = envelope.decode(&MaxSizes::default()).map_err(malformed)?;
        Ok(Self {
            attempt: envelope.attempt,
            retries: Some(envelope.counters.retries),
            eta: envelope.eta,
            expires: envelope.expires,
            priority: envelope.priority,
            timeout: body.timeout(),
            soft_timeout: body.soft_timeout(),
            args: body.args,
            retry: body.retry,
            headers: body.headers,
            ..Self::new(envelope.id, envelope.name)
        })
    }

    fn body(&mut self) -> Body {
        let millis = |t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
        Body {
            args: std::mem::take(&mut self.args),
            retry: self.retry.take(),
            timeout_ms: self.timeout.map(millis),
            soft_timeout_ms: self.soft_timeout.map(millis),
            first_eta: self.eta,
            headers: std::mem::take(&mut self.headers),
            flow: None,
            limit_key: None,
            limit_cost: None,
        }
    }
}

/// Returns `true` if a header is machinist's in a message of any format.
fn is_own(name: &str) -> bool {
    name.starts_with("machinist-") || matches!(name, header::TRACEPARENT | header::TRACESTATE)
}

/// A message of another format, read.
#[derive(Debug)]
pub(crate) struct ForeignTask {
    pub(crate) envelope: Envelope,
    /// Reason that the task cannot run as its message says.
    pub(crate) invalid: Option<String>,
}

/// Reads a message of another format, found in this queue.
pub(crate) fn read_foreign(
    profile: &dyn Profile,
    queue: &QueueName,
    sizes: &MaxSizes,
    message: &Message,
    now: Timestamp,
) -> Result<ForeignTask, Unreadable> {
    let mut task = profile.read(message).map_err(|error| match error {
        ProfileError::Newer(what) => Unreadable::Newer(what),
        ProfileError::Unidentified => Unreadable::Unidentified,
        error => Unreadable::Header(format!("it cannot be read as {}: {error}", profile.name())),
    })?;
    let invalid = task.invalid.take();
    let own = translated(task, queue, sizes, message, now)?;
    let envelope = Envelope { source: Some(Arc::new(message.clone())), ..Envelope::read(&own)? };
    Ok(ForeignTask { envelope, invalid })
}

/// Returns the message that says the same in our format.
fn translated(
    mut task: TaskMessage,
    queue: &QueueName,
    sizes: &MaxSizes,
    message: &Message,
    now: Timestamp,
) -> Result<Message, Unreadable> {
    let own = message.headers.iter().filter(|(name, _)| is_own(name));
    let mut headers: Headers = own.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !headers.contains_key(header::ISSUED) {
        // No machinist has written it: the format itself says which attempt it is for, and when.
        headers.extend(first_headers(&task, message.timestamp.unwrap_or(now)));
    }
    headers.entry(header::QUEUE.into()).or_insert_with(|| queue.as_str().into());
    let body = task.body();
    if let Some(Oversize { part, size, max }) = body.exceeded(sizes) {
        return Err(Unreadable::Header(format!("it has {size} {part}, and the maximum here is {max}")));
    }
    let codec = Codec::default();
    let body = codec.encode(&body).map_err(|error| Unreadable::Header(error.to_string()))?;
    let priority = task.priority;
    Ok(Message { headers, priority, ..Message::new(&task.id, &task.name, codec.content_type(), body) })
}

fn first_headers(
    task: &TaskMessage,
    issued: Timestamp,
) -> impl Iterator<Item = (std::borrow::Cow<'static, str>, HeaderValue)> {
    let attempt = i64::from(task.attempt.max(1));
    let retries = task.retries.map_or(attempt - 1, i64::from).min(attempt - 1);
    let instant = |name: &'static str, at: Option<Timestamp>| at.map(|at| (name, at.as_micros()));
    [
        Some((header::ATTEMPT, attempt)),
        Some((header::RETRIES, retries)),
        Some((header::POSTPONEMENTS, attempt - 1 - retries)),
        instant(header::ISSUED, Some(issued)),
        instant(header::ETA, task.eta),
        instant(header::EXPIRES, task.expires),
    ]
    .into_iter()
    .flatten()
    .map(|(name, number)| (name.into(), number.into()))
}

/// Writes an envelope in another format, with our headers beside those of the format.
pub(crate) fn write_foreign(
    profile: &dyn Profile,
    envelope: &Envelope,
    nested: NestedTasks,
    sizes: &MaxSizes,
) -> Result<Message, ProfileError> {
    let body = envelope.decode(sizes).map_err(|error| ProfileError::Inexpressible(error.to_string()))?;
    if body.flow.is_some() {
        let error = "what follows a task of a workflow has no place in it; send the task alone".to_owned();
        return Err(ProfileError::Inexpressible(error));
    }
    if body.limit_key.is_some() || body.limit_cost.is_some() {
        let error = "the key and the cost of limits have no place in it; leave them out".to_owned();
        return Err(ProfileError::Inexpressible(error));
    }
    let task = TaskMessage {
        nested,
        attempt: envelope.attempt,
        retries: Some(envelope.counters.retries),
        eta: envelope.eta,
        expires: envelope.expires,
        priority: envelope.priority,
        timeout: body.timeout(),
        soft_timeout: body.soft_timeout(),
        args: body.args,
        retry: body.retry,
        headers: body.headers,
        ..TaskMessage::new(envelope.id.clone(), envelope.name.clone())
    };
    let mut message = profile.write(&task, envelope.source.as_deref())?;
    message.headers.retain(|name, _| !is_own(name));
    message.headers.extend(envelope.message().headers);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fuzz::{Bare, NOW, full_envelope_with_pairs},
        record::Counters,
        wire::FirstSigner,
    };

    fn read(message: &Message) -> Envelope {
        let queue = "math".try_into().unwrap();
        read_foreign(&Bare, &queue, &MaxSizes::default(), message, NOW).unwrap().envelope
    }

    fn written(envelope: &Envelope) -> Message {
        write_foreign(&Bare, envelope, NestedTasks::default(), &MaxSizes::default()).unwrap()
    }

    #[test]
    fn what_the_format_has_no_place_for_comes_back() {
        let codec = Codec::default();
        let sent = Envelope {
            content_type: codec.content_type().to_owned(),
            body: codec.encode(&Body::default()).unwrap(),
            first: FirstSigner::Nobody,
            ..full_envelope_with_pairs()
        };
        let came = read(&written(&sent));
        assert!(came.source.is_some());
        assert_eq!(Envelope { source: None, ..came }, sent);
    }

    /// A format that counts retries and has a time in each message.
    #[derive(Debug)]
    struct Third;

    impl Profile for Third {
        fn name(&self) -> &str {
            "third"
        }
        fn read(&self, message: &Message) -> Result<TaskMessage, ProfileError> {
            let mut task = Bare.read(message)?;
            task.attempt = 3;
            task.eta = Some(NOW);
            task.expires = Some(NOW);
            Ok(task)
        }
        fn write(&self, task: &TaskMessage, source: Option<&Message>) -> Result<Message, ProfileError> {
            Bare.write(task, source)
        }
    }

    #[test]
    fn the_format_says_which_attempt_it_is_until_machinist_has_written_it() {
        let third = |message: &Message| {
            let queue = "math".try_into().unwrap();
            read_foreign(&Third, &queue, &MaxSizes::default(), message, NOW).unwrap().envelope
        };
        let theirs = Message { id: Some("t".to_owned()), kind: Some("add".to_owned()), ..Message::default() };
        let first = third(&theirs);
        let counters = Counters { retries: 2, postponements: 0 };
        assert_eq!((first.attempt, first.eta, first.expires), (3, Some(NOW), Some(NOW)));
        assert_eq!((first.counters, first.issued), (counters, NOW));
        let due = NOW.plus(Duration::from_secs(9));
        let next = first.next_attempt(due, Counters { retries: 3, postponements: 0 }, 5);
        let again =
            third(&write_foreign(&Third, &next, NestedTasks::default(), &MaxSizes::default()).unwrap());
        assert_eq!((again.attempt, again.eta, again.expires, again.token), (4, Some(due), None, 5));
    }

    #[test]
    fn marks_of_the_message_that_was_read_do_not_stick() {
        let mut theirs =
            Message { id: Some("t".to_owned()), kind: Some("add".to_owned()), ..Message::default() };
        for stale in ["machinist-signature", "machinist-dead-id", "machinist-unread-since"] {
            theirs.headers.insert(stale.into(), "stale".into());
        }
        theirs.headers.insert("theirs".into(), HeaderValue::Null);
        let names: Vec<String> = written(&read(&theirs)).headers.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["machinist-issued", "machinist-queue", "theirs"]);
    }
}
