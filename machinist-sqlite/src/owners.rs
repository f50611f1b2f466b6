//! The owners of claimed messages, and the detection of owners that are dead.
//!
//! A process that consumes has a row in `owners`, and every message that it has claimed carries the id of that row.
//! Two signs show the others that the owner is dead. Any of them then hands its messages back:
//!
//! - *A free lock.* The owner holds an operating-system lock on its file in `FILE-owners/`. The system releases the
//!   lock when the process ends, however it ends, so the messages of a killed worker are back within two seconds.
//! - *A stale heartbeat.* The owner raises a number in its row every two seconds. A process that finds the number
//!   unchanged in six checks in a row, two seconds apart, declares the owner dead regardless of the lock: a stopped
//!   process holds its lock forever. Checks are counted instead of seconds, so neither a clock that was set nor a
//!   machine that was suspended overnight looks like a death.
//!
//! An owner that was only slow finds its row deleted, registers again, and its old receipts settle nothing.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use machinist_adapter::clock::Timestamp;
use rusqlite::{Connection, params};

use crate::{messages, own_sessions};

/// Interval between two heartbeats of an owner, and between two of its checks of the others.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// Number of checks in a row that must find an unchanged heartbeat before its owner is declared dead.
const STALE_CHECKS_UNTIL_DEAD: u32 = 6;

/// Registration of this process as an owner, from the insertion of its row to the loss of it. Receipts refer to it.
#[derive(Debug)]
pub(crate) struct OwnerRegistration {
    /// Id of the row in `owners`.
    pub(crate) owner: i64,
    ended: AtomicBool,
}

impl OwnerRegistration {
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// This process as an owner: its registration, and its lock if one could be acquired.
#[derive(Debug)]
pub(crate) struct RegisteredOwner {
    pub(crate) registration: Arc<OwnerRegistration>,
    _lock: Option<OwnerLock>,
}

impl RegisteredOwner {
    /// Id of the row in `owners`.
    pub(crate) fn id(&self) -> i64 {
        self.registration.owner
    }
}

/// Lock that shows the others that its owner is alive. Dropping it shows that the owner is gone.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    path: PathBuf,
    _file: File,
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // Only for tidiness: a file that is left behind is not locked, and its number is never used again.
        let _ = fs::remove_file(&self.path);
    }
}

/// Path of the directory next to the file that holds the locks of owners and the sockets of wake-up listeners.
pub(crate) fn directory(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push("-owners");
    name.into()
}

/// Creates that directory, accessible only to the user of the process.
pub(crate) fn create_directory(file: &Path) -> std::io::Result<PathBuf> {
    let directory = directory(file);
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(&directory)?;
    Ok(directory)
}

/// Registers this process as a new owner. Its lock is held before its row becomes visible.
pub(crate) fn register(db: &Connection, file: &Path, now: Timestamp) -> rusqlite::Result<RegisteredOwner> {
    let owner = db
        .prepare_cached("INSERT INTO owners (beat, pid, since) VALUES (0, ?1, ?2)")?
        .insert(params![std::process::id(), now.as_micros()])?;
    let lock = match acquire_new_lock(file, owner) {
        Ok(lock) => Some(lock),
        Err(error) => {
            // The heartbeat alone is enough, only slower.
            tracing::warn!(file = %file.display(), %error, "cannot lock a file for this process: if it is killed, \
                its messages come back after 12 s instead of 2 s");
            None
        }
    };
    let registration = OwnerRegistration { owner, ended: AtomicBool::new(false) };
    Ok(RegisteredOwner { registration: Arc::new(registration), _lock: lock })
}

fn acquire_new_lock(file: &Path, owner: i64) -> std::io::Result<OwnerLock> {
    let path = create_directory(file)?.join(owner.to_string());
    let lock_file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
    lock_file.try_lock()?;
    Ok(OwnerLock { path, _file: lock_file })
}

/// Raises the heartbeat of an owner. Returns `false` if the owner is no longer registered.
pub(crate) fn raise_heartbeat(db: &Connection, owner: i64) -> rusqlite::Result<bool> {
    Ok(db.prepare_cached("UPDATE owners SET beat = beat + 1 WHERE id = ?1")?.execute([owner])? > 0)
}

/// Returns `true` if the owner has a row.
pub(crate) fn is_registered(db: &Connection, owner: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM owners WHERE id = ?1")?.exists([owner])
}

/// Deletes an owner and hands back the messages that it held. Returns `true` if it held any.
pub(crate) fn remove(db: &Connection, owner: i64) -> rusqlite::Result<bool> {
    let held = messages::release(db, owner)?;
    own_sessions::forget(db, owner)?;
    db.prepare_cached("DELETE FROM subscriptions WHERE owner = ?1")?.execute([owner])?;
    db.prepare_cached("DELETE FROM owners WHERE id = ?1")?.execute([owner])?;
    Ok(held)
}

/// Adds `change` to the number of an owner's subscriptions to a queue. The number is for people; no decision depends
/// on it.
pub(crate) fn count_subscriptions(
    db: &Connection,
    owner: i64,
    queue: i64,
    change: i64,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO subscriptions (owner, queue, count) VALUES (?1, ?2, ?3) \
         ON CONFLICT (owner, queue) DO UPDATE SET count = count + ?3",
    )?
    .execute([owner, queue, change])?;
    Ok(())
}

/// Detects the death of other owners from their locks and heartbeats.
#[derive(Debug, Default)]
pub(crate) struct FailureDetector {
    /// Last observed heartbeat of each owner.
    heartbeats: HashMap<i64, ObservedHeartbeat>,
}

#[derive(Debug)]
struct ObservedHeartbeat {
    beat: i64,
    /// Number of checks in a row that found this heartbeat.
    checks: u32,
}

/// Owner that was found dead. If its free lock was the evidence, the lock is held here, so that no other process acts
/// on the owner at the same time.
#[derive(Debug)]
pub(crate) struct DeadOwner {
    pub(crate) owner: i64,
    pub(crate) evidence: &'static str,
    lock: Option<OwnerLock>,
}

impl DeadOwner {
    /// Returns `true` if its process is certainly gone. A stale heartbeat may be that of a stopped process.
    pub(crate) fn is_certainly_gone(&self) -> bool {
        self.lock.is_some()
    }
}

impl FailureDetector {
    /// Checks every owner except `own` and returns those that are dead.
    pub(crate) fn find_dead(
        &mut self,
        db: &Connection,
        file: &Path,
        own: Option<i64>,
    ) -> rusqlite::Result<Vec<DeadOwner>> {
        let beats = db
            .prepare_cached("SELECT id, CAST(beat AS INTEGER) FROM owners WHERE id IS NOT ?1")?
            .query_map([own], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(i64, i64)>>>()?;
        self.heartbeats.retain(|owner, _| beats.iter().any(|(known, _)| known == owner));
        let directory = directory(file);
        let check = |&(owner, beat): &(i64, i64)| {
            let path = directory.join(owner.to_string());
            if let Some(lock) = take_free_lock(path) {
                return Some(DeadOwner { owner, evidence: "its lock is free", lock: Some(lock) });
            }
            let evidence = "its heartbeat is stale";
            self.is_stale(owner, beat).then_some(DeadOwner { owner, evidence, lock: None })
        };
        Ok(beats.iter().filter_map(check).collect())
    }

    fn is_stale(&mut self, owner: i64, beat: i64) -> bool {
        let observed = self.heartbeats.entry(owner).or_insert(ObservedHeartbeat { beat, checks: 0 });
        observed.checks = if observed.beat == beat { observed.checks + 1 } else { 1 };
        observed.beat = beat;
        observed.checks > STALE_CHECKS_UNTIL_DEAD
    }
}

/// Takes the lock of an owner if it is free. A missing file proves nothing.
fn take_free_lock(path: PathBuf) -> Option<OwnerLock> {
    let file = File::open(&path).ok()?;
    match file.try_lock() {
        Ok(()) => Some(OwnerLock { path, _file: file }),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_heartbeat_that_is_unchanged_in_check_after_check_is_a_death() {
        let mut detector = FailureDetector::default();
        for beat in 0..20 {
            assert!(!detector.is_stale(1, beat));
        }
        let dead = (0..20).position(|_| detector.is_stale(1, 19)).unwrap();
        assert_eq!(dead, 5, "the check that saw 19 first, and six more");
    }

    #[test]
    fn a_lock_is_free_only_after_its_owner_is_gone() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("m.db");
        let lock = acquire_new_lock(&file, 7).unwrap();
        let path = directory(&file).join("7");
        assert!(take_free_lock(path.clone()).is_none());
        assert!(acquire_new_lock(&file, 7).is_err());
        fs::hard_link(&path, directory(&file).join("8")).unwrap();
        drop(lock);
        assert!(!path.exists());
        assert!(take_free_lock(path).is_none(), "a missing file proves nothing");
        assert!(take_free_lock(directory(&file).join("8")).is_some());
    }
}
