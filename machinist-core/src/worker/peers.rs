//! Sessions of other workers, as this worker knows them.
//!
//! A task of another session is taken over only after two checks, some time apart, have found that session gone, and
//! only if the backend answered every call of this worker in between. A backend that answers reads and refuses writes
//! lets sessions expire whose workers live. After such an outage the owners of the tasks therefore come first.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};

use super::lease::Lease;
use crate::{
    backend::{Backend, BackendError},
    id::{RecordId, SessionId},
    record::is_alive,
};

/// The session of another worker that holds a task delivered here.
#[derive(Debug)]
struct PeerSession {
    /// Time at which a delivery last waited for this session.
    last_wanted: Instant,
    /// Time at which the session was first found gone, with no failure of the backend since.
    gone_since: Option<Instant>,
    gone: bool,
}

/// The sessions of other workers that deliveries wait for.
#[derive(Debug)]
pub(super) struct Peers {
    lease: Lease,
    sessions: Mutex<HashMap<SessionId, PeerSession>>,
    gone_count: watch::Sender<u64>,
}

impl Peers {
    pub(super) fn lease(&self) -> Lease {
        self.lease
    }

    pub(super) fn new(lease: Lease) -> Self {
        Self { lease, sessions: Mutex::default(), gone_count: watch::Sender::new(0) }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, PeerSession>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks this session from now on, because a delivery waits for it.
    pub(super) fn watch(&self, session: &SessionId) {
        let now = Instant::now();
        let new = || PeerSession { last_wanted: now, gone_since: None, gone: false };
        self.sessions().entry(session.clone()).or_insert_with(new).last_wanted = now;
    }

    /// Returns `true` if the session is known to be gone.
    pub(super) fn is_gone(&self, session: &SessionId) -> bool {
        self.sessions().get(session).is_some_and(|peer| peer.gone)
    }

    /// Number of times that a session was found gone. Read it before requesting a start.
    pub(super) fn gone_count(&self) -> u64 {
        *self.gone_count.borrow()
    }

    /// Completes when any session has been found gone since the count was `count_before`.
    pub(super) async fn gone_after(&self, count_before: u64) {
        // It cannot be closed: the sender is ours.
        let _ = self.gone_count.subscribe().wait_for(|now| *now > count_before).await;
    }

    /// Forgets what the checks have found, because a call to the backend has failed: the owners of the sessions may have
    /// failed to renew them for the same reason.
    pub(super) fn forget_checks(&self) {
        for peer in self.sessions().values_mut() {
            peer.gone_since = None;
            peer.gone = false;
        }
    }

    /// Checks the sessions that deliveries wait for.
    pub(super) async fn check(&self, backend: &dyn Backend) -> Result<(), BackendError> {
        let wanted: Vec<SessionId> = {
            let now = Instant::now();
            let mut sessions = self.sessions();
            sessions.retain(|_, peer| now < peer.last_wanted + self.lease.interest());
            sessions.keys().cloned().collect()
        };
        if wanted.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = wanted.iter().map(RecordId::from).collect();
        let records = backend.read_each(&ids).await.inspect_err(|_| self.forget_checks())?;
        let now = Instant::now();
        let mut sessions = self.sessions();
        let mut found = false;
        for (session, facts) in wanted.iter().zip(records) {
            let Some(peer) = sessions.get_mut(session) else { continue };
            // A record that cannot be used is no session. Its worker opens another.
            let alive = facts.as_ref().is_ok_and(is_alive);
            peer.gone_since = if alive { None } else { peer.gone_since.or(Some(now)) };
            let gone = peer.gone_since.is_some_and(|since| now >= since + self.lease.gone_confirmation());
            found |= gone && !peer.gone;
            peer.gone = gone;
        }
        drop(sessions);
        if found {
            self.gone_count.send_modify(|gone_count| *gone_count += 1);
        }
        Ok(())
    }
}
