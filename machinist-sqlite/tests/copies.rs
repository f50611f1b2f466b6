//! Copies of the file: of one that nobody uses, with the means of the operating system, and of one in use.

#![expect(
    clippy::unwrap_used,
    clippy::exit,
    reason = "a panic is the report, and a test process ends like the program"
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use machinist_core::{
    backend::{Backend, Commit, Expiry},
    broker::{Broker, Consume, Settle},
    id::TaskId,
};
use machinist_sqlite::{BackUpError, SqliteStore, back_up};
use support::{message, open, queue};

const ROLE_VARIABLE: &str = "MACHINIST_SQLITE_COPIES_ROLE";
const FILE_VARIABLE: &str = "MACHINIST_SQLITE_COPIES_FILE";

/// Sends a message and writes a record of the same name.
async fn send(store: &SqliteStore, name: &str) {
    store.broker().publish(vec![message(name)]).await.remove(0).unwrap();
    let commit = Commit {
        facts: vec![("name".into(), "1".into())],
        expiry: Expiry::Keep,
        ..Commit::new(TaskId::parse(name).unwrap())
    };
    store.backend().commit(vec![commit.into()]).await.remove(0).unwrap();
}

/// Not a test: a process that sends one task and ends like the program, without closing the store.
#[tokio::test]
async fn sender() {
    let Ok(name) = std::env::var(ROLE_VARIABLE) else { return };
    let store = open(&PathBuf::from(std::env::var_os(FILE_VARIABLE).unwrap())).await;
    send(&store, &name).await;
    drop(store);
    std::process::exit(0);
}

fn start_sender(path: &Path, name: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sender"])
        .env(ROLE_VARIABLE, name)
        .env(FILE_VARIABLE, path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Asserts that the copy holds exactly these messages and their records.
async fn holds(copy: &Path, names: &[String]) {
    let store = open(copy).await;
    let depth = store.broker().depth(&[queue()]).await.unwrap().remove(0);
    assert_eq!(depth.ready, Some(names.len() as u64), "{names:?}");
    let ids: Vec<_> = names.iter().map(|name| TaskId::parse(name).unwrap().into()).collect();
    assert!(store.backend().read(&ids).await.unwrap().iter().all(|facts| facts.len() == 1));
    store.close().await;
}

fn is_one_file(path: &Path) -> bool {
    ["-wal", "-shm"].iter().all(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        !Path::new(&name).exists()
    })
}

#[tokio::test]
async fn a_file_that_nobody_uses_is_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let mut names = Vec::new();
    for round in 0..10 {
        // Two processes that end at about the same time, and then one.
        let mut running: Vec<_> = (0..2)
            .map(|n| (format!("t-{round}-{n}"), n))
            .map(|(name, _)| (start_sender(&path, &name), name))
            .collect();
        let last = running.len();
        for (child, name) in &mut running {
            assert!(child.wait().unwrap().success());
            names.push(name.clone());
        }
        assert_eq!(last, 2);
        let copy = directory.path().join(format!("copy-{round}"));
        fs::copy(&path, &copy).unwrap();
        holds(&copy, &names).await;
    }
    let store = open(&path).await;
    send(&store, "closed").await;
    names.push("closed".to_owned());
    let consumer = store.broker().consume(Consume { queues: vec![queue()], prefetch: 1 }).await.unwrap();
    store.close().await;
    assert!(is_one_file(&path), "after close");
    drop((consumer, store));

    let store = open(&path).await;
    send(&store, "dropped").await;
    names.push("dropped".to_owned());
    drop(store);
    assert!(is_one_file(&path), "after the last drop");
    let copy = directory.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    holds(&copy, &names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_use_is_copied_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let store = open(&path).await;
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0.. {
                send(&store, &format!("w-{number}")).await;
            }
        }
    });
    for round in 0..5 {
        let name = format!("sent-{round}");
        send(&store, &name).await;
        let copy = directory.path().join(format!("copy-{round}"));
        let size = back_up(&path, &copy).await.unwrap();
        assert_eq!(size, fs::metadata(&copy).unwrap().len());
        assert!(is_one_file(&copy));
        #[cfg(unix)]
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&copy).unwrap().permissions()) & 0o777,
            0o600
        );
        let copied = open(&copy).await;
        let id = TaskId::parse(&name).unwrap();
        assert!(!copied.backend().read(&[id.into()]).await.unwrap()[0].is_empty(), "it was confirmed before");
        let mut consumer =
            copied.broker().consume(Consume { queues: vec![queue()], prefetch: 10 }).await.unwrap();
        let delivery = consumer.next().await.unwrap();
        delivery.receipt.settle(Settle::Ack).await;
        consumer.stop().await;
        copied.close().await;
        let again = back_up(&path, &copy).await.unwrap_err();
        assert!(matches!(again, BackUpError::Exists { .. }), "{again}");
    }
    writing.abort();
    let parts = fs::read_dir(directory.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part"));
    assert_eq!(parts.count(), 0);
}

#[tokio::test]
async fn nothing_is_copied_from_what_is_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("m.db"), directory.path().join("copy"));
    let error = back_up(&path, &copy).await.unwrap_err();
    assert!(matches!(error, BackUpError::NoFile { .. }), "{error}");
    assert!(!path.exists() && !copy.exists());
    fs::write(&path, "x".repeat(600)).unwrap();
    let error = back_up(&path, &copy).await.unwrap_err();
    assert!(matches!(error, BackUpError::File(_)), "{error}");
    fs::remove_file(&path).unwrap();
    open(&path).await.close().await;
    let error = back_up(&path, directory.path().join("nowhere").join("copy")).await.unwrap_err();
    assert!(matches!(error, BackUpError::Copy { .. }), "{error}");
}
