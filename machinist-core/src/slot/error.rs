//! Errors of roles.

use super::{MAX_NAME, MAX_PARAMETERS, MAX_SLOTS};

/// Reason that a worker cannot take part in a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoleError {
    /// The name cannot be used.
    #[error("{0:?} is no name of a leader or a set; use 1 to {MAX_NAME} bytes without control characters")]
    Name(String),
    /// The number of slots is out of bounds.
    #[error("a set cannot have {0} slots; give it 1 to {MAX_SLOTS}")]
    Slots(u32),
    /// The number of parameters is not that of the slots.
    #[error("the set has {slots} slots and {parameters} parameters; give each slot one, or none")]
    Parameters {
        /// Number of slots.
        slots: u32,
        /// Number of parameters.
        parameters: usize,
    },
    /// The parameters are too long.
    #[error("the parameters of the set have {0} bytes, and may have {MAX_PARAMETERS} together")]
    ParametersTooLong(usize),
    /// The worker takes part in this role already.
    #[error("this worker takes part in {0} already; one worker takes part once")]
    Twice(String),
}
