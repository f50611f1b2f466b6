//! Wire profiles by their names in the settings.

use machinist_core::{QueueName, QueueOptions};

use crate::settings::{ProfileName, SettingsError, UnsignedQueue};

/// Returns the options of a queue from which tasks run without a signature.
///
/// # Errors
/// [`SettingsError`] if its profile was not compiled in.
pub(crate) fn options(queue: &QueueName, unsigned: &UnsignedQueue) -> Result<QueueOptions, SettingsError> {
    let options = QueueOptions::default().allow_unsigned(unsigned.tasks.value.iter().cloned());
    let Some(profile) = &unsigned.profile else { return Ok(options) };
    let routing_key = unsigned.address.as_ref().map_or(queue.as_str(), |address| &address.routing_key);
    match profile.value {
        #[cfg(feature = "machinery")]
        ProfileName::Machinery => {
            Ok(options.profile(machinist_machinery::MachineryProfile::new(routing_key)))
        }
        #[cfg(not(feature = "machinery"))]
        ProfileName::Machinery => {
            let _ = (options, routing_key);
            let problem = "this program was built without the profile machinery; build it with the cargo feature \
                           `machinery`";
            Err(SettingsError::new(&profile.origin, problem))
        }
    }
}
