//! Names and ids, each with its own type.
//!
//! With these types, a task id can never be passed in place of a queue name. A name from outside is checked once, where
//! it enters, and never again.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Reason that a text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} {reason}")]
pub struct InvalidName {
    kind: &'static str,
    value: String,
    reason: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text and makes it a name.
            ///
            /// # Errors
            /// [`InvalidName`] tells which rule the text breaks.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(reason) => Err(InvalidName { kind: $kind, value: shorten(text), reason }),
                }
            }

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::parse(&text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidName;
            fn try_from(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// Id of one invocation of a task, forever: every attempt, guard and resend keeps it.
    ///
    /// Ids created by machinist are UUIDs of version 7. An id from outside is accepted as text of up to 255 bytes
    /// without control characters (an AMQP short string), because other producers choose their own ids.
    TaskId,
    "task id",
    short_text
);

text_id!(
    /// Name under which workers know a task.
    TaskName,
    "task name",
    short_text
);

text_id!(
    /// Name of a queue of a broker.
    ///
    /// 1 to 200 bytes of printable text. The prefix `amq.` belongs to the broker and the suffix `.dead` to machinist's
    /// dead letters. No word between its dots is `*` or `#`.
    QueueName,
    "queue name",
    queue_text
);

text_id!(
    /// Queues of a worker: the name of one, or the beginning of names and a `*` for all queues that are called so.
    ///
    /// `tenant-*` stands for `tenant-a` and `tenant-b`, `*` for every queue.
    QueuePattern,
    "queue",
    pattern_text
);

impl QueuePattern {
    /// Returns the queue, if the pattern is the name of one.
    pub fn queue(&self) -> Option<QueueName> {
        (!self.is_prefix()).then(|| QueueName(Arc::clone(&self.0)))
    }

    /// Returns `true` if the pattern stands for all queues whose names begin so.
    pub fn is_prefix(&self) -> bool {
        self.0.ends_with('*')
    }
}

impl From<QueueName> for QueuePattern {
    fn from(queue: QueueName) -> Self {
        // A queue can be called `jobs*`. Among the queues of a worker, that stands for all that begin so, this one too.
        Self(queue.0)
    }
}

impl TaskId {
    /// Creates a new id (UUID version 7, so that ids sort by creation time).
    pub fn fresh() -> Self {
        Self(uuid_text(uuid::Uuid::now_v7()))
    }
}

/// Id of a session: one process's lease on the tasks it runs. A session that has expired never comes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(Arc<str>);

/// Id of one worker's claim on one delivery. It is written into every fact that the worker commits, so that a caller
/// whose reply was lost recognizes its own fact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(Arc<str>);

/// Kind of a record. Records of different kinds never collide, whatever ids users and other producers choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RecordKind {
    /// A task.
    Task,
    /// A dead letter.
    DeadLetter,
    /// The session of a worker: the record exists while the session is alive.
    Session,
    /// A join: the members of a group that have ended.
    Join,
    /// The cursor of a periodic task.
    Cursor,
    /// A lock, or the place of a leader.
    Lock,
    /// The mark of a workflow that was revoked.
    Revocation,
    /// Orders of people to all workers, such as the names of disabled tasks.
    Control,
    /// The name of a worker: who holds it, and what people want of it.
    Worker,
    /// A limit: the time of its next free start, or the places of what runs under it.
    Limit,
    /// The claim of a task to a unique key.
    Unique,
    /// The log of a task: the lines of its runs.
    Log,
    /// The session of a person in the dashboard.
    Login,
}

impl RecordKind {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::Task,
        Self::DeadLetter,
        Self::Session,
        Self::Join,
        Self::Cursor,
        Self::Lock,
        Self::Revocation,
        Self::Control,
        Self::Worker,
        Self::Limit,
        Self::Unique,
        Self::Log,
        Self::Login,
    ];

    /// Returns the kind that is stored under this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Returns the word under which adapters store the kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::DeadLetter => "dead",
            Self::Session => "session",
            Self::Join => "join",
            Self::Cursor => "cursor",
            Self::Lock => "lock",
            Self::Revocation => "revocation",
            Self::Control => "control",
            Self::Worker => "worker",
            Self::Limit => "limit",
            Self::Unique => "unique",
            Self::Log => "log",
            Self::Login => "login",
        }
    }
}

/// Name of a record: its kind, and an id that is unique within the kind.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    kind: RecordKind,
    id: Arc<str>,
}

impl RecordId {
    /// Creates the name of a record of any kind. Any text is an id.
    pub fn new(kind: RecordKind, id: &str) -> Self {
        Self { kind, id: id.into() }
    }

    /// Returns the kind.
    pub const fn kind(&self) -> RecordKind {
        self.kind
    }

    /// Returns the id within the kind.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the id of the task, if the record is that of a task.
    pub fn task(&self) -> Option<TaskId> {
        // The names of task records are made of task ids, or read as nothing but them.
        (self.kind == RecordKind::Task).then(|| TaskId(Arc::clone(&self.id)))
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.id)
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

macro_rules! record_of {
    ($id:ident, $kind:ident) => {
        impl From<&$id> for RecordId {
            fn from(id: &$id) -> Self {
                Self { kind: RecordKind::$kind, id: Arc::clone(&id.0) }
            }
        }

        impl From<$id> for RecordId {
            fn from(id: $id) -> Self {
                Self { kind: RecordKind::$kind, id: id.0 }
            }
        }
    };
}

record_of!(TaskId, Task);
record_of!(SessionId, Session);

macro_rules! random_id {
    ($name:ident) => {
        impl $name {
            /// Creates a new random id (UUID version 4).
            pub fn fresh() -> Self {
                // The thread's generator: asking the kernel at every start of a task would cost a system call.
                let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
                Self(uuid_text(id))
            }

            /// Returns the id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

random_id!(SessionId);
random_id!(RunId);

fn uuid_text(id: uuid::Uuid) -> Arc<str> {
    Arc::from(&*id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
}

fn short_text(text: &str) -> Result<(), &'static str> {
    match text.len() {
        0 => Err("is empty"),
        1..=255 if text.chars().any(char::is_control) => Err("holds a control character"),
        1..=255 => Ok(()),
        _ => Err("is longer than 255 bytes"),
    }
}

fn queue_text(text: &str) -> Result<(), &'static str> {
    short_text(text)?;
    if text.len() > 200 {
        return Err("is longer than 200 bytes");
    }
    if text.starts_with("amq.") {
        return Err("begins with `amq.`, which belongs to the broker");
    }
    // Nearly no name has these signs, and every delivery names its queue.
    let has_wildcard = text.bytes().any(|byte| matches!(byte, b'*' | b'#'));
    if has_wildcard && text.split('.').any(|word| matches!(word, "*" | "#")) {
        return Err(
            "has the word `*` or `#`, which a broker treats as a wildcard: it would receive delayed tasks of other queues too",
        );
    }
    if text.ends_with(".dead") {
        return Err("ends with `.dead`, which names the dead letters of a queue");
    }
    Ok(())
}

fn pattern_text(text: &str) -> Result<(), &'static str> {
    let Some(beginning) = text.strip_suffix('*') else { return queue_text(text) };
    if beginning.contains('*') {
        return Err("has a `*` before its end; write the beginning of names and one `*`");
    }
    if beginning.is_empty() { Ok(()) } else { short_text(beginning) }
}

/// Shortens a text for an error message, which must not repeat a megabyte that somebody passed as a name.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_are_checked_once() {
        assert!(TaskId::parse("task_4e57a8f0").is_ok());
        assert_eq!(TaskId::parse("").unwrap_err().to_string(), "task id \"\" is empty");
        assert!(TaskId::parse("a\nb").is_err());
        assert!(TaskName::parse(&"x".repeat(256)).is_err());
        assert!(QueueName::parse("images.large").is_ok());
        assert!(QueueName::parse("amq.direct").is_err());
        assert!(QueueName::parse("mail.dead").is_err());
        for wildcard in ["#", "*", "mail.*", "#.mail", "a.#.b"] {
            assert!(QueueName::parse(wildcard).unwrap_err().to_string().contains("`#`"), "{wildcard}");
        }
        assert!(QueueName::parse("c#.2*").is_ok());
        let long = QueueName::parse(&"q".repeat(100_000)).unwrap_err().to_string();
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn a_pattern_is_a_name_or_the_beginning_of_names() {
        let pattern = |text: &str| QueuePattern::parse(text).unwrap();
        assert_eq!(pattern("mail").queue().unwrap().as_str(), "mail");
        for prefix in ["mail*", "tenant.*", "*"] {
            assert!(pattern(prefix).is_prefix() && pattern(prefix).queue().is_none(), "{prefix}");
        }
        for wrong in ["", "amq.direct", "a*b*", "**", "#.mail"] {
            assert!(QueuePattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn deserialization_checks_names() {
        assert!(serde_json::from_str::<QueueName>("\"amq.x\"").is_err());
        assert_eq!(serde_json::from_str::<QueueName>("\"mail\"").unwrap().as_str(), "mail");
    }

    #[test]
    fn fresh_ids_differ_and_sort_by_time() {
        let a = TaskId::fresh();
        let b = TaskId::fresh();
        assert_ne!(a, b);
        assert_eq!(a.as_str().len(), 36);
        assert!(a < b, "version 7 ids grow within a process");
    }
}
