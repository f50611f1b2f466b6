//! Who holds messages, and how others learn that a holder is dead.
//!
//! A process that consumes has a row in `owners`; every message that it has claimed carries the row's id. Two
//! signs tell the others that it is gone, and then anybody hands its messages back:
//!
//! - *A lock that is free.* The owner holds an operating-system lock on a file of its own in `FILE-owners/`. The
//!   system lets go of it when the process ends, however it ends, so a killed worker's messages are back within
//!   two seconds.
//! - *A beat that stands still.* The owner raises a number in its row every two seconds. Whoever finds it
//!   unchanged at six looks in a row, two seconds apart, takes the owner for gone, whatever the lock says: a stopped
//!   process holds its lock for ever. Looks are counted rather than seconds, so neither a clock that is set nor a
//!   machine that slept through the night looks like a death.
//!
//! An owner that was only slow finds its row gone, gets a new one, and its old receipts settle nothing.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use machinist_core::clock::Timestamp;
use rusqlite::{Connection, params};

use crate::messages;

/// How often an owner beats and looks at the others.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// So many looks in a row must find the same beat.
const STALE_CHECKS_OF_DEAD: u32 = 6;

/// One owner's time: from its row to the loss of it. Receipts point here.
#[derive(Debug)]
pub(crate) struct OwnerRegistration {
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

/// The lock that tells the others that this process lives. Dropping it says that it does not.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    path: PathBuf,
    _file: File,
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // Only tidiness: a file that stays behind is free, and its number never comes back.
        let _ = fs::remove_file(&self.path);
    }
}

/// The directory beside the file that holds the locks of owners, and the sockets of those who wait.
pub(crate) fn directory(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push("-owners");
    name.into()
}

/// Makes that directory, for the file's user only.
pub(crate) fn make_directory(file: &Path) -> std::io::Result<PathBuf> {
    let directory = directory(file);
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(&directory)?;
    Ok(directory)
}

/// Makes a new owner. Its lock is held before its row can be seen.
pub(crate) fn register(
    db: &Connection,
    file: &Path,
    now: Timestamp,
) -> rusqlite::Result<(OwnerRegistration, Option<OwnerLock>)> {
    let owner = db
        .prepare_cached("INSERT INTO owners (beat, pid, since) VALUES (0, ?1, ?2)")?
        .insert(params![std::process::id(), now.as_micros()])?;
    let lock = match acquire_lock(file, owner) {
        Ok(lock) => Some(lock),
        Err(error) => {
            // The beat alone does the work, only later.
            tracing::warn!(file = %file.display(), %error, "no lock file for this process: if it is killed, \
                its messages come back after 12 s instead of 2 s");
            None
        }
    };
    Ok((OwnerRegistration { owner, ended: AtomicBool::new(false) }, lock))
}

fn acquire_lock(file: &Path, owner: i64) -> std::io::Result<OwnerLock> {
    let directory = make_directory(file)?;
    let path = directory.join(owner.to_string());
    let file_handle = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
    file_handle.try_lock()?;
    Ok(OwnerLock { path, _file: file_handle })
}

/// Raises the beat; tells whether the owner is still known.
pub(crate) fn raise_heartbeat(db: &Connection, owner: i64) -> rusqlite::Result<bool> {
    Ok(db.prepare_cached("UPDATE owners SET beat = beat + 1 WHERE id = ?1")?.execute([owner])? > 0)
}

pub(crate) fn is_known(db: &Connection, owner: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM owners WHERE id = ?1")?.exists([owner])
}

/// Takes an owner off the list and hands back what it held; tells whether it held anything.
pub(crate) fn remove(db: &Connection, owner: i64) -> rusqlite::Result<bool> {
    let held = messages::release(db, owner)?;
    db.prepare_cached("DELETE FROM subscriptions WHERE owner = ?1")?.execute([owner])?;
    db.prepare_cached("DELETE FROM owners WHERE id = ?1")?.execute([owner])?;
    Ok(held)
}

/// Notes `change` more subscriptions of an owner to a queue. People read them, nothing is decided on them.
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

/// What this process has seen of the others.
#[derive(Debug, Default)]
pub(crate) struct FailureDetector(HashMap<i64, (i64, u32)>);

/// An owner found dead. Keeps its lock, where that was the sign, so that nobody else acts on it meanwhile.
#[derive(Debug)]
pub(crate) struct DeadOwner {
    pub(crate) owner: i64,
    pub(crate) evidence: &'static str,
    _lock: Option<OwnerLock>,
}

impl FailureDetector {
    /// Looks at every owner but `own`, and returns those that are dead.
    pub(crate) fn find_dead(
        &mut self,
        db: &Connection,
        file: &Path,
        own: Option<i64>,
    ) -> rusqlite::Result<Vec<DeadOwner>> {
        let beats = db
            .prepare_cached("SELECT id, beat FROM owners WHERE id IS NOT ?1")?
            .query_map([own], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(i64, i64)>>>()?;
        self.0.retain(|owner, _| beats.iter().any(|(known, _)| known == owner));
        let directory = directory(file);
        let check = |&(owner, beat): &(i64, i64)| {
            let path = directory.join(owner.to_string());
            if let Some(lock) = take_lock(path) {
                return Some(DeadOwner { owner, evidence: "its lock is free", _lock: Some(lock) });
            }
            self.is_stale(owner, beat).then_some(DeadOwner {
                owner,
                evidence: "its beat stands still",
                _lock: None,
            })
        };
        Ok(beats.iter().filter_map(check).collect())
    }

    fn is_stale(&mut self, owner: i64, beat: i64) -> bool {
        let (last, stale_checks) = self.0.entry(owner).or_insert((beat, 0));
        *stale_checks = if *last == beat { *stale_checks + 1 } else { 1 };
        *last = beat;
        *stale_checks > STALE_CHECKS_OF_DEAD
    }
}

/// The lock of an owner, if nobody holds it. A file that is missing proves nothing.
fn take_lock(path: PathBuf) -> Option<OwnerLock> {
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
    fn only_a_beat_that_stands_still_look_after_look_is_a_death() {
        let mut detector = FailureDetector::default();
        for beat in 0..20 {
            assert!(!detector.is_stale(1, beat));
        }
        let dead = (0..20).position(|_| detector.is_stale(1, 19)).unwrap();
        assert_eq!(dead, 5, "the look that saw 19 first, and six more");
    }

    #[test]
    fn a_lock_is_free_only_once_its_owner_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("m.db");
        let lock = acquire_lock(&file, 7).unwrap();
        let path = directory(&file).join("7");
        assert!(take_lock(path.clone()).is_none());
        assert!(acquire_lock(&file, 7).is_err());
        fs::hard_link(&path, directory(&file).join("8")).unwrap();
        drop(lock);
        assert!(!path.exists());
        assert!(take_lock(path).is_none(), "a missing file proves nothing");
        assert!(take_lock(directory(&file).join("8")).is_some());
    }
}
