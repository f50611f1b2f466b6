//! The start of a run: one commit, and the decision after its refusal.

use std::sync::Arc;

use super::{ActiveDelivery, Settlement, WorkerContext};
use crate::{
    backend::{Commit, Committed},
    client::names_of_task,
    clock::Timestamp,
    event::{EventKind, EventTask},
    id::SessionId,
    record::{
        Claim, Facts, Failure, FailureKind, StartDecision, StartRequest, Suspicion, abandoned_start,
        decide_start, name, suspicion,
    },
    wire::Envelope,
    worker::{exclusive, server_calls::Unanswered, session::RegisteredRun},
};

/// Answer to a request for a start.
pub(super) enum StartReply {
    Started(Claim),
    /// A live session holds the task.
    Busy,
    /// The task may have killed processes: it has to run alone.
    Suspect,
    Settle(Settlement),
}

/// Next step after the refusal of a start that may still succeed.
enum StartRefusal {
    /// The start was granted after all.
    Ours(Box<Claim>),
    /// Commit this instead. The worker is that of the run which it takes over, if that run was not handed back.
    TakeOver(Box<(Commit, Claim)>, Option<Arc<str>>),
}

impl WorkerContext {
    /// Requests the start, and decides what to do if it is refused.
    pub(super) async fn start(
        &self,
        active: &ActiveDelivery,
        registered: &RegisteredRun,
        received_at: Timestamp,
        alone: bool,
    ) -> StartReply {
        let envelope = &active.envelope;
        let session = match self.session().await {
            Ok(session) => session,
            Err(unanswered) => return StartReply::Settle(unanswered.into()),
        };
        let mut request = StartRequest {
            id: envelope.id.clone(),
            attempt: envelope.attempt,
            generation: envelope.generation,
            run: registered.run.clone(),
            session,
            worker: Arc::clone(self.name.held()),
            received_at,
            token: envelope.token,
            alone,
            gathered: active.gathered.as_ref().map(|gathered| gathered.fact.clone()),
        };
        let (mut commit, mut claim) = request.first(self.now());
        let mut taken_from = None;
        if envelope.source.is_some() {
            // Another program sent it, and wrote no record.
            commit.facts.extend(names_of_task(envelope));
        }
        if active.keeps_args {
            let kept = self.app.message_fact(envelope).map(|(_, message)| (name::KEPT_ARGS.into(), message));
            commit.facts.extend(kept);
        }
        let mut taking_over = false;
        loop {
            let answer = if taking_over {
                Box::pin(self.calls.commit_takeover(commit)).await
            } else {
                self.calls.commit(commit).await.map(Some)
            };
            match answer {
                Ok(Some(Committed::Done { .. })) => {}
                Ok(Some(Committed::Refused(facts))) => {
                    match Box::pin(self.refused_start(envelope, &request, facts)).await {
                        Ok(StartRefusal::Ours(ours)) => claim = *ours,
                        Ok(StartRefusal::TakeOver(next, from)) => {
                            (commit, claim) = *next;
                            (taken_from, taking_over) = (from, true);
                            continue;
                        }
                        Err(reply) => return reply,
                    }
                }
                Ok(None) => {
                    // Decided again from the record as it is when the backend answers.
                    (commit, claim) = request.first(self.now());
                    (taken_from, taking_over) = (None, false);
                    continue;
                }
                Err(unanswered) => {
                    // The start may have been granted, but this worker will not run it.
                    self.sessions.defer_hand_back(claim);
                    return StartReply::Settle(unanswered.into());
                }
            }
            if registered.set_claim(&claim) {
                if let Some(from) = &taken_from {
                    self.emit(EventKind::TakenOver { task: EventTask::of(envelope), from });
                }
                return StartReply::Started(claim);
            }
            // The session of the request has expired meanwhile, so other workers may take the task over.
            let session = match self.session().await {
                Ok(session) => session,
                Err(unanswered) => {
                    self.sessions.defer_hand_back(claim);
                    return StartReply::Settle(unanswered.into());
                }
            };
            (commit, claim) = claim.adopt(&session, self.now());
            request.session = session;
        }
    }

    /// Returns the session under which a run may start.
    async fn session(&self) -> Result<SessionId, Unanswered> {
        tokio::select! {
            // First: the session is almost always alive, and then the other branches cost nothing.
            biased;
            session = self.sessions.alive() => Ok(session),
            () = self.stages.reached_leave() => Err(Unanswered::Leaving),
            () = self.calls.given_up() => Err(Unanswered::GivenUp),
        }
    }

    /// Decides the next step after a refused start.
    async fn refused_start(
        &self,
        envelope: &Envelope,
        request: &StartRequest,
        facts: Facts,
    ) -> Result<StartRefusal, StartReply> {
        let gone = |session: &_, run: &_| self.sessions.is_gone(session, run);
        Err(match decide_start(&facts, request, gone, self.now()) {
            StartDecision::AlreadyStarted(claim) => return Ok(StartRefusal::Ours(Box::new(claim))),
            StartDecision::TakeOver(next) => match suspicion(&facts, envelope.attempt) {
                Suspicion::Suspect if !request.alone && envelope.generation < exclusive::EXCLUSIVE_TRIES => {
                    StartReply::Suspect
                }
                Suspicion::None | Suspicion::Suspect => {
                    let from = abandoned_start(&facts, envelope.attempt).map(|start| start.worker);
                    return Ok(StartRefusal::TakeOver(next, from));
                }
                Suspicion::Lost => {
                    let error = "workers died while they ran this task alone";
                    let ended =
                        self.end_as_read(envelope, facts, Failure::new(FailureKind::Lost, error)).await;
                    ended.map_or(StartReply::Busy, StartReply::Settle)
                }
            },
            StartDecision::Over(follow_up) => StartReply::Settle(self.follow(envelope, &follow_up).await),
            StartDecision::OtherArguments => {
                let error = "the backend has lost the results that it was started with, and now has others";
                let failure = Failure::new(FailureKind::Lost, error);
                StartReply::Settle(Box::pin(self.end_waiting(envelope, failure)).await)
            }
            StartDecision::NewerGuard => StartReply::Settle(Settlement::Ack),
            StartDecision::Revoked => {
                let ended =
                    self.end_as_read(envelope, facts, Failure::new(FailureKind::Revoked, "revoked")).await;
                ended.map_or(StartReply::Busy, StartReply::Settle)
            }
            StartDecision::Busy(session) => {
                self.sessions.peers.watch(&session);
                StartReply::Busy
            }
        })
    }
}
