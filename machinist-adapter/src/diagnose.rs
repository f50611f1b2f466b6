//! What a server says about itself, for `machinist doctor` and for a worker's start.
//!
//! An adapter knows best what is wrong with its server and what to do about it, so it says so in words that need
//! no translation.

use async_trait::async_trait;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// It works; something is at risk.
    Warning,
    /// It does not work.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at: `version`, `eviction policy`, `permissions`.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    /// All is well.
    pub fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Good, subject: subject.into(), found: found.into(), remedy: String::new() }
    }

    /// It works, and something is at risk.
    pub fn warning(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, subject: subject.into(), found: found.into(), remedy: remedy.into() }
    }

    /// It does not work.
    pub fn error(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, subject: subject.into(), found: found.into(), remedy: remedy.into() }
    }
}

/// A server, or what stands for one, that can be examined.
#[async_trait]
pub trait Diagnose {
    /// Where it is, for people: a URL without password, a file, `memory`.
    fn location(&self) -> String;

    /// Reaches the server and tells what it finds: its version, what this user may do, how it keeps what it was
    /// given. A server that cannot be reached is a finding of level error, not a failure of this call.
    ///
    /// # Cancel safety
    /// Safe: it leaves nothing behind.
    async fn diagnose(&self) -> Vec<Finding>;
}
