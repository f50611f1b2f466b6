//! Sessions: the lease of a worker on its runs, as a record.
//!
//! A session is alive while its record holds the lease. The record expires unless it is renewed, and a renewal requires
//! the lease, so a session that was gone never comes back. Whatever else the record holds is for display.

use std::time::Duration;

use bytes::Bytes;

use super::facts::{Facts, name};
use crate::{
    backend::{Commit, Expiry},
    id::SessionId,
};

/// Value of the lease. It says nothing: the name of the record says whose lease it is.
const HELD: Bytes = Bytes::from_static(b"1");

/// Work of a worker, as the record of its session shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ShownWork {
    /// State and counts.
    pub(crate) runs: Bytes,
    /// Ids of some of its runs.
    pub(crate) ids: Bytes,
}

/// Part of the shown work that has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WorkChange {
    /// State and counts.
    pub(crate) runs: Option<Bytes>,
    /// Ids of some of its runs.
    pub(crate) ids: Option<Bytes>,
}

/// Creates the commit that opens a new session. `about` describes its worker, and `work` what it does.
pub(crate) fn open_session(session: &SessionId, lease: Duration, about: Bytes, work: ShownWork) -> Commit {
    let mut commit = Commit::new(session);
    commit.facts = vec![
        (name::LEASE.into(), HELD),
        (name::ABOUT.into(), about),
        (name::RUNS.into(), work.runs),
        (name::RUN_IDS.into(), work.ids),
    ];
    commit.expiry = Expiry::After(lease);
    commit
}

/// Creates the commit that renews a session, and replaces what has changed of the work that it shows. It is refused if the
/// session is gone.
pub(crate) fn renew_session(session: &SessionId, lease: Duration, change: WorkChange) -> Commit {
    let mut commit = Commit::new(session);
    commit.require = vec![(name::LEASE.into(), HELD)];
    for (fact, value) in [(name::RUNS, change.runs), (name::RUN_IDS, change.ids)] {
        if let Some(value) = value {
            commit.drop.push(fact.into());
            commit.facts.push((fact.into(), value));
        }
    }
    commit.expiry = Expiry::After(lease);
    commit
}

/// Creates the commit that replaces the description of a session's worker. It is refused if the session is gone.
pub(crate) fn rename_session(session: &SessionId, about: Bytes) -> Commit {
    let mut commit = Commit::new(session);
    commit.require = vec![(name::LEASE.into(), HELD)];
    commit.drop = vec![name::ABOUT.into()];
    commit.facts = vec![(name::ABOUT.into(), about)];
    commit
}

/// Creates the commit that ends a session at once.
pub(crate) fn close_session(session: &SessionId) -> Commit {
    let mut commit = Commit::new(session);
    commit.drop = [name::LEASE, name::ABOUT, name::RUNS, name::RUN_IDS].map(Into::into).to_vec();
    commit
}

/// Creates the commit that wakes the worker of a session, which watches its record, so that it looks at its tasks at once.
/// It writes nothing. Nothing depends on it: within a lease the worker's renewals read the records of its tasks anyway.
pub(crate) fn wake_session(session: &SessionId) -> Commit {
    Commit { wake: true, ..Commit::new(session) }
}

/// Returns `true` if the record is that of a session that is alive.
pub(crate) fn is_alive(facts: &Facts) -> bool {
    facts.has(name::LEASE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn work(runs: &'static str, ids: &'static str) -> ShownWork {
        ShownWork { runs: runs.into(), ids: ids.into() }
    }

    fn nothing() -> WorkChange {
        WorkChange::default()
    }

    #[test]
    fn a_session_that_is_gone_cannot_be_renewed() {
        let session = SessionId::fresh();
        let mut facts = Facts::new();
        assert!(!renew_session(&session, LEASE, nothing()).apply(&mut facts) && !is_alive(&facts));
        assert!(open_session(&session, LEASE, "{}".into(), work("{}", "[]")).apply(&mut facts));
        assert!(renew_session(&session, LEASE, nothing()).apply(&mut facts) && is_alive(&facts));
        assert!(close_session(&session).apply(&mut facts));
        let change = WorkChange { runs: Some("{}".into()), ids: Some("[]".into()) };
        assert!(facts.is_empty() && !renew_session(&session, LEASE, change).apply(&mut facts));
        assert!(facts.is_empty(), "what it says about its runs would be a record");
    }

    #[test]
    fn a_renewal_replaces_only_what_has_changed_and_is_small() {
        let session = SessionId::fresh();
        let mut facts = Facts::new();
        open_session(&session, LEASE, "a".into(), work("1", "x")).apply(&mut facts);
        let shown =
            |facts: &Facts| [name::ABOUT, name::RUNS, name::RUN_IDS].map(|fact| facts.text(fact).unwrap());
        renew_session(&session, LEASE, WorkChange { runs: Some("2".into()), ids: None }).apply(&mut facts);
        assert_eq!(shown(&facts), ["a", "2", "x"]);
        renew_session(&session, LEASE, WorkChange { runs: None, ids: Some("y".into()) }).apply(&mut facts);
        assert_eq!(shown(&facts), ["a", "2", "y"]);
        let renewal = renew_session(&session, LEASE, nothing());
        let bytes = renewal.require.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        assert!(bytes + renewal.id.id().len() < 100 && renewal.facts.is_empty() && renewal.drop.is_empty());
    }
}
