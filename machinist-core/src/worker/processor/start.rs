//! The start: one commit, and what it means that it was refused.

use super::{Ending, TaskProcessor};
use crate::{
    backend::{Commit, Committed},
    clock::Timestamp,
    envelope::Envelope,
    id::SessionId,
    record::{Facts, FailureKind, Held, Meaning, Starting, Suspicion, judge, suspicion},
    worker::{alone, session::Registered, steady::Unanswered},
};

/// What asking for a start came to.
pub(super) enum Asked {
    Started(Held),
    /// A live session holds the task.
    Busy,
    /// Processes may have died of it: it has to run alone.
    Suspect,
    Settle(Ending),
}

/// What is left to do after a start was refused.
enum Refused {
    /// It was granted after all.
    Ours(Box<Held>),
    /// Commit this instead.
    TakeOver(Box<(Commit, Held)>),
}

impl TaskProcessor {
    /// Asks for the start, and for what it means where it is refused.
    pub(super) async fn start(
        &self,
        envelope: &Envelope,
        registered: &Registered,
        received_at: Timestamp,
        alone: bool,
    ) -> Asked {
        let session = match self.session().await {
            Ok(session) => session,
            Err(why) => return Asked::Settle(why.into()),
        };
        let mut asking = Starting {
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
        let (mut commit, mut held) = asking.first(self.now());
        loop {
            match self.steady.commit(&commit).await {
                Ok(Committed::Done) => {}
                Ok(Committed::Refused(facts)) => {
                    match Box::pin(self.refused_start(envelope, &asking, facts)).await {
                        Ok(Refused::Ours(mine)) => held = *mine,
                        Ok(Refused::TakeOver(next)) => {
                            (commit, held) = *next;
                            continue;
                        }
                        Err(asked) => return asked,
                    }
                }
                Err(why) => {
                    // It may have been granted, and nobody runs it.
                    self.sessions.owe(held);
                    return Asked::Settle(why.into());
                }
            }
            if registered.hold(&held) {
                return Asked::Started(held);
            }
            // The session for which it was asked has expired meanwhile, so others may take the task over.
            let session = match self.session().await {
                Ok(session) => session,
                Err(why) => {
                    self.sessions.owe(held);
                    return Asked::Settle(why.into());
                }
            };
            (commit, held) = held.adopt(&session, self.now());
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
            () = self.steady.given_up() => Err(Unanswered::GivenUp),
        }
    }

    /// What the refusal of a start means.
    async fn refused_start(
        &self,
        envelope: &Envelope,
        asking: &Starting,
        facts: Facts,
    ) -> Result<Refused, Asked> {
        let gone = |session: &_, run: &_| self.sessions.is_gone(session, run);
        Err(match judge(&facts, asking, gone, self.now()) {
            Meaning::Run(mine) => return Ok(Refused::Ours(Box::new(mine))),
            Meaning::TakeOver(next) => match suspicion(&facts, envelope.attempt) {
                Suspicion::Suspect if !asking.alone && envelope.generation < alone::TRIES => Asked::Suspect,
                Suspicion::None | Suspicion::Suspect => return Ok(Refused::TakeOver(next)),
                Suspicion::Lost => {
                    let error = "workers died while it ran alone in them";
                    let ended = self.end_as_read(envelope, facts, FailureKind::Lost, error).await;
                    ended.map_or(Asked::Busy, Asked::Settle)
                }
            },
            Meaning::Over(follow_up) => Asked::Settle(self.follow(envelope, &follow_up).await),
            Meaning::Superseded => Asked::Settle(Ending::Ack),
            Meaning::Revoked => {
                let ended = self.end_as_read(envelope, facts, FailureKind::Revoked, "revoked").await;
                ended.map_or(Asked::Busy, Asked::Settle)
            }
            Meaning::Busy(session) => {
                self.sessions.wonder(&session);
                Asked::Busy
            }
        })
    }
}
