//! Errors of periodic tasks.

use super::{policy::Source, schedule::ScheduleError};
use crate::{backend::BackendError, error::SendError};

/// Error of a periodic task. The text names the value and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeriodicError {
    /// The name is not allowed.
    #[error("periodic task {name:?}: the name {why}")]
    Name {
        /// The name.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The schedule cannot be followed.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The definition contradicts itself.
    #[error("periodic task {name}: {why}")]
    Invalid {
        /// The periodic task.
        name: String,
        /// The contradiction, and the remedy.
        why: String,
    },
    /// No periodic task has this name.
    #[error("there is no periodic task {name:?}{}", nearest.as_ref().map(|it| format!("; did you mean {it:?}?")).unwrap_or_default())]
    Unknown {
        /// The name.
        name: String,
        /// Name of a periodic task that was probably meant.
        nearest: Option<String>,
    },
    /// The definition belongs to a file or to code.
    #[error("periodic task {name} is defined in {} of worker {worker}: change it there", match owner { Source::File => "the machinist.toml", _ => "the code" })]
    Owned {
        /// The periodic task.
        name: String,
        /// Its owner.
        owner: Source,
        /// Name of a worker that has the definition.
        worker: String,
    },
    /// The order cannot be signed, or the stored one is not believed.
    #[error("periodic task {name}: {why}")]
    Untrusted {
        /// The periodic task.
        name: String,
        /// The reason, and the remedy.
        why: String,
    },
    /// No worker has sent the extra tick in time.
    #[error(
        "no worker has sent the extra tick of {name}: none that has its definition and a key for its task is alive; a \
         worker that starts within a minute sends it"
    )]
    NotTriggered {
        /// The periodic task.
        name: String,
    },
    /// Another trigger has taken the place of this one before a worker had read it.
    #[error(
        "another trigger of {name} came before a worker had sent this extra tick; only the other one's tick is known to be sent"
    )]
    TriggerReplaced {
        /// The periodic task.
        name: String,
    },
    /// Others have changed the periodic task again and again at the same time.
    #[error("periodic task {name} is being changed by others; try again")]
    Contended {
        /// The periodic task.
        name: String,
    },
    /// The task cannot be sent as it is defined.
    #[error("its task cannot be sent")]
    Send(#[from] SendError),
    /// The backend could not be asked.
    #[error("the backend could not be asked")]
    Backend(#[from] BackendError),
}
