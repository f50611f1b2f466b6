//! The few options of a file.

/// Durability of a commit before its caller is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Commits are synced before the answer, so they survive a power cut. The default.
    #[default]
    Full,
    /// Commits are written before the answer and synced at intervals. A killed process loses nothing; a power cut or a
    /// crash of the operating system may lose the last commits. Several times faster on most disks.
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

/// Options of a file. [`Default`] suits most uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// Namespace in the file. Its queues, records and indexes are separate from those of the other
    /// namespaces in the same file. `machinist` by default.
    pub namespace: String,
    /// Durability of the commits of this process. Other processes may choose another.
    pub synchronous: Synchronous,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { namespace: "machinist".to_owned(), synchronous: Synchronous::default() }
    }
}
