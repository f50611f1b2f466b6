//! Wire profiles by their names in the settings, with the stores in which their programs look for states.

use machinist_core::{QueueName, QueueOptions};

use crate::settings::{ProfileName, Settings, SettingsError, UnsignedQueue};

/// Returns the options of a queue from which tasks run without a signature.
///
/// # Errors
/// [`SettingsError`] if its profile was not compiled in.
pub(crate) fn options(
    queue: &QueueName,
    unsigned: &UnsignedQueue,
    settings: &Settings,
) -> Result<QueueOptions, SettingsError> {
    let options = QueueOptions::default().allow_unsigned(unsigned.tasks.value.iter().cloned());
    let Some(profile) = &unsigned.profile else { return Ok(options) };
    let routing_key = unsigned.address.as_ref().map_or(queue.as_str(), |address| &address.routing_key);
    match profile.value {
        #[cfg(feature = "machinery")]
        ProfileName::Machinery => {
            let profile = machinist_machinery::MachineryProfile::new(routing_key);
            let addresses = settings.existing_queues().into_iter();
            let profile = addresses
                .fold(profile, |profile, (queue, address)| profile.queue(queue, address.routing_key));
            Ok(options.profile(profile).shared())
        }
        #[cfg(not(feature = "machinery"))]
        ProfileName::Machinery => {
            let _ = (options, routing_key, settings);
            let problem = "this program was built without the profile machinery; build it with the cargo feature \
                           `machinery`";
            Err(SettingsError::new(&profile.origin, problem))
        }
    }
}

/// Returns the mirror of a queue of Go machinery, with the queues of all routing keys.
#[cfg(feature = "machinery")]
pub(crate) fn mirror(
    redis: &machinist_backend_redis::RedisBackend,
    queue: &QueueName,
    unsigned: &UnsignedQueue,
    settings: &Settings,
) -> machinist_machinery::MachineryMirror {
    let routing_key = unsigned.address.as_ref().map_or(queue.as_str(), |address| &address.routing_key);
    let mirror = machinist_machinery::MachineryMirror::new(redis.values(), routing_key);
    let mirror = match &unsigned.results_ttl {
        Some(ttl) => mirror.expiry(ttl.value),
        None => mirror,
    };
    let mirror = match &unsigned.go_program {
        Some(program) => mirror.program(program.value.as_str()),
        None => mirror,
    };
    let addresses = settings.existing_queues().into_iter();
    addresses.fold(mirror, |mirror, (queue, address)| mirror.queue(address.routing_key, queue))
}
