//! The option `--profile`: a queue of another program that machinist.toml does not name.

use machinist::{
    QueueName,
    settings::{ProfileName, Settings, UnsignedQueue},
};

use crate::exit::{CliError, Code};

/// Returns the queue that the program of a profile takes if none is named.
pub(super) fn default_queue(profile: ProfileName) -> Result<QueueName, CliError> {
    let queue = QueueName::parse(profile.default_queue());
    queue.map_err(|error| CliError::new(Code::Failed, error.to_string()))
}

/// Returns the settings with this profile for a queue, unless they have one for it.
pub(super) fn settings_of(
    settings: &Settings,
    profile: ProfileName,
    queue: &QueueName,
    task: &str,
) -> Result<Settings, CliError> {
    let mut settings = settings.clone();
    match settings.unsigned_queues.get(queue) {
        Some(known) if known.profile.as_ref().is_some_and(|known| known.value == profile) => {}
        Some(known) => {
            let place = &known.tasks.origin;
            let text = format!(
                "queue {queue} has no profile at {place}; add profile = \"{}\" there, or name another queue",
                profile.as_str()
            );
            return Err(CliError::new(Code::Usage, text));
        }
        None => {
            let unsigned = UnsignedQueue::of_profile(profile, queue, vec![task.to_owned()]);
            settings.unsigned_queues.insert(queue.clone(), unsigned);
        }
    }
    Ok(settings)
}
