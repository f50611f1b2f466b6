//! Instants after RFC 3339, for values that people and other programs read. Inside records they are numbers.

use serde::Serializer;

use crate::clock::Timestamp;

/// Serializes an instant, for `serialize_with`.
pub(crate) fn instant<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

/// Serializes an instant that may be unknown, for `serialize_with`.
pub(crate) fn if_known<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => instant(at, serializer),
        None => serializer.serialize_none(),
    }
}
