//! The few things about the file that can be chosen.

/// How hard a commit is pressed to the disk before anybody is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Synced before the answer: what was answered survives a power cut. The default.
    #[default]
    Full,
    /// Written before the answer, synced now and then: a killed process loses nothing, a power cut or a crashed
    /// operating system may lose the last commits. Several times faster on most disks.
    Normal,
}

impl Synchronous {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

/// How a file is used. [`Default`] is right for most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// Queues, records, sessions and lists of one namespace know nothing of another's in the same file.
    /// `machinist` by default.
    pub namespace: String,
    /// What a commit survives. Each process chooses for its own.
    pub synchronous: Synchronous,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { namespace: "machinist".to_owned(), synchronous: Synchronous::default() }
    }
}
