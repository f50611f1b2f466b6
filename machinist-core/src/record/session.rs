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

/// Creates the commit that opens a new session. `about` describes its worker, and `runs` what it runs.
pub(crate) fn open_session(session: &SessionId, lease: Duration, about: Bytes, runs: Bytes) -> Commit {
    let mut commit = Commit::new(session);
    commit.facts = vec![(name::LEASE.into(), HELD), (name::ABOUT.into(), about), (name::RUNS.into(), runs)];
    commit.expiry = Expiry::After(lease);
    commit
}

/// Creates the commit that renews a session, and replaces what it says about its runs if that has changed. It is refused
/// if the session is gone.
pub(crate) fn renew_session(session: &SessionId, lease: Duration, runs: Option<Bytes>) -> Commit {
    let mut commit = Commit::new(session);
    commit.require = vec![(name::LEASE.into(), HELD)];
    if let Some(runs) = runs {
        commit.drop = vec![name::RUNS.into()];
        commit.facts = vec![(name::RUNS.into(), runs)];
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
    commit.drop = vec![name::LEASE.into(), name::ABOUT.into(), name::RUNS.into()];
    commit
}

/// Creates the commit that wakes the worker of a session, which watches its record, so that it looks at its tasks at once.
/// It writes nothing. Nothing depends on it: the worker's next renewal reads the records of its tasks anyway.
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

    #[test]
    fn a_session_that_is_gone_cannot_be_renewed() {
        let session = SessionId::fresh();
        let mut facts = Facts::new();
        assert!(!renew_session(&session, LEASE, None).apply(&mut facts) && !is_alive(&facts));
        assert!(open_session(&session, LEASE, "{}".into(), "{}".into()).apply(&mut facts));
        assert!(renew_session(&session, LEASE, None).apply(&mut facts) && is_alive(&facts));
        assert!(close_session(&session).apply(&mut facts));
        assert!(facts.is_empty() && !renew_session(&session, LEASE, Some("{}".into())).apply(&mut facts));
        assert!(facts.is_empty(), "what it says about its runs would be a record");
    }

    #[test]
    fn a_renewal_replaces_only_what_has_changed_and_is_small() {
        let session = SessionId::fresh();
        let mut facts = Facts::new();
        open_session(&session, LEASE, "a".into(), "1".into()).apply(&mut facts);
        renew_session(&session, LEASE, Some("2".into())).apply(&mut facts);
        assert_eq!((facts.get(name::ABOUT), facts.get(name::RUNS)), (Some(&"a".into()), Some(&"2".into())));
        let renewal = renew_session(&session, LEASE, None);
        let bytes = renewal.require.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        assert!(bytes + renewal.id.id().len() < 100 && renewal.facts.is_empty() && renewal.drop.is_empty());
    }
}
