//! The start: one commit, and what it means that it was refused.

use super::{Settlement, WorkerContext};
use crate::{
    backend::{Commit, Committed},
    clock::Timestamp,
    id::SessionId,
    record::{Claim, Facts, FailureKind, StartDecision, StartRequest, Suspicion, decide_start, suspicion},
    wire::Envelope,
    worker::{exclusive, server_calls::Unanswered, session::RegisteredRun},
};

/// The answer to a request for a start.
pub(super) enum StartReply {
    Started(Claim),
    /// A live session holds the task.
    Busy,
    /// Processes may have died of it: it has to run alone.
    Suspect,
    Settle(Settlement),
}

/// What is left to do after a start was refused.
enum StartRefusal {
    /// It was granted after all.
    Ours(Box<Claim>),
    /// Commit this instead.
    TakeOver(Box<(Commit, Claim)>),
}

impl WorkerContext {
    /// Asks for the start, and for what it means where it is refused.
    pub(super) async fn start(
        &self,
        envelope: &Envelope,
        registered: &RegisteredRun,
        received_at: Timestamp,
        alone: bool,
    ) -> StartReply {
        let session = match self.session().await {
            Ok(session) => session,
            Err(why) => return StartReply::Settle(why.into()),
        };
        let mut asking = StartRequest {
            id: envelope.id.clone(),
            attempt: envelope.attempt,
            generation: envelope.generation,
            run: registered.run.clone(),
            session,
            worker: self.name.clone(),
            received_at,
            token: envelope.token,
            alone,
        };
        let (mut commit, mut claim) = asking.first(self.now());
        loop {
            match self.calls.commit(commit).await {
                Ok(Committed::Done) => {}
                Ok(Committed::Refused(facts)) => {
                    match Box::pin(self.refused_start(envelope, &asking, facts)).await {
                        Ok(StartRefusal::Ours(ours)) => claim = *ours,
                        Ok(StartRefusal::TakeOver(next)) => {
                            (commit, claim) = *next;
                            continue;
                        }
                        Err(asked) => return asked,
                    }
                }
                Err(why) => {
                    // It may have been granted, and nobody runs it.
                    self.sessions.defer_hand_back(claim);
                    return StartReply::Settle(why.into());
                }
            }
            if registered.set_claim(&claim) {
                return StartReply::Started(claim);
            }
            // The session for which it was asked has expired meanwhile, so others may take the task over.
            let session = match self.session().await {
                Ok(session) => session,
                Err(why) => {
                    self.sessions.defer_hand_back(claim);
                    return StartReply::Settle(why.into());
                }
            };
            (commit, claim) = claim.adopt(&session, self.now());
            asking.session = session;
        }
    }

    /// The session under which something may be started.
    async fn session(&self) -> Result<SessionId, Unanswered> {
        tokio::select! {
            // First, for nearly always it is alive, and the others then cost nothing.
            biased;
            session = self.sessions.alive() => Ok(session),
            () = self.stages.reached_leave() => Err(Unanswered::Leaving),
            () = self.calls.given_up() => Err(Unanswered::GivenUp),
        }
    }

    /// What the refusal of a start means.
    async fn refused_start(
        &self,
        envelope: &Envelope,
        asking: &StartRequest,
        facts: Facts,
    ) -> Result<StartRefusal, StartReply> {
        let gone = |session: &_, run: &_| self.sessions.is_gone(session, run);
        Err(match decide_start(&facts, asking, gone, self.now()) {
            StartDecision::AlreadyStarted(claim) => return Ok(StartRefusal::Ours(Box::new(claim))),
            StartDecision::TakeOver(next) => match suspicion(&facts, envelope.attempt) {
                Suspicion::Suspect if !asking.alone && envelope.generation < exclusive::EXCLUSIVE_TRIES => {
                    StartReply::Suspect
                }
                Suspicion::None | Suspicion::Suspect => return Ok(StartRefusal::TakeOver(next)),
                Suspicion::Lost => {
                    let error = "workers died while it ran alone in them";
                    let ended = self.end_as_read(envelope, facts, FailureKind::Lost, error).await;
                    ended.map_or(StartReply::Busy, StartReply::Settle)
                }
            },
            StartDecision::Over(follow_up) => StartReply::Settle(self.follow(envelope, &follow_up).await),
            StartDecision::NewerGuard => StartReply::Settle(Settlement::Ack),
            StartDecision::Revoked => {
                let ended = self.end_as_read(envelope, facts, FailureKind::Revoked, "revoked").await;
                ended.map_or(StartReply::Busy, StartReply::Settle)
            }
            StartDecision::Busy(session) => {
                self.sessions.watch_session(&session);
                StartReply::Busy
            }
        })
    }
}
