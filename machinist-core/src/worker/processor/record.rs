//! How a run is over: its outcome recorded, or handed back without one; and the end of a task by who does not run it.
//!
//! The commit of an outcome is the point from which on it counts.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;

use super::{Ending, Holding, TaskProcessor};
use crate::{
    backend::{Commit, Committed},
    broker::{Publish, Target},
    clock::Timestamp,
    context::TaskContext,
    envelope::Envelope,
    record::{
        ErrorText, FactName, Facts, FailureKind, Held, Refusal, SHORTEST, Verdict, end_by_anybody, follows,
        name, owed, record, refused, with_progress,
    },
    secrecy::hide,
    stored::stored,
    worker::{LEAVING, session::Registered},
};

impl TaskProcessor {
    /// Commits the verdict, and does what it demands. `None`: another run holds the attempt now.
    pub(super) async fn record(
        &self,
        holding: &mut Holding,
        registered: &Registered,
        mut verdict: Verdict,
        cx: &TaskContext,
        due: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Ending> {
        let mut held = registered.held()?;
        let log = cx.take_log();
        loop {
            let mut commit = record(&held, &verdict, log.clone(), now, self.kept(due, now));
            self.beside_the_verdict(&mut commit, &verdict, &holding.envelope, cx, due);
            // Hidden first: what is signed is what is stored.
            let commit = if let Some(key) = &holding.hidden_by { hide(commit, key) } else { commit };
            let commit = self.app.0.trust.attest(commit);
            let facts = match self.steady.commit_verdict(&commit).await {
                Ok(Committed::Done) => break,
                Ok(Committed::Refused(facts)) => facts,
                Err(why) => return Some(why.into()),
            };
            match refused(&facts, &held, &verdict) {
                Refusal::Recorded => break,
                Refusal::Over(follow_up) => {
                    registered.let_go();
                    return Some(self.follow(&holding.envelope, &follow_up).await);
                }
                Refusal::Revoked => {
                    let error = ErrorText::from("revoked");
                    verdict = Verdict::Failure { kind: FailureKind::Revoked, error };
                }
                Refusal::Again(adopted) => held = adopted,
                Refusal::Superseded => return self.superseded(holding),
            }
        }
        registered.let_go();
        Some(self.follow(&holding.envelope, &follows(&verdict, &held)).await)
    }

    /// What is written with a verdict: the last word of progress, and the message of a failed task, so that it can
    /// be sent again.
    fn beside_the_verdict(
        &self,
        commit: &mut Commit,
        verdict: &Verdict,
        envelope: &Envelope,
        cx: &TaskContext,
        due: Option<Timestamp>,
    ) {
        if let Some(progress) = &*cx.watch_progress().borrow() {
            with_progress(commit, progress);
        }
        match verdict {
            Verdict::Failure { .. } => commit.facts.extend(self.keep_message(envelope)),
            Verdict::Success(_) if due.is_some() => commit.drop.push(name::MESSAGE.into()),
            Verdict::Success(_) | Verdict::Retry { .. } => {}
        }
    }

    /// What this run says does not count. Whoever holds the delivery asks anew; who does not is done.
    pub(super) fn superseded(&self, holding: &Holding) -> Option<Ending> {
        tracing::warn!(id = %holding.envelope.id, "another run has taken this task over: its outcome here does not count");
        if holding.receipt.is_some() { None } else { Some(Ending::Ack) }
    }

    /// Says that this start is over without an outcome, so that nobody waits for our session.
    pub(super) async fn hand_back(&self, holding: &Holding, registered: &Registered, held: &Held) -> Ending {
        let held = registered.held().unwrap_or_else(|| held.clone());
        let leaves = self.stages.is_draining();
        if leaves {
            self.tally.handed_back.fetch_add(1, Ordering::Relaxed);
        }
        if !self.commit_once(&held.hand_back()).await {
            if leaves {
                return Ending::Leave;
            }
            self.sessions.owe(held);
            // What became a guard comes back by itself.
            return Ending::HandBack;
        }
        if holding.receipt.is_none() {
            // The delivery became a guard: its next generation goes straight to the queue.
            let guard = holding.envelope.next_guard(self.now());
            let target = Target::Queue(guard.queue.clone());
            let publish = Publish { target, message: self.app.seal(&guard), delay: Duration::ZERO };
            if self.app.broker().publish(vec![publish]).await.iter().any(Result::is_err) {
                return Ending::Leave;
            }
        }
        Ending::HandBack
    }

    /// One try: what fails is left to the expiry of the session, or said when the backend is back.
    async fn commit_once(&self, commit: &Commit) -> bool {
        let answer = self.app.backend().commit(vec![commit.clone()]);
        let answers = tokio::time::timeout(LEAVING, answer).await;
        answers.is_ok_and(|answers| answers.iter().all(Result::is_ok))
    }

    /// Ends a task that is not run and whose record is as read. Where it has changed meanwhile, what it says
    /// holds; `None` if it says that the task was started.
    pub(super) async fn end_as_read(
        &self,
        envelope: &Envelope,
        facts: Facts,
        kind: FailureKind,
        error: impl Into<ErrorText>,
    ) -> Option<Ending> {
        let due = self.app.decode(envelope).ok().and_then(|body| body.eta);
        let now = self.now();
        let ttl = self.kept(due, now);
        let mut commit = end_by_anybody(&envelope.id, &facts, envelope.attempt, kind, error.into(), now, ttl);
        commit.facts.extend(self.keep_message(envelope));
        let commit = self.app.0.trust.attest(commit);
        if due.is_some() || envelope.attempt > 1 {
            self.off_the_schedule(envelope.id.clone()).await;
        }
        let facts = match self.steady.commit(&commit).await {
            Ok(Committed::Done) => commit.facts.into_iter().collect(),
            Ok(Committed::Refused(facts)) => facts,
            Err(leaving) => return Some(leaving.into()),
        };
        let follow_up = owed(&facts, envelope.attempt)?;
        Some(self.follow(envelope, &follow_up).await)
    }

    /// The message of a task that ends without having succeeded.
    fn keep_message(&self, envelope: &Envelope) -> Option<(FactName, Bytes)> {
        Some((name::MESSAGE.into(), stored(&self.app.seal(envelope))?))
    }

    /// How long the record of a task is kept after its end. One that ended before its time, because somebody sent it
    /// at once, is known until its delayed message has come.
    fn kept(&self, due: Option<Timestamp>, now: Timestamp) -> Duration {
        let early = due.map_or(Duration::ZERO, |due| due.since(now));
        self.app.0.results_ttl.max(SHORTEST) + early
    }
}
