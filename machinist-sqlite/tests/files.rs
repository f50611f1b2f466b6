//! Files that cannot be used: each reason has its own error, which names the remedy, and the file stays unchanged.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use machinist_core::{backend::BackendError, broker::BrokerError};
use machinist_sqlite::{OpenError, SqliteOptions, SqliteStore};
use rusqlite::Connection;

async fn refusal(path: &Path) -> OpenError {
    match SqliteStore::open(path, SqliteOptions::default()).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => {
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            error
        }
    }
}

/// Asserts that opening `path` fails and changes nothing in its file.
async fn refusal_of(path: &Path, contents: &[u8]) -> OpenError {
    fs::write(path, contents).unwrap();
    let error = refusal(path).await;
    assert!(fs::read(path).unwrap() == contents, "the file was changed");
    error
}

/// Creates the file of a store, closes it, and returns its contents.
async fn sound_file(path: PathBuf) -> Vec<u8> {
    SqliteStore::open(&path, SqliteOptions::default()).await.unwrap().close().await;
    let db = Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(db);
    fs::read(path).unwrap()
}

#[tokio::test]
async fn a_path_that_is_not_a_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(directory.path()).await, OpenError::NotAFile { .. }));
    let path = directory.path().join("nowhere").join("m.db");
    assert!(matches!(refusal(&path).await, OpenError::NoDirectory { .. }));
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(refusal(&file.join("m.db")).await, OpenError::NoDirectory { .. }));
}

#[tokio::test]
async fn another_programs_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    for contents in [&b"x"[..], b"broker = \"amqp://localhost\"\n", &[0; 8192]] {
        assert!(matches!(refusal_of(&path, contents).await, OpenError::Foreign { .. }));
    }
    let other = directory.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE messages (id)").unwrap();
    let contents = fs::read(&other).unwrap();
    let error = refusal_of(&other, &contents).await;
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("another program"), "{error}");
}

#[tokio::test]
async fn a_newer_and_an_older_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    sound_file(path.clone()).await;
    for version in [99, 1] {
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "user_version", version).unwrap();
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        drop(db);
        let contents = fs::read(&path).unwrap();
        let error = refusal_of(&path, &contents).await;
        let remedy = match &error {
            OpenError::Newer { found: 99, known: 2, .. } => "update this program",
            OpenError::Older { found: 1, known: 2, .. } => "name another file",
            other => panic!("{other}"),
        };
        let text = BrokerError::from(error).to_string();
        assert!(text.contains(remedy), "{text}");
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let sound = sound_file(path.clone()).await;

    let mut scribbled = sound.clone();
    scribbled[200..].fill(0xA5);
    let error = refusal_of(&path, &scribbled).await;
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    let text = BackendError::from(error).to_string();
    assert!(text.contains(".recover"), "{text}");

    let error = refusal_of(&path, &sound[..5000]).await;
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let sound = sound_file(path.clone()).await;
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    let error = refusal(&path).await;
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
    assert!(fs::read(&path).unwrap() == sound);
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_a_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let store = SqliteStore::open(&path, SqliteOptions::default()).await.unwrap();
    for name in ["m.db", "m.db-wal", "m.db-shm"] {
        let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    assert_eq!(store.path(), path);
}

/// A question mark, a percent sign and a scheme have no special meaning in a path.
#[tokio::test]
async fn a_path_is_a_path() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a b?mode=memory", "file:x.db", "50%20.db", "ü"] {
        let path = directory.path().join(name);
        SqliteStore::open(&path, SqliteOptions::default()).await.unwrap().close().await;
        assert!(path.is_file(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_openers_may_create_the_file_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let openers: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { SqliteStore::open(path, SqliteOptions::default()).await })
        })
        .collect();
    for opener in openers {
        opener.await.unwrap().unwrap().close().await;
    }
}
