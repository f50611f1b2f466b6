//! Names of the message headers that machinist writes and reads.
//!
//! An adapter carries headers without reading them. It needs the names only to avoid copying them: see
//! [`header_name`](crate::broker::header_name). `docs/wire-format.md` explains their meaning.

/// Headers of an ordinary task's message. Adapters borrow these names instead of copying them.
pub const NAMES: [&str; 6] = [QUEUE, ATTEMPT, ETA, ISSUED, TRACEPARENT, SIGNATURE];

/// Version of the wire format; absent means 1.
pub const VERSION: &str = "machinist-version";
/// Queue that the task was sent to.
pub const QUEUE: &str = "machinist-queue";
/// Attempt that the message is for; absent means 1.
pub const ATTEMPT: &str = "machinist-attempt";
/// Guard generation; absent means 0, the message itself.
pub const GENERATION: &str = "machinist-generation";
/// Due time of the next run, in microseconds since the Unix epoch.
pub const ETA: &str = "machinist-eta";
/// Time after which the task no longer starts, in microseconds since the Unix epoch.
pub const EXPIRES: &str = "machinist-expires";
/// Time of sending, in microseconds since the Unix epoch.
pub const ISSUED: &str = "machinist-issued";
/// Number of retries spent; absent means 0.
pub const RETRIES: &str = "machinist-retries";
/// Number of postponements spent; absent means 0.
pub const POSTPONEMENTS: &str = "machinist-postponements";
/// Greatest fencing token of earlier attempts; absent means 0.
pub const TOKEN: &str = "machinist-token";
/// Time since which no worker has known the task, in microseconds since the Unix epoch.
pub const UNKNOWN_SINCE: &str = "machinist-unknown-since";
/// Time since which no worker could read the message, in microseconds since the Unix epoch. It is not signed: workers
/// that cannot read or verify the message write it, and it affects nothing but the length of the wait.
pub const UNREAD_SINCE: &str = "machinist-unread-since";
/// Name/value pairs, sorted by name: `NAME=LENGTH:VALUE`, separated by commas. A message that has it is of version 2.
pub const PAIRS: &str = "machinist-pairs";
/// Signature: `KEY TIME SIGNATURE` in one header, because RabbitMQ and its clients pay for each header.
pub const SIGNATURE: &str = "machinist-signature";
/// Key of the first sender, where another key signed this message.
pub const FIRST_KEY: &str = "machinist-first-key";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace state.
pub const TRACESTATE: &str = "tracestate";
/// Id of a dead letter.
pub const DEAD_ID: &str = "machinist-dead-id";
/// Reason of a dead letter.
pub const DEAD_REASON: &str = "machinist-dead-reason";
/// Error of a dead letter, as JSON.
pub const DEAD_ERROR: &str = "machinist-dead-error";
/// Signature of the worker that made the message a dead letter: `KEY SIGNATURE`.
pub const DEAD_SIGNATURE: &str = "machinist-dead-signature";
/// Number of times that workers have returned the message from the dead letters, to which a broker had moved it, to its
/// queue. It is not signed, and affects nothing but the delay of the next return.
pub const RETURNS: &str = "machinist-returns";
/// Time at which the message became a dead letter, in microseconds since the Unix epoch.
pub const DEAD_AT: &str = "machinist-dead-at";
/// Description of what a broker could not read of a message that it stores; such a message is never run. Set by the
/// broker adapter.
pub const DAMAGED: &str = "machinist-damaged";
/// The stored headers of a message with [`DAMAGED`], as they were found.
pub const DAMAGED_HEADERS: &str = "machinist-damaged-headers";
