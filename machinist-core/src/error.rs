//! Errors of the core, by what the caller can do about them.

/// Any error, as a source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
