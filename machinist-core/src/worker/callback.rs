//! Tasks that wait for a join: they look at it whenever a copy of their message arrives, and start when it is decided.
//!
//! The truth that such a task is owed is in the broker: its message comes back until the join is decided. The backend only
//! makes it fast. Members whose end is recorded and not in the join are joined here, so a lost join is made again.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Settlement, WorkerContext,
    gathered::Gathered,
    parking::park_delay,
    server_calls::{Unanswered, Unpublished},
};
use crate::{
    args::Arg,
    backend::{Commit, Expiry},
    clock::Timestamp,
    flow::{JoinPart, Policy, StepPlace, spawned_root},
    id::{RecordId, TaskId},
    record::{
        EndedMember, Facts, Failure, FailureKind, JoinDecision, Joining, LostDecision, MemberSlot,
        MissingMember, ParkDecision, UNFINISHED_TTL, continued_by_record, decide_join, decide_lost,
        decide_parking, ended_members, extend_join, failure_of, gathered_fact, has_published,
        is_replacement_under_way, join_record, member_slots, missing_member, name, revoked_root,
    },
    wire::Envelope,
};

/// Number of records of members that are read at once.
const PAGE_SIZE: usize = 500;
/// Number of members to whose runs the run of the task that has waited is linked. A span has 128 links, and the first is to
/// the sender.
const MAX_LINKS: usize = 127;
/// Number of missing members that an error names.
const NAMED_MEMBERS: usize = 10;

/// The join that a task waits for.
struct Awaited<'a> {
    place: StepPlace,
    parts: &'a [JoinPart],
    record: RecordId,
}

/// State of missing members, by their records.
#[derive(Default)]
struct MemberRecords {
    /// Number of members that have joined now.
    joined: usize,
    /// Members whose data is lost: they were published, and there is no record.
    lost: Vec<TaskId>,
}

impl WorkerContext {
    /// Looks at the join that a task waits for. Returns the arguments that it gives; `None` if the run has to say what is
    /// wrong with the message. The error is the settlement of a delivery that does not start now.
    pub(super) async fn gather(&self, envelope: &Envelope) -> Result<Option<Gathered>, Settlement> {
        let Ok(body) = self.app.decode(envelope) else { return Ok(None) };
        let (Some(flow), Some(place)) = (&body.flow, envelope.place()) else { return Ok(None) };
        // A copy that waits comes back after the end of the task, too. It need not read all that the task has waited for.
        self.unless_decided(envelope).await?;
        let awaited = Awaited { record: join_record(&place), place, parts: &flow.awaits };
        let mut looked_at_members = false;
        loop {
            let members = self.members(&awaited).await?;
            match decide_join(awaited.parts, &members) {
                JoinDecision::Run(args) => {
                    let args = if flow.ignores_results { Vec::new() } else { args };
                    self.check_size(envelope, &args).await?;
                    let links =
                        members.into_values().filter_map(|member| member.trace).take(MAX_LINKS).collect();
                    return Ok(Some(Gathered { fact: gathered_fact(&args), args, links }));
                }
                JoinDecision::Upstream(error) => {
                    let failure = Failure::new(FailureKind::Upstream, &*error);
                    return Err(self.end_waiting(envelope, failure).await);
                }
                JoinDecision::Undecided(missing) => {
                    let records = if looked_at_members {
                        MemberRecords::default()
                    } else {
                        self.join_missing(&awaited, &missing).await?
                    };
                    looked_at_members = true;
                    if records.joined == 0 {
                        return Err(self.wait_on(envelope, &awaited, &records.lost).await);
                    }
                }
            }
        }
    }

    /// Returns the members that have joined, verified and decrypted.
    async fn members(&self, awaited: &Awaited<'_>) -> Result<BTreeMap<u32, EndedMember>, Settlement> {
        // The records of the members say the same.
        let facts = self.calls.read_other(&awaited.record).await?;
        let trust = &self.app.0.trust;
        Ok(ended_members(&facts, |index, fact| match trust.check_member(&awaited.record, index, fact) {
            Ok(member) => self.ended(&member.id, member.end.into()),
            Err(why) => {
                tracing::error!(join = %awaited.record, index, why, "a member of a join is not authentic and counts as missing");
                None
            }
        }))
    }

    /// Reads an end that was verified; `None` if it cannot be read here.
    fn ended(&self, id: &TaskId, end: Bytes) -> Option<EndedMember> {
        let mut facts: Facts = [(name::END.into(), end)].into_iter().collect();
        if let Some(locked) = self.app.0.trust.decrypt_outcome(id, &mut facts) {
            tracing::warn!(%id, %locked, "the end of a member cannot be decrypted here");
            return None;
        }
        EndedMember::of(id.clone(), facts.get(name::END)?)
    }

    /// Lets members join that have ended and are not in the join: their worker died before, or the join was lost.
    async fn join_missing(
        &self,
        awaited: &Awaited<'_>,
        missing: &[u32],
    ) -> Result<MemberRecords, Settlement> {
        let slots = member_slots(&awaited.place, awaited.parts, missing.iter().copied());
        let size = awaited.parts.iter().map(JoinPart::count).sum();
        let mut records = MemberRecords::default();
        for page in slots.chunks(PAGE_SIZE) {
            let ids: Vec<RecordId> = page.iter().map(|slot| RecordId::from(&slot.id)).collect();
            for (slot, facts) in page.iter().zip(self.calls.read_each(&ids).await?) {
                // What a record that cannot be used has held is lost.
                let facts = facts.unwrap_or_default();
                let Some((id, facts)) = self.counting_record(slot, facts).await? else { continue };
                let failed = match missing_member(&facts, slot.part.policy) {
                    MissingMember::NoRecord => {
                        if self.was_published(awaited, slot).await? {
                            records.lost.push(id);
                        }
                        continue;
                    }
                    MissingMember::Awaited => continue,
                    MissingMember::Ended { failed } => failed,
                };
                let authentic = |_: &&Bytes| self.app.0.trust.check_end(&id, &facts).is_ok();
                let Some(end) = facts.get(name::END).filter(authentic) else { continue };
                let joining = Joining {
                    waiting: awaited.place.clone(),
                    index: slot.index,
                    size,
                    policy: slot.part.policy,
                };
                self.commit_join(&id, &joining, end, failed).await?;
                records.joined += 1;
            }
        }
        Ok(records)
    }

    /// Returns the record that counts for a member: its own, that of the task that has replaced it, or that of the task that
    /// repeats it where a failure is held. `None` while what replaces or repeats it is not known yet.
    async fn counting_record(
        &self,
        slot: &MemberSlot<'_>,
        mut facts: Facts,
    ) -> Result<Option<(TaskId, Facts)>, Settlement> {
        let mut id = slot.id.clone();
        // Each task has a longer id than the one before, or a hash: this ends.
        while let Some(next) = continued_by_record(&facts) {
            let root = self.calls.read_other(&RecordId::from(&spawned_root(&next))).await?;
            let last = self.calls.read_other(&RecordId::from(&next)).await?;
            if is_replacement_under_way(&facts, &root, &last) {
                return Ok(None);
            }
            (id, facts) = (next, last);
        }
        if slot.part.policy == Policy::Hold
            && failure_of(&facts).is_some()
            && let Some(again) = facts.text(name::RETRIED_AS).and_then(|id| TaskId::parse(&id).ok())
        {
            let repeated = self.calls.read_other(&RecordId::from(&again)).await?;
            return Ok((!repeated.is_empty()).then_some((again, repeated)));
        }
        Ok(Some((id, facts)))
    }

    /// Returns `true` unless a member may not have been published yet.
    async fn was_published(&self, awaited: &Awaited<'_>, slot: &MemberSlot<'_>) -> Result<bool, Settlement> {
        for id in slot.publishers(&awaited.place) {
            if let Some(published) = has_published(&self.calls.read_other(&RecordId::from(&id)).await?) {
                return Ok(published);
            }
        }
        Ok(true)
    }

    /// Ends a task to which its join gives too much.
    async fn check_size(&self, envelope: &Envelope, args: &[Arg]) -> Result<(), Settlement> {
        let max = self.app.0.max_sizes.gathered;
        let size: usize = args.iter().map(|arg| crate::record::json(arg).len()).sum();
        if size > max {
            let error = format!(
                "the results that it waits for have {size} bytes, and the maximum is {max}: let the members store their \
                 data elsewhere, and return its location"
            );
            return Err(self.end_waiting(envelope, Failure::new(FailureKind::Malformed, &*error)).await);
        }
        Ok(())
    }

    /// Ends a task that waits, if its record does not say otherwise.
    pub(super) async fn end_waiting(&self, envelope: &Envelope, failure: Failure) -> Settlement {
        let facts = match self.unless_decided(envelope).await {
            Ok(facts) => facts,
            Err(settlement) => return settlement,
        };
        self.end_or_guard(envelope, facts, failure).await
    }

    /// Publishes a copy that looks again later, and settles the delivery.
    async fn wait_on(&self, envelope: &Envelope, awaited: &Awaited<'_>, lost: &[TaskId]) -> Settlement {
        let facts = match self.calls.read(&envelope.id).await {
            Ok(facts) => facts,
            Err(unanswered) => return unanswered.into(),
        };
        match decide_parking(&facts, envelope.attempt, envelope.generation, false) {
            ParkDecision::Over(follow_up) => return self.follow(envelope, &follow_up).await,
            ParkDecision::NewerGuard => return Settlement::Ack,
            // Revoked.
            ParkDecision::Proceed => {
                let failure = Failure::new(FailureKind::Revoked, "revoked");
                return self.end_or_guard(envelope, facts, failure).await;
            }
            ParkDecision::Park(_) => {}
        }
        let (since, patience) = (envelope.pairs.lost_since(), self.app.0.results_ttl);
        match decide_lost(!lost.is_empty(), since, self.now(), patience) {
            LostDecision::End => {
                let failure = Failure::new(FailureKind::Lost, &*lost_error(lost));
                self.end_or_guard(envelope, facts, failure).await
            }
            LostDecision::Wait(since) => {
                self.settled_by(self.publish_waiting(envelope, awaited, since).await).await
            }
        }
    }

    async fn publish_waiting(
        &self,
        envelope: &Envelope,
        awaited: &Awaited<'_>,
        lost_since: Option<Timestamp>,
    ) -> Result<(), Unpublished> {
        let delay = park_delay(envelope.generation);
        let mut guard = envelope.next_guard(self.now().plus(delay));
        guard.pairs = guard.pairs.with_lost_since(lost_since);
        self.publish_later(&guard, delay).await?;
        let mut mark = Commit::new(guard.id.clone());
        mark.unless = vec![name::END.into()];
        mark.facts = vec![(name::guard(guard.attempt, guard.generation), "1".into())];
        // A task may wait for longer than an unfinished record is kept: each time counts again.
        mark.expiry = Expiry::After(delay + UNFINISHED_TTL);
        for commit in [mark, extend_join(awaited.record.clone())] {
            match self.calls.commit(commit).await {
                // The copy is published, and decides again when it comes back.
                Ok(_) | Err(Unanswered::BadRecord) => {}
                Err(unanswered) => return Err(unanswered.into()),
            }
        }
        Ok(())
    }
}

impl WorkerContext {
    /// Returns the roots of the workflows whose revocation revokes a task: its own, and those in which it replaces a task.
    pub(super) fn revocable_roots(&self, envelope: &Envelope, place: &StepPlace) -> Vec<TaskId> {
        let mut roots = vec![place.root_id().clone()];
        // What begins later in a workflow that replaces a task is found by the revocation itself.
        let flow = place.is_root().then(|| self.app.decode(envelope).ok()?.flow).flatten();
        roots.extend(flow.iter().flat_map(|flow| flow.replaced()).map(|replaced| replaced.root().clone()));
        roots
    }

    /// Returns `true` if one of these workflows was revoked, as far as this worker knows: for a moment, it believes an
    /// earlier answer.
    pub(super) async fn is_any_revoked(&self, roots: &[TaskId]) -> Result<bool, Unanswered> {
        for root in roots {
            let revoked = match self.revoked_roots.known(root) {
                Some(revoked) => revoked,
                None => self.read_mark(root).await?,
            };
            if revoked {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads the mark of a workflow: `true` if it was revoked.
    pub(super) async fn read_mark(&self, root: &TaskId) -> Result<bool, Unanswered> {
        let revoked = self.calls.read_other(&revoked_root(root)).await?.has(name::REVOKED);
        self.revoked_roots.learn(root, revoked);
        Ok(revoked)
    }
}

/// Returns the error of a task whose members are lost.
fn lost_error(lost: &[TaskId]) -> String {
    let named: Vec<&str> = lost.iter().take(NAMED_MEMBERS).map(TaskId::as_str).collect();
    let more = lost.len().saturating_sub(NAMED_MEMBERS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("the backend has lost the results of tasks that it waits for: {}{more}", named.join(", "))
}
