//! The arguments of a task, for people: what its record keeps of them.
//!
//! The record of a delayed or failed task keeps its message, so that it can be sent again. That of another task keeps it
//! only if its worker was told to ([`TaskOptions::keep_args`](crate::worker::TaskOptions::keep_args)). Encrypted arguments
//! are never shown.

use serde_json::{Map, Value};

use crate::{
    app::App,
    args::Arg,
    backend::BackendError,
    client::Client,
    id::{QueueName, RecordId, TaskId},
    record::{Facts, name},
    security::is_encrypted,
    wire::{Envelope, MAX_STORED_BYTES, message_from_fact, read_foreign},
};

/// Maximum size of the arguments that are shown, in bytes of JSON.
const MAX_SHOWN_BYTES: usize = 16 * 1024;

/// Arguments of a task, as far as its record tells them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum KnownArgs {
    /// They are known.
    Shown {
        /// Arguments without a name, in order.
        args: Vec<Value>,
        /// Arguments with a name.
        named: Map<String, Value>,
    },
    /// They are not shown, for this reason.
    Hidden(String),
}

impl Client {
    /// Returns the arguments of these tasks, in their order, as their records tell them. Nobody vouches for them here:
    /// everybody who can write to the backend can change them.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn arguments(&self, ids: &[TaskId]) -> Result<Vec<KnownArgs>, BackendError> {
        let records: Vec<_> = ids.iter().map(RecordId::from).collect();
        let facts = self.app.backend().read_each(&records).await?;
        let known = |facts: Result<Facts, BackendError>| match facts {
            Ok(facts) => known_args(&self.app, &facts),
            Err(error) => KnownArgs::Hidden(format!("the record cannot be read: {error}")),
        };
        Ok(facts.into_iter().map(known).collect())
    }
}

fn known_args(app: &App, facts: &Facts) -> KnownArgs {
    let Some(fact) = facts.get(name::MESSAGE).or_else(|| facts.get(name::KEPT_ARGS)) else {
        let why = if facts.has(name::END) {
            format!(
                "the record does not keep them: keep_args is not set, or the message has more than {MAX_STORED_BYTES} bytes"
            )
        } else {
            "the record keeps them only of delayed and failed tasks, and of all with keep_args = true"
                .to_owned()
        };
        return KnownArgs::Hidden(why);
    };
    match read(app, facts, fact) {
        Ok(shown) => shown,
        Err(why) => KnownArgs::Hidden(why),
    }
}

/// Reads the arguments of a stored message. Verifies nothing.
fn read(app: &App, facts: &Facts, fact: &[u8]) -> Result<KnownArgs, String> {
    let state = &app.0;
    let unreadable = "the record holds a message that cannot be read";
    let message = message_from_fact(fact).ok_or(unreadable)?;
    let queue = facts.text(name::QUEUE).and_then(|queue| QueueName::parse(&queue).ok());
    let foreign = queue.as_ref().and_then(|queue| Some((queue, state.rules.profile(queue)?)));
    let envelope = match foreign {
        None => Envelope::read(&message),
        Some((queue, profile)) => read_foreign(profile, queue, &state.max_sizes, &message, state.clock.now())
            .map(|task| task.envelope),
    };
    let envelope = envelope.map_err(|_| unreadable)?;
    if is_encrypted(&envelope) {
        return Err("they are encrypted".to_owned());
    }
    let body = envelope.decode(&state.max_sizes).map_err(|_| unreadable)?;
    let size: usize = body.args.iter().map(|arg| arg.name.len() + arg.value.to_string().len()).sum();
    if size > MAX_SHOWN_BYTES {
        return Err(format!("they have {size} bytes, and at most {MAX_SHOWN_BYTES} are shown"));
    }
    let (named, args): (Vec<Arg>, Vec<Arg>) = body.args.into_iter().partition(|arg| !arg.name.is_empty());
    Ok(KnownArgs::Shown {
        args: args.into_iter().map(|arg| arg.value).collect(),
        named: named.into_iter().map(|arg| (arg.name, arg.value)).collect(),
    })
}
