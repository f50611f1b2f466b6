//! The time of the file: the clock of the host, as all processes on it see it, and never set back.
//!
//! The file stores one instant of its time together with the host's uptime at that instant. Uptime is a clock that nobody
//! sets and that all processes of a host share, so each of them computes the same time from that row. Every transaction
//! compares the result with the host's clock:
//!
//! - They agree, but for a few milliseconds or a jump forward of at most [`MAX_JUMP`]: the time is that of the host's clock.
//! - The host's clock is behind, because it was set back: the time runs at half speed until the clock has caught up. A
//!   delay is never shorter then, a lease expires, and an expired record does not become visible again.
//! - The host's clock is far ahead, because it was set forward: the time goes on without a jump, and follows the clock only
//!   if that is still ahead after [`TRIAL`]. A clock that is set wrong and at once right again changes nothing.
//!
//! After a restart of the host, or where no uptime can be read, the time is that of the host's clock or the stored one,
//! whichever is later.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use machinist_adapter::clock::{Timestamp, wall};
use rusqlite::{Connection, OptionalExtension, params};

/// Created in every file that lacks it: files of schema version 2 may.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS clock (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  boot   TEXT NOT NULL,
  uptime INTEGER NOT NULL,
  at     INTEGER NOT NULL,
  course TEXT NOT NULL
)";
/// Maximum jump forward that is followed at once.
const MAX_JUMP: Duration = Duration::from_secs(5);
/// Time for which a clock must stay ahead before a larger jump is followed.
const TRIAL: Duration = Duration::from_secs(60);
/// Age at which a transaction stores the time again. Only then is a step of the host's clock seen as one.
const REFRESH: Duration = Duration::from_secs(5);
/// Difference between the clocks that is no step, apart from their drift.
const TOLERANCE: Duration = Duration::from_millis(20);

/// Relation between the time of the file and the clock of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// They agree.
    Together,
    /// The host's clock was set back: the file's time runs at half speed.
    Slow,
    /// The host's clock was set forward by more than is followed at once.
    Trial,
}

impl Course {
    const fn name(self) -> &'static str {
        match self {
            Self::Together => "together",
            Self::Slow => "slow",
            Self::Trial => "trial",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Together, Self::Slow, Self::Trial].into_iter().find(|course| course.name() == name)
    }
}

/// The clocks of the host, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostReading {
    wall: Timestamp,
    /// Time since the start of the host; zero where it cannot be read.
    uptime: Duration,
}

/// The stored time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTime {
    boot: String,
    uptime: Duration,
    at: Timestamp,
    course: Course,
}

impl StoredTime {
    /// The stored time of a file that has none, or of an earlier start of the host: `least` is the latest time that is
    /// known.
    fn begin(boot: &str, least: Timestamp, host: HostReading) -> Self {
        let course = if least > host.wall.plus(TOLERANCE) { Course::Slow } else { Course::Together };
        Self { boot: boot.to_owned(), uptime: host.uptime, at: least.max(host.wall), course }
    }

    /// Returns the time that has passed since, if it is known.
    fn elapsed(&self, boot: &str, host: HostReading) -> Option<Duration> {
        (self.boot == boot)
            .then(|| host.uptime.checked_sub(self.uptime))
            .flatten()
            .filter(|_| !boot.is_empty())
    }

    /// Returns the stored time that holds now. It is the same for all processes.
    fn now(&self, boot: &str, host: HostReading) -> Self {
        let Some(elapsed) = self.elapsed(boot, host) else {
            return Self::begin(boot, self.at, host);
        };
        let expected = self.at.plus(elapsed);
        let tolerance = TOLERANCE + elapsed / 1000;
        let (at, course) = match self.course {
            Course::Slow => {
                let slow = self.at.plus(elapsed / 2);
                match host.wall >= slow {
                    // Not faster than it was: a clock that is set right again is a step like any other.
                    true if host.wall <= expected.plus(MAX_JUMP) => (host.wall, Course::Together),
                    true => (expected, Course::Trial),
                    false => (slow, Course::Slow),
                }
            }
            Course::Together | Course::Trial if host.wall < expected.minus(tolerance) => {
                (expected, Course::Slow)
            }
            Course::Together | Course::Trial if host.wall <= expected.plus(MAX_JUMP) => {
                (host.wall.max(self.at), Course::Together)
            }
            Course::Trial if elapsed >= TRIAL => (host.wall, Course::Together),
            Course::Together | Course::Trial => (expected, Course::Trial),
        };
        Self { boot: boot.to_owned(), uptime: host.uptime, at, course }
    }

    /// Returns `true` if this one must replace the stored one: its course has changed, or the stored one is old. During a
    /// trial the stored one stays, because its age is that of the trial.
    fn must_replace(&self, stored: &Self) -> bool {
        let age = self.uptime.saturating_sub(stored.uptime);
        self.course != stored.course
            || self.boot != stored.boot
            || (self.course != Course::Trial && age >= REFRESH)
    }
}

/// Clock of an open file, shared by the threads of its store.
#[derive(Debug)]
pub(crate) struct HostClock {
    boot: String,
    state: Mutex<HostClockState>,
}

#[derive(Debug)]
struct HostClockState {
    stored: StoredTime,
    /// The latest time that this process has shown.
    latest: Timestamp,
}

impl HostClock {
    /// Opens the clock of a file. Blocks while another process writes, if the file has none yet.
    pub(crate) fn open(db: &Connection) -> rusqlite::Result<Self> {
        db.execute_batch(SCHEMA)?;
        let (boot, host) = (boot_id(), read_host());
        let stored = load(db)?.unwrap_or_else(|| StoredTime::begin(&boot, host.wall, host));
        let latest = stored.now(&boot, host).at;
        Ok(Self { boot, state: Mutex::new(HostClockState { stored, latest }) })
    }

    fn state(&self) -> MutexGuard<'_, HostClockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time by what this process last read from the file.
    pub(crate) fn now(&self) -> Timestamp {
        let host = read_host();
        let mut state = self.state();
        state.latest = state.latest.max(state.stored.now(&self.boot, host).at);
        state.latest
    }

    /// Returns the time by what the file holds.
    pub(crate) fn read(&self, db: &Connection) -> rusqlite::Result<Timestamp> {
        if let Some(stored) = load(db)? {
            self.state().stored = stored;
        }
        Ok(self.now())
    }

    /// Returns the time of a transaction that writes, and stores it if that is due. Returns the change of course to report
    /// after the commit, if there is one.
    pub(crate) fn stamp(&self, db: &Connection) -> rusqlite::Result<(Timestamp, Option<CourseChange>)> {
        let stored = load(db)?;
        let host = read_host();
        let mut state = self.state();
        let mut next = match &stored {
            Some(stored) => stored.now(&self.boot, host),
            None => StoredTime::begin(&self.boot, state.latest, host),
        };
        next.at = next.at.max(state.latest);
        let mut change = None;
        if stored.as_ref().is_none_or(|stored| next.must_replace(stored)) {
            store(db, &next)?;
            let before = stored.as_ref().map_or(Course::Together, |stored| stored.course);
            change = (before != next.course).then_some(CourseChange {
                course: next.course,
                wall: host.wall,
                time: next.at,
            });
            state.stored = next.clone();
        } else if let Some(stored) = stored {
            state.stored = stored;
        }
        state.latest = next.at;
        Ok((next.at, change))
    }

    /// Returns the difference between the host's clock and the time of the file, for a diagnosis.
    pub(crate) fn deviation(&self) -> Deviation {
        let (time, host) = (self.now(), read_host().wall);
        if time > host { Deviation::Ahead(time.since(host)) } else { Deviation::Behind(host.since(time)) }
    }
}

/// Difference between the time of the file and the host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deviation {
    Ahead(Duration),
    Behind(Duration),
}

/// Beginning or end of a disagreement between the file's time and the host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CourseChange {
    course: Course,
    wall: Timestamp,
    time: Timestamp,
}

impl CourseChange {
    /// Logs the change.
    pub(crate) fn report(self, path: &std::path::Path) {
        let (file, time, host) = (path.display(), self.time, self.wall);
        match self.course {
            Course::Together => {
                tracing::info!(%file, %time, "the time of the file follows the host's clock again")
            }
            Course::Slow => {
                tracing::warn!(%file, %time, %host, "the host's clock is {:?} behind the time of the file: it \
                was set back. The time of the file runs at half speed until the clock has caught up; delays and leases \
                last up to twice as long", time.since(host))
            }
            Course::Trial => {
                tracing::warn!(%file, %time, %host, "the host's clock jumped forward by {:?}. The time of the \
                file follows in {TRIAL:?}, unless the clock is set right", host.since(time))
            }
        }
    }
}

fn load(db: &Connection) -> rusqlite::Result<Option<StoredTime>> {
    let row = db
        .prepare_cached("SELECT boot, uptime, at, course FROM clock WHERE id = 1")?
        .query_row([], |row| {
            let micros = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_i64().ok());
            let text =
                |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_str().ok().map(str::to_owned));
            // What another program wrote here is no time.
            let (Some(boot), Some(uptime), Some(at), Some(course)) =
                (text(0)?, micros(1)?, micros(2)?, text(3)?.as_deref().and_then(Course::parse))
            else {
                return Ok(None);
            };
            let uptime = Duration::from_micros(uptime.unsigned_abs());
            Ok(Some(StoredTime { boot, uptime, at: Timestamp::from_micros(at), course }))
        })
        .optional()?;
    Ok(row.flatten())
}

fn store(db: &Connection, time: &StoredTime) -> rusqlite::Result<()> {
    let uptime = i64::try_from(time.uptime.as_micros()).unwrap_or(i64::MAX);
    db.prepare_cached(
        "INSERT OR REPLACE INTO clock (id, boot, uptime, at, course) VALUES (1, ?1, ?2, ?3, ?4)",
    )?
    .execute(params![time.boot, uptime, time.at.as_micros(), time.course.name()])?;
    Ok(())
}

fn read_host() -> HostReading {
    HostReading { wall: wall(), uptime: uptime() }
}

/// Time since the start of the host, including the time in which it slept.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn uptime() -> Duration {
    since_boot(nix::time::ClockId::CLOCK_BOOTTIME)
}

#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
fn uptime() -> Duration {
    since_boot(nix::time::ClockId::CLOCK_MONOTONIC)
}

#[cfg(not(unix))]
fn uptime() -> Duration {
    Duration::ZERO
}

#[cfg(unix)]
fn since_boot(clock: nix::time::ClockId) -> Duration {
    nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Identifies this start of the host. Empty where uptimes cannot be compared.
fn boot_id() -> String {
    if cfg!(not(unix)) {
        return String::new();
    }
    // Where the host has none, a restart looks like a step of its clock.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A host whose clock can be set, and a file on it.
    struct Host {
        boot: &'static str,
        uptime: Duration,
        /// Clock minus uptime, in seconds.
        offset: i64,
        stored: StoredTime,
    }

    impl Host {
        fn new() -> Self {
            let host = HostReading { wall: at(1_000), uptime: Duration::ZERO };
            Self {
                boot: "b",
                uptime: host.uptime,
                offset: 1_000,
                stored: StoredTime::begin("b", host.wall, host),
            }
        }

        fn reading(&self) -> HostReading {
            let wall = at(self.offset + i64::try_from(self.uptime.as_secs()).unwrap());
            HostReading { wall, uptime: self.uptime }
        }

        /// Lets time pass, a transaction every second, and returns the time of the file in seconds.
        fn pass(&mut self, seconds: u64) -> i64 {
            for _ in 0..seconds {
                self.uptime += SECOND;
                let next = self.stored.now(self.boot, self.reading());
                assert!(next.at >= self.stored.at, "{next:?} after {:?}", self.stored);
                if next.must_replace(&self.stored) {
                    self.stored = next;
                }
            }
            self.time()
        }

        fn time(&self) -> i64 {
            self.stored.now(self.boot, self.reading()).at.as_millis() / 1000
        }

        fn host_time(&self) -> i64 {
            self.reading().wall.as_millis() / 1000
        }
    }

    const fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn it_follows_the_host() {
        let mut host = Host::new();
        assert_eq!(host.pass(100), 1_100);
        host.offset += 5;
        assert_eq!(host.pass(1), 1_106, "a small jump");
        assert_eq!(host.stored.course, Course::Together);
        host.uptime += Duration::from_secs(86_400);
        assert_eq!(host.time(), host.host_time(), "nobody had the file open for a day");
    }

    #[test]
    fn a_clock_set_back_slows_it_down_until_it_has_caught_up() {
        let mut host = Host::new();
        host.pass(7);
        host.offset -= 600;
        assert_eq!(host.time(), 1_007, "it does not go back");
        assert!((1_016..=1_018).contains(&host.pass(20)), "half speed");
        // A process that opens the file now reads the same row, and the same clocks.
        assert!(host.time() > host.host_time());
        host.pass(1_200);
        assert_eq!(host.time(), host.host_time());
        assert_eq!(host.stored.course, Course::Together);
    }

    #[test]
    fn a_jump_forward_is_followed_only_if_it_lasts() {
        let mut host = Host::new();
        host.pass(10);
        host.offset += 86_400;
        assert_eq!(host.pass(50), 1_060, "not yet");
        host.offset -= 86_400;
        assert_eq!(host.pass(10), 1_070, "it was a mistake");
        assert_eq!(host.stored.course, Course::Together);
        host.offset += 86_400;
        host.pass(70);
        assert_eq!(host.time(), host.host_time(), "it was right");
    }

    #[test]
    fn a_clock_set_back_during_a_trial_and_set_forward_while_slow() {
        let mut host = Host::new();
        host.pass(10);
        host.offset += 3_600;
        host.pass(10);
        host.offset -= 3_700;
        host.pass(10);
        assert_eq!(host.stored.course, Course::Slow);
        host.offset += 100;
        host.pass(1);
        assert_eq!((host.stored.course, host.time()), (Course::Together, host.host_time()));
        host.offset -= 100;
        host.pass(10);
        host.offset += 86_400;
        host.pass(2);
        assert_eq!(host.stored.course, Course::Trial);
        host.pass(61);
        assert_eq!((host.stored.course, host.time()), (Course::Together, host.host_time()));
    }

    #[test]
    fn a_restart_of_the_host_sets_nothing_back() {
        let mut host = Host::new();
        host.pass(100);
        (host.boot, host.uptime, host.offset) = ("c", SECOND, 500);
        assert_eq!(host.time(), 1_100, "its clock is wrong until it has asked another");
        host.pass(10);
        host.offset = 90_000;
        host.pass(70);
        assert_eq!(host.time(), host.host_time());
        host.boot = "";
        assert_eq!(host.time(), host.host_time(), "without an uptime");
    }
}
