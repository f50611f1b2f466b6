//! Purging a queue: its messages go, and nothing is lost in silence.
//!
//! The messages are taken as a worker takes them, so a purge of a queue in use is safe. Of each, the consequence is written
//! first and the message is acknowledged last. A purge that is interrupted leaves messages whose tasks have ended, which
//! the next worker or the next purge drops.
//!
//! A task that a purge ends is in FAILURE/revoked, and its record keeps its message: `Client::retry` sends it again. A
//! message that no worker would believe becomes a dead letter, with its reason.

use std::time::Duration;

use crate::{
    backend::Committed,
    broker::{Consume, Delivery, Publish, Settle},
    client::{Client, names_of_task},
    clock::Timestamp,
    control::ControlError,
    dead_letters::{NewDeadLetter, add_to_index},
    id::QueueName,
    record::{
        DeadReason, ErrorText, Facts, FollowUp, RevokeDecision, RevokeMode, decide_revoke, name,
        recorded_follow_up,
    },
    security::{Acceptance, accept},
    wire::{Envelope, dead_id, message_to_fact},
};

/// Time without another message after which a purge ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Number of messages that a purge holds at once.
const PREFETCH: u16 = 100;
/// Maximum number of messages that stay. A purge that finds more of them ends.
const MAX_KEPT: u64 = 10_000;
/// Error of a task that a purge ended.
const PURGED: &str = "its queue was purged";

/// Treatment of the messages of a queue that is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PurgeMode {
    /// Each task ends in FAILURE/revoked.
    End,
    /// The same, and each message becomes a dead letter with the reason `purged`.
    DeadLetter,
}

/// Number of messages that a purge has treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeReport {
    /// Messages that are gone from the queue.
    pub purged: u64,
    /// Tasks among them that have ended by it.
    pub ended: u64,
    /// Messages among them that are dead letters now.
    pub dead_lettered: u64,
    /// Messages that stay, because a workflow goes on by them.
    pub of_workflows: u64,
    /// Messages that stay, because a worker runs the task, or has still to finish its end.
    pub in_use: u64,
}

/// Decision about the message of a task in a queue that is purged.
#[derive(Debug, PartialEq, Eq)]
enum PurgeDecision {
    /// End the task, then acknowledge.
    End(Box<crate::backend::Commit>),
    /// Nothing follows from the message: acknowledge.
    Leftover,
    /// A worker has to treat it: what follows from it would be lost.
    OfWorkflow,
    /// A run holds the task, or its end has consequences that are not published yet.
    InUse,
}

/// Decides about the message of a task, from its record.
fn decide_purge(envelope: &Envelope, facts: &Facts, now: Timestamp, ttl: Duration) -> PurgeDecision {
    let follow_up = recorded_follow_up(facts, envelope.attempt);
    if follow_up == Some(FollowUp::Nothing) {
        return PurgeDecision::Leftover;
    }
    if envelope.pairs.are_of_workflow() {
        return PurgeDecision::OfWorkflow;
    }
    match (follow_up, decide_revoke(&envelope.id, facts, RevokeMode::Cancel, now, ttl)) {
        (Some(FollowUp::Ended { spawns: false }), RevokeDecision::Ended(_)) => PurgeDecision::Leftover,
        (_, RevokeDecision::EndNow(commit)) => PurgeDecision::End(Box::new(commit)),
        (_, RevokeDecision::Ended(_) | RevokeDecision::AskRun(..)) => PurgeDecision::InUse,
    }
}

impl Client {
    /// Takes the messages out of a queue, as many as are ready when it begins, and ends their tasks. Calls `told` after each
    /// message.
    ///
    /// Tasks that run are left alone, and so are messages of workflows, which are ended by
    /// [`revoke_workflow`](Self::revoke_workflow). Delayed messages that are not due yet are not in the queue; they are
    /// revoked one by one.
    ///
    /// # Errors
    /// [`ControlError`] where broker or backend cannot be asked, or nothing can be signed. What was told before is done,
    /// the rest is as it was; asking again is fine.
    ///
    /// # Cancel safety
    /// A dropped future leaves each message there or not; asking again is fine.
    pub async fn purge_queue(
        &self,
        queue: &QueueName,
        mode: PurgeMode,
        mut told: impl FnMut(&PurgeReport),
    ) -> Result<PurgeReport, ControlError> {
        let depths = self.app.broker().depth(std::slice::from_ref(queue)).await?;
        let ready = depths.first().and_then(|depth| depth.ready).unwrap_or(0);
        let mut report = PurgeReport::default();
        if ready == 0 {
            return Ok(report);
        }
        let what = Consume { queues: vec![queue.clone()], prefetch: PREFETCH };
        let mut consumer = self.app.broker().consume(what).await?;
        let mut kept = Vec::new();
        let mut done = Ok(());
        for _ in 0..ready {
            let Ok(Some(delivery)) = tokio::time::timeout(IDLE_TIMEOUT, consumer.next()).await else { break };
            match self.purge_one(queue, &delivery, mode, &mut report).await {
                Ok(true) => {
                    // A lost settlement leaves a message whose task has ended.
                    delivery.receipt.settle(Settle::Ack).await;
                    report.purged += 1;
                    told(&report);
                }
                Ok(false) => {
                    // Handed back at once, it would come again at once. The message itself is not needed any more.
                    kept.push(delivery.receipt);
                    consumer.add_credit(1).await;
                    if kept.len() as u64 >= MAX_KEPT {
                        break;
                    }
                }
                Err(error) => {
                    kept.push(delivery.receipt);
                    done = Err(error);
                    break;
                }
            }
        }
        consumer.stop().await;
        for receipt in kept {
            receipt.settle(Settle::Requeue).await;
        }
        done.map(|()| report)
    }

    /// Writes the consequence of the purge of one message. Returns `false` if the message stays.
    async fn purge_one(
        &self,
        queue: &QueueName,
        delivery: &Delivery,
        mode: PurgeMode,
        report: &mut PurgeReport,
    ) -> Result<bool, ControlError> {
        let app = &self.app.0;
        let message = &delivery.message;
        let accepted = accept(&app.trust, &app.rules, &app.max_sizes, queue, message, app.clock.now());
        let envelope = match accepted {
            Acceptance::Accepted(envelope, _)
            | Acceptance::Undecryptable(envelope, _)
            | Acceptance::Rejected(envelope, ..) => envelope,
            Acceptance::Unidentified => {
                let letter = NewDeadLetter::refused(
                    &self.app,
                    queue,
                    message,
                    DeadReason::Undecodable,
                    "it has no id",
                );
                self.publish_letter(letter).await?;
                report.dead_lettered += 1;
                return Ok(true);
            }
            Acceptance::NotOurs(..) => return Ok(false),
            Acceptance::Deferred(reason, error) | Acceptance::Refused(reason, error) => {
                let letter = NewDeadLetter::refused(&self.app, queue, message, reason, &error);
                self.publish_letter(letter).await?;
                report.dead_lettered += 1;
                return Ok(true);
            }
        };
        let mut facts = self.read(&envelope.id).await?;
        let mut is_letter = false;
        loop {
            let commit = match decide_purge(&envelope, &facts, app.clock.now(), app.results_ttl) {
                PurgeDecision::End(commit) => *commit,
                PurgeDecision::Leftover => return Ok(true),
                PurgeDecision::OfWorkflow => {
                    report.of_workflows += 1;
                    return Ok(false);
                }
                PurgeDecision::InUse => {
                    report.in_use += 1;
                    return Ok(false);
                }
            };
            if mode == PurgeMode::DeadLetter && !is_letter {
                // Before the end: an interruption between the two repeats both.
                let letter = NewDeadLetter::of_task(
                    &self.app,
                    queue,
                    message,
                    dead_id(&envelope.id, envelope.attempt),
                    DeadReason::Purged,
                    ErrorText::from(PURGED),
                );
                self.publish_letter(letter).await?;
                is_letter = true;
            }
            let mut commit = commit;
            commit.facts.extend(names_of_task(&envelope));
            if let Some(kept) = message_to_fact(message, message.size()) {
                commit.facts.push((name::MESSAGE.into(), kept));
            }
            match self.commit(self.signed_end(&envelope.id, commit)?).await? {
                Committed::Done { .. } => break,
                Committed::Refused(newer) => facts = newer,
            }
        }
        self.ended_by_purge(&envelope.id, &facts).await;
        report.ended += 1;
        report.dead_lettered += u64::from(is_letter);
        Ok(true)
    }

    /// Publishes a dead letter, and adds it to the index. The letter in the broker counts.
    async fn publish_letter(&self, letter: NewDeadLetter) -> Result<(), ControlError> {
        let NewDeadLetter { publish, entry } = letter;
        self.publish_one(Publish { ..publish }).await.map_err(ControlError::unpublished)?;
        if let Err(error) = add_to_index(&self.app, &entry).await {
            tracing::debug!(%error, "a dead letter was not indexed; the next listing finds it in its queue");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::Commit,
        client::sender_facts,
        id::{RunId, TaskId, TaskName},
        record::{Counters, StartRequest},
        wire::{FirstSigner, Pairs},
    };

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);
    const TTL: Duration = Duration::from_secs(3600);

    fn envelope() -> Envelope {
        Envelope {
            id: TaskId::parse("t").unwrap(),
            name: TaskName::parse("n").unwrap(),
            queue: QueueName::parse("q").unwrap(),
            attempt: 1,
            generation: 0,
            eta: None,
            expires: None,
            issued: NOW,
            counters: Counters::default(),
            token: 0,
            unknown_since: None,
            traceparent: None,
            tracestate: None,
            priority: None,
            pairs: Pairs::default(),
            content_type: "application/json".to_owned(),
            body: bytes::Bytes::new(),
            first: FirstSigner::Publisher,
            source: None,
        }
    }

    fn after(commits: &[&Commit]) -> Facts {
        let mut facts = Facts::new();
        for commit in commits {
            assert!(commit.apply(&mut facts));
        }
        facts
    }

    #[test]
    fn a_task_that_waits_ends_and_its_second_copy_is_a_leftover() {
        let envelope = envelope();
        let sent = sender_facts(&envelope);
        let PurgeDecision::End(end) = decide_purge(&envelope, &after(&[&sent]), NOW, TTL) else {
            panic!("it ends")
        };
        assert_eq!(decide_purge(&envelope, &after(&[&sent, &end]), NOW, TTL), PurgeDecision::Leftover);
        assert!(matches!(decide_purge(&envelope, &Facts::new(), NOW, TTL), PurgeDecision::End(_)));
    }

    #[test]
    fn a_task_that_runs_is_left_alone() {
        let envelope = envelope();
        let request = StartRequest {
            id: envelope.id.clone(),
            attempt: 1,
            generation: 0,
            run: RunId::fresh(),
            session: crate::id::SessionId::from("s"),
            worker: "w".into(),
            received_at: NOW,
            token: 0,
            alone: false,
            gathered: None,
        };
        let (start, _) = request.first(NOW);
        let facts = after(&[&sender_facts(&envelope), &start]);
        assert_eq!(decide_purge(&envelope, &facts, NOW, TTL), PurgeDecision::InUse);
    }

    #[test]
    fn a_message_of_a_workflow_stays() {
        let place = crate::flow::StepPlace::root(TaskId::parse("t").unwrap());
        let envelope = Envelope { pairs: Pairs::default().with_place(&place), ..envelope() };
        assert_eq!(decide_purge(&envelope, &Facts::new(), NOW, TTL), PurgeDecision::OfWorkflow);
    }

    #[test]
    fn an_end_whose_dead_letter_is_not_published_yet_is_left_to_a_worker() {
        let envelope = envelope();
        let failure = crate::record::Failure::new(crate::record::FailureKind::Error, "no");
        let ended = crate::record::failure_without_run(&envelope.id, &Facts::new(), 1, failure, NOW, TTL);
        assert_eq!(decide_purge(&envelope, &after(&[&ended]), NOW, TTL), PurgeDecision::InUse);
    }
}
