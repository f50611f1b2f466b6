//! Opening of the file. Each reason that a file cannot be used has its own error, and no failure loses data.
//!
//! Nothing is written before the file is known to be new or a machinist file.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use machinist_adapter::{backend::BackendError, broker::BrokerError, error::BoxError};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::{
    clock::HostClock,
    error::{StoreErrorKind, kind_of},
    options::{SqliteOptions, Synchronous},
    own_sessions,
    records::newest_wake_up,
};

/// `mcns`: identifies the database as a machinist file, to this crate and to `file`.
const APPLICATION_ID: i32 = 0x6d63_6e73;
const SCHEMA_VERSION: i32 = 2;
const SCHEMA: &str = include_str!("schema.sql");
/// Maximum time that opening waits for other processes that open, close or write the file.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason that a file cannot be used. The file is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory of the file does not exist.
    #[error("{}: the directory of the file does not exist; create it, or name another file", path.display())]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// The path names a directory, a device, a socket.
    #[error("{}: is not a file; name a file, which is created if it does not exist", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file or its directory cannot be written.
    #[error("{}: cannot be written; grant this user permission to write the file and its directory", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else: it is not an SQLite database, or it belongs to another program.
    #[error("{}: {found}; name another file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Description of the contents.
        found: String,
    },
    /// The file was written by a newer machinist.
    #[error(
        "{}: was written by a newer machinist (schema {found}, this program knows {known}); update this program",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema version in the file.
        found: i32,
        /// The newest schema version that this program knows.
        known: i32,
    },
    /// The file was written by an older machinist, and this program cannot convert it.
    #[error(
        "{}: was written by an older machinist (schema {found}, this program needs {known}); name another file, and let \
         the older program finish what this one holds",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The schema version in the file.
        found: i32,
        /// The schema version that this program needs.
        known: i32,
    },
    /// The file is damaged.
    #[error(
        "{}: the file is damaged; stop all processes that use it, keep a copy, and recover it with \
         `sqlite3 FILE .recover`",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Error of SQLite.
        #[source]
        source: BoxError,
    },
    /// The file system cannot share memory between processes, which the write-ahead log of SQLite needs.
    #[error("{}: its file system cannot hold a write-ahead log; use a local disk", path.display())]
    NoWal {
        /// The file.
        path: PathBuf,
    },
    /// Any other error: missing permissions, input and output errors, a file that stayed locked.
    #[error("{}: cannot be opened", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the operating system or of SQLite.
        #[source]
        source: BoxError,
    },
}

impl From<OpenError> for BrokerError {
    fn from(error: OpenError) -> Self {
        Self::Configuration(with_source(&error))
    }
}

impl From<OpenError> for BackendError {
    fn from(error: OpenError) -> Self {
        Self::Configuration(with_source(&error))
    }
}

/// Text of an error followed by that of its source.
fn with_source(error: &OpenError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Connections to an open file, one for each thread.
#[derive(Debug)]
pub(crate) struct FileConnections {
    pub(crate) path: PathBuf,
    pub(crate) namespace: i64,
    pub(crate) last_wake_up: i64,
    pub(crate) clock: HostClock,
    pub(crate) writer: Connection,
    pub(crate) reader: Connection,
    pub(crate) watcher: Connection,
}

/// Lock that allows one thread of this process at a time to open a file.
///
/// The locks of SQLite belong to the process, not to the descriptor: closing any descriptor of the file releases all of
/// them. So only SQLite opens the file, except for its creation, and no other thread of this process may have the file
/// open at that moment.
static OPEN_LOCK: Mutex<()> = Mutex::new(());

/// Opens or creates a file. Blocks.
pub(crate) fn open(path: &Path, options: &SqliteOptions) -> Result<FileConnections, OpenError> {
    let _guard = OPEN_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::path::absolute(path).map_err(|error| io_error(path, error))?;
    inspect(&path)?;
    let started = Instant::now();
    loop {
        // A process that creates the file, opens it first or closes it last locks the whole file for a moment. SQLite
        // reports that without calling the busy handler.
        match connect_all(&path, options) {
            Err(OpenAttemptError::Sqlite(error))
                if kind_of(&error) == StoreErrorKind::Busy && started.elapsed() < OPEN_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(OpenAttemptError::Sqlite(error)) => return Err(sqlite_error(&path, error)),
            Err(OpenAttemptError::Open(error)) => return Err(error),
            Ok(opened) => return Ok(opened),
        }
    }
}

/// Inspects the path without SQLite, whose errors would be less precise, and creates the file if it does not exist.
fn inspect(path: &Path) -> Result<(), OpenError> {
    let parent = path.parent().unwrap_or(path);
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(OpenError::NotAFile { path: path.to_owned() }),
        Ok(found) if found.permissions().readonly() => Err(OpenError::ReadOnly { path: path.to_owned() }),
        // SQLite treats a file that is shorter than its header as new and would overwrite it.
        Ok(found) if (1..512).contains(&found.len()) => Err(not_sqlite(path.to_owned())),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !parent.is_dir() {
                return Err(OpenError::NoDirectory { path: path.to_owned() });
            }
            create(path).map_err(|error| io_error(path, error))
        }
        Err(error) => Err(io_error(path, error)),
    }
}

/// Creates the file, unless another process created it first.
fn create(path: &Path) -> io::Result<()> {
    match create_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created.and_then(|()| sync_directory(path)),
    }
}

/// Creates a new, empty file, readable for its owner only: arguments and results of tasks are private.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.sync_all()
}

/// Syncs the directory of a file. Without this a power cut may lose the name of the file, and with it everything that was
/// synced into the file.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Opens a file that exists, through one connection. Returns `None` if there is none, or if it is empty. Blocks.
pub(crate) fn open_existing(path: &Path) -> Result<Option<Connection>, OpenError> {
    let _guard = OPEN_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::path::absolute(path).map_err(|error| io_error(path, error))?;
    if fs::metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    inspect(&path)?;
    let db = connect(&path).map_err(|error| sqlite_error(&path, error))?;
    Ok(holds_schema(&db, &path)?.then_some(db))
}

/// Error of one attempt to open the file.
enum OpenAttemptError {
    Open(OpenError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for OpenAttemptError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn connect_all(path: &Path, options: &SqliteOptions) -> Result<FileConnections, OpenAttemptError> {
    let mut writer = connect(path)?;
    if !holds_schema(&writer, path).map_err(OpenAttemptError::Open)? {
        ensure_wal(&writer, path)?;
        create_schema(&mut writer, path)?;
    }
    ensure_wal(&writer, path)?;
    if writer.is_readonly("main")? {
        return Err(OpenAttemptError::Open(OpenError::ReadOnly { path: path.to_owned() }));
    }
    writer.pragma_update(None, "synchronous", options.synchronous.name())?;
    if options.synchronous == Synchronous::Full {
        // On systems where a plain sync stops at the cache of the drive (macOS), FULL would not hold without this.
        writer.pragma_update(None, "fullfsync", true)?;
    }
    // A checkpoint syncs twice, so it should not run after every 4 MiB. A log that grew in a burst is truncated.
    writer.pragma_update(None, "wal_autocheckpoint", 4000)?;
    writer.pragma_update(None, "journal_size_limit", 64 << 20)?;
    let namespace = namespace_id(&writer, &options.namespace)?;
    let clock = HostClock::open(&writer)?;
    writer.execute_batch(own_sessions::SCHEMA)?;
    let reader = connect(path)?;
    let watcher = connect(path)?;
    for connection in [&reader, &watcher] {
        connection.pragma_update(None, "query_only", true)?;
    }
    let last_wake_up = newest_wake_up(&writer)?;
    Ok(FileConnections { path: path.to_owned(), namespace, last_wake_up, clock, writer, reader, watcher })
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // No SQLITE_OPEN_CREATE: the file is created with the permissions above or not at all.
    // No SQLITE_OPEN_URI: a path is only a path.
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_handler(Some(wait_for_others))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "cache_size", -16_000)?;
    Ok(connection)
}

/// Retries at short intervals, for about 20 s in total. The default handler of SQLite soon sleeps for 100 ms at a time,
/// so it loses every race against a busy writer.
fn wait_for_others(tries: i32) -> bool {
    let pause = match tries {
        0..500 => Duration::from_micros(100),
        500..2_000 => Duration::from_millis(1),
        2_000..5_500 => Duration::from_millis(5),
        _ => return false,
    };
    std::thread::sleep(pause);
    true
}

/// Values that identify the program and the schema of an SQLite file.
struct FileIdentity {
    application: i32,
    schema: i32,
    /// Number of tables and indexes.
    objects: i32,
}

/// Returns `true` if the file holds the tables of this crate, and `false` if it is new.
fn holds_schema(connection: &Connection, path: &Path) -> Result<bool, OpenError> {
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i32>(0));
    let read = || {
        // One snapshot: between two reads another process may create the tables.
        let _snapshot = connection.is_autocommit().then(|| connection.unchecked_transaction()).transpose()?;
        Ok(FileIdentity {
            application: number("PRAGMA application_id")?,
            schema: number("PRAGMA user_version")?,
            objects: number("SELECT count(*) FROM sqlite_schema")?,
        })
    };
    match read().map_err(|error| sqlite_error(path, error))? {
        FileIdentity { application: 0, schema: 0, objects: 0 } => Ok(false),
        FileIdentity { application: APPLICATION_ID, schema: SCHEMA_VERSION, .. } => Ok(true),
        FileIdentity { application: APPLICATION_ID, schema: found, .. } if found > SCHEMA_VERSION => {
            Err(OpenError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION })
        }
        FileIdentity { application: APPLICATION_ID, schema: found, .. } => {
            Err(OpenError::Older { path: path.to_owned(), found, known: SCHEMA_VERSION })
        }
        _ => Err(OpenError::Foreign {
            path: path.to_owned(),
            found: "is the SQLite database of another program".to_owned(),
        }),
    }
}

fn ensure_wal(connection: &Connection, path: &Path) -> Result<(), OpenAttemptError> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode == "wal" {
        Ok(())
    } else {
        Err(OpenAttemptError::Open(OpenError::NoWal { path: path.to_owned() }))
    }
}

fn create_schema(connection: &mut Connection, path: &Path) -> Result<(), OpenAttemptError> {
    let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Another process may have created it first.
    if !holds_schema(&change, path).map_err(OpenAttemptError::Open)? {
        change.execute_batch(SCHEMA)?;
        change.pragma_update(None, "application_id", APPLICATION_ID)?;
        change.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    change.commit()?;
    Ok(())
}

fn namespace_id(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    let find = || connection.query_row("SELECT id FROM namespaces WHERE name = ?1", [name], |row| row.get(0));
    match find() {
        Err(rusqlite::Error::QueryReturnedNoRows) => {
            connection.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?1)", [name])?;
            find()
        }
        found => found,
    }
}

fn not_sqlite(path: PathBuf) -> OpenError {
    OpenError::Foreign { path, found: "is not an SQLite database".to_owned() }
}

fn io_error(path: &Path, error: io::Error) -> OpenError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::ReadOnly { path },
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::NoDirectory { path },
        _ => OpenError::Io { path, source: error.into() },
    }
}

fn sqlite_error(path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match kind_of(&error) {
        StoreErrorKind::ReadOnly => OpenError::ReadOnly { path },
        StoreErrorKind::Corrupt if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            not_sqlite(path)
        }
        StoreErrorKind::Corrupt => OpenError::Damaged { path, source: error.into() },
        _ => OpenError::Io { path, source: error.into() },
    }
}
