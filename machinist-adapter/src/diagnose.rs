//! Diagnosis of a server, for `machinist doctor` and for a worker's start.
//!
//! An adapter knows best what is wrong with its server and what to do about it, so it describes both in words that need
//! no translation.

use async_trait::async_trait;

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No problem.
    Good,
    /// It works; something is at risk.
    Warning,
    /// It does not work.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Severity.
    pub level: Level,
    /// Subject that was examined: `version`, `eviction policy`, `permissions`.
    pub subject: String,
    /// Result of the examination.
    pub found: String,
    /// Remedy; empty if there is nothing to do.
    pub remedy: String,
}

impl Finding {
    /// Creates a finding without a problem.
    pub fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Good, subject: subject.into(), found: found.into(), remedy: String::new() }
    }

    /// Creates a finding that works but puts something at risk.
    pub fn warning(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, subject: subject.into(), found: found.into(), remedy: remedy.into() }
    }

    /// Creates a finding that does not work.
    pub fn error(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, subject: subject.into(), found: found.into(), remedy: remedy.into() }
    }
}

/// A server, or a substitute for one, that can be examined.
#[async_trait]
pub trait Diagnose {
    /// Returns the location of the server, for display: a URL without password, a file, `memory`.
    fn location(&self) -> String;

    /// Contacts the server and reports its version, what this user may do, and how it keeps its data. A server that
    /// cannot be reached is a finding of level error, not a failure of this call.
    ///
    /// # Cancel safety
    /// Safe: it leaves nothing behind.
    async fn diagnose(&self) -> Vec<Finding>;

    /// Reports only how the server keeps delayed messages, for `machinist queues`. Writes nothing. Returns nothing where the
    /// server cannot be asked, or keeps no such messages.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    async fn diagnose_delays(&self) -> Vec<Finding> {
        Vec::new()
    }
}
