//! Steps of a delivery, in the order of `worker/callback.rs` and `worker/continuation.rs`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::FlowFault;
use super::{
    FlowModel, FlowMutation, FlowStep, LAST_GUARD, NOW, SWAP, TTL, inc,
    state::{FlowAct, FlowDelivery, FlowEnd, FlowMessage, FlowStage, FlowState},
    task,
};
use crate::{
    args::{Arg, Results},
    backend::Commit,
    flow::Spawned,
    id::{RecordId, RunId, SessionId},
    record::{
        Child, Claim, CommitRefusal, EncodedResults, End, EndVerdict, EndedMember, ErrorText, Facts, Failure,
        FailureKind, FollowUp, JoinDecision, JoinedMember, Joining, LostDecision, MemberSlot, MissingMember,
        ParkDecision, StartDecision, StartRequest, Verdict, abandoned_start, after_failure, after_success,
        continued_by, decide_join, decide_lost, decide_parking, decide_start, explain_refusal,
        failure_without_run, gathered_fact, has_published, join, join_record, joinings, json, may_be_decided,
        member_slots, missing_member, name, never_after, outcome_commit, recorded_follow_up, spawned_by,
        upstream_error, waiting_callback,
    },
    workflow::{Policy, Sendable, StepPlan, Workflow, spawned_of},
};

pub(super) fn guard_after(message: FlowMessage) -> FlowMessage {
    let next = message.generation.saturating_add(1);
    // A task that waits is woken with a newer copy than its last guard. Its guards are never older.
    FlowMessage { generation: next.min(message.generation.max(LAST_GUARD)), ..message }
}

impl FlowModel {
    pub(super) fn delivery_steps(
        &self,
        state: &FlowState,
        worker: usize,
        delivery: &FlowDelivery,
        steps: &mut Vec<FlowStep>,
    ) {
        let child = self.child_of(delivery.message.child);
        let record = self.task_record(&child);
        let mut next = state.clone();
        let says = |what: &str| format!("worker {worker}, {}: {what}", child.id());
        let set = |next: &mut FlowState, stage: FlowStage| {
            next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        };
        match &delivery.stage {
            FlowStage::Open => {
                set(&mut next, self.opened(state, &child));
                self.push(steps, says("looks again"), false, next);
            }
            FlowStage::Look(looked) => {
                let members = self.members(state, &child.place);
                let mut decision = decide_join(&child.step.flow.awaits, &members);
                let joined =
                    state.joined.get(&self.record_no(&join_record(&child.place))).copied().unwrap_or(0);
                if self.mutated(FlowMutation::CountDecides)
                    && usize::from(joined) >= Self::slots_of(&child).len()
                    && matches!(decision, JoinDecision::Undecided(_))
                {
                    decision = JoinDecision::Run(Vec::new());
                }
                let stage = match decision {
                    JoinDecision::Run(args) => FlowStage::Start(Some(self.args_no(args))),
                    JoinDecision::Upstream(_) => FlowStage::End(FailureKind::Upstream),
                    JoinDecision::Undecided(_) if *looked || self.mutated(FlowMutation::MembersNotAsked) => {
                        FlowStage::Wait
                    }
                    JoinDecision::Undecided(missing) => {
                        let parts = &child.step.flow.awaits;
                        let ended = |slot: MemberSlot<'_>| {
                            let (id, facts) = self.counting_record(state, &slot.id)?;
                            let joins = missing_member(&facts, slot.part.policy);
                            matches!(joins, MissingMember::Ended { .. }).then(|| {
                                let index = u8::try_from(slot.index).expect("few members");
                                (index, self.record_no(&RecordId::from(&id)))
                            })
                        };
                        let slots = member_slots(&child.place, parts, missing).into_iter();
                        let found: Vec<_> = slots.filter_map(ended).collect();
                        if found.is_empty() { FlowStage::Wait } else { FlowStage::Rejoin(found) }
                    }
                };
                set(&mut next, stage);
                self.push(steps, says("looks at its join"), false, next);
            }
            FlowStage::Rejoin(found) => {
                let (index, member) = found[0];
                let facts = self.facts_of(state, member);
                if let (Some(end), Some(id)) =
                    (facts.get(name::END), self.record_names.get(u32::from(member)).task())
                {
                    let joining = self.joining_of(&child, u32::from(index));
                    let fact = json(&JoinedMember { id, end: String::from_utf8_lossy(end).into_owned() });
                    drop(self.commit(&mut next, &join(&joining, fact)));
                }
                self.push_unanswered(steps, &says("lets a member join"), &next);
                let rest = found[1..].to_vec();
                set(&mut next, if rest.is_empty() { FlowStage::Look(true) } else { FlowStage::Rejoin(rest) });
                self.push(steps, says("lets a member join"), false, next);
            }
            FlowStage::Wait => {
                let facts = self.facts_of(state, record);
                let stage = match decide_parking(&facts, 1, u32::from(delivery.message.generation), false) {
                    ParkDecision::Over(follow_up) => self.follow_stage(state, &child, &follow_up, None),
                    ParkDecision::NewerGuard => FlowStage::Ack,
                    ParkDecision::Proceed => FlowStage::End(FailureKind::Revoked),
                    ParkDecision::Park(_) if self.mutated(FlowMutation::NoGuard) => FlowStage::Ack,
                    ParkDecision::Park(_) if self.mutated(FlowMutation::GuardStoredFirst) => {
                        FlowStage::StoreGuard
                    }
                    ParkDecision::Park(_) => FlowStage::PublishGuard,
                };
                let parks = stage == FlowStage::PublishGuard;
                set(&mut next, stage);
                self.push(steps, says("reads its record"), false, next);
                // Any time may have passed since the first look that has found members lost.
                let lost = parks && self.has_lost_members(state, &child);
                if decide_lost(lost, Some(NOW), NOW.plus(TTL), TTL) == LostDecision::End {
                    let mut next = state.clone();
                    set(&mut next, FlowStage::End(FailureKind::Lost));
                    self.push(steps, says("has waited long enough for lost members"), false, next);
                }
            }
            FlowStage::PublishGuard => {
                Self::put(&mut next, guard_after(delivery.message));
                self.push_unanswered(steps, &says("publishes a copy"), &next);
                let stored_first = self.mutated(FlowMutation::GuardStoredFirst);
                set(&mut next, if stored_first { FlowStage::Ack } else { FlowStage::StoreGuard });
                self.push(steps, says("publishes a copy"), false, next);
            }
            FlowStage::StoreGuard => {
                self.store_guard(&mut next, &child, guard_after(delivery.message).generation);
                let stored_first = self.mutated(FlowMutation::GuardStoredFirst);
                set(&mut next, if stored_first { FlowStage::PublishGuard } else { FlowStage::Ack });
                self.push(steps, says("notes the copy"), false, next);
            }
            FlowStage::End(kind) => {
                let facts = self.facts_of(state, record);
                let run = abandoned_start(&facts, 1);
                let stage = match recorded_follow_up(&facts, 1) {
                    Some(follow_up) => self.follow_stage(state, &child, &follow_up, None),
                    // It waits, as another copy: only the run says how it ends.
                    None if run.is_some_and(|run| !Self::is_gone(state, worker, &run.session))
                        && !self.mutated(FlowMutation::EndOverRun) =>
                    {
                        return;
                    }
                    None => {
                        let failure = Failure::new(*kind, "no");
                        let commit = failure_without_run(&child.id(), &facts, 1, failure, NOW, TTL);
                        match self.commit(&mut next, &commit) {
                            Ok(facts) => {
                                let follow_up = recorded_follow_up(&facts, 1).expect("an end");
                                self.follow_stage(&next, &child, &follow_up, None)
                            }
                            Err(_) => FlowStage::Open,
                        }
                    }
                };
                set(&mut next, stage);
                self.push(steps, says("ends without a run"), false, next);
            }
            FlowStage::Start(gathered) => self.start_steps(state, worker, delivery, *gathered, steps),
            FlowStage::Record(claim, end) => {
                let is_told = || self.is_revoked(state) || self.facts_of(state, record).has(name::REVOKED);
                if *end != FlowEnd::Revoked && state.revoking.is_some() && is_told() {
                    let mut next = state.clone();
                    set(&mut next, FlowStage::Record(*claim, FlowEnd::Revoked));
                    self.push(steps, says("is told to end"), false, next);
                }
                let claim = self.claims.borrow()[*claim as usize].clone();
                let verdict = self.verdict(&child, &claim, *end);
                if self.mutated(FlowMutation::JoinBeforeRecord) {
                    let end = outcome_commit(&claim, &verdict, String::new(), NOW, TTL)
                        .facts
                        .pop()
                        .expect("an end")
                        .1;
                    for joining in joinings(&child.place, &child.step.flow) {
                        let fact = json(&JoinedMember {
                            id: child.id(),
                            end: String::from_utf8_lossy(&end).into_owned(),
                        });
                        drop(self.commit(&mut next, &join(&joining, fact)));
                    }
                }
                let commit = outcome_commit(&claim, &verdict, String::new(), NOW, TTL);
                let memory =
                    commit.facts.iter().find(|(fact, _)| fact == name::END).map(|(_, end)| end.clone());
                let memory = memory.filter(|_| self.mutated(FlowMutation::ArgsFromMemory));
                let stage = match self.commit(&mut next, &commit) {
                    Ok(facts) => {
                        let follow_up = recorded_follow_up(&facts, 1).expect("an end");
                        self.follow_stage(&next, &child, &follow_up, memory)
                    }
                    Err(facts) => match explain_refusal(&facts, &claim, &verdict) {
                        CommitRefusal::Recorded => {
                            let follow_up = recorded_follow_up(&facts, 1).expect("an end");
                            self.follow_stage(&next, &child, &follow_up, memory)
                        }
                        CommitRefusal::Over(follow_up) => {
                            self.follow_stage(&next, &child, &follow_up, memory)
                        }
                        _ => FlowStage::Open,
                    },
                };
                if self.mutated(FlowMutation::JoinBeforeRecord) {
                    // A process may die between the two.
                    let mut between = next.clone();
                    between.records.insert(record, state.records.get(&record).copied().unwrap_or(0));
                    set(&mut between, delivery.stage.clone());
                    if between != *state {
                        self.push(steps, says("joins"), false, between);
                        return;
                    }
                }
                set(&mut next, stage);
                self.push(steps, says("records its outcome"), false, next);
            }
            FlowStage::Follow(acts, at, woken) => {
                self.act(state, worker, delivery, (*acts, *at), woken, steps);
            }
            FlowStage::NoteCopy(generation, woken) => {
                let waiting = self.record_names.get(u32::from(woken[0])).task().expect("a task");
                let mut mark = Commit::new(waiting);
                mark.unless = vec![name::END.into()];
                mark.facts = vec![(name::guard(1, u32::from(*generation)), "1".into())];
                drop(self.commit(&mut next, &mark));
                self.push_unanswered(steps, &says("notes the copy of a task that waited"), &next);
                let rest = woken[1..].to_vec();
                set(&mut next, self.release_stage(&rest));
                self.push(steps, says("notes the copy of a task that waited"), false, next);
            }
            FlowStage::Mark => {
                let done = FollowUp::Ended { spawns: false }.done(&child.id(), 1).expect("a mark");
                drop(self.commit(&mut next, &done));
                set(&mut next, FlowStage::Ack);
                self.push(steps, says("marks its follow-up as done"), false, next);
            }
            FlowStage::Ack => {
                next.workers[worker].delivery = None;
                self.push(steps, says("acknowledges"), false, next);
            }
        }
    }

    pub(super) fn start_steps(
        &self,
        state: &FlowState,
        worker: usize,
        delivery: &FlowDelivery,
        gathered: Option<u32>,
        steps: &mut Vec<FlowStep>,
    ) {
        let child = self.child_of(delivery.message.child);
        let record = self.task_record(&child);
        let facts = self.facts_of(state, record);
        let session = state.workers[worker].session;
        if state.alive & (1 << session) == 0 {
            // It opens another session first.
            let mut next = state.clone();
            next.workers[worker].session = next.next_session;
            next.alive |= 1 << next.next_session;
            next.next_session += 1;
            return self.push(steps, format!("worker {worker} opens a session"), false, next);
        }
        let starts = facts.iter().filter(|(fact, _)| fact.starts_with("s:")).count();
        let gathered_fact = gathered.map(|args| gathered_fact(&self.args.borrow()[args as usize]));
        let request = StartRequest {
            id: child.id(),
            attempt: 1,
            generation: u32::from(delivery.message.generation),
            run: format!("{session}-{starts}").as_str().into(),
            session: session.to_string().as_str().into(),
            worker: "w".into(),
            received_at: NOW,
            token: 0,
            alone: false,
            gathered: gathered_fact.filter(|_| !self.mutated(FlowMutation::ArgumentsUnchecked)),
        };
        let mut next = state.clone();
        let (mut commit, mut claim) = request.first(NOW);
        let gone = |of: &SessionId, _: &RunId| Self::is_gone(state, worker, of);
        let stage = loop {
            match self.commit(&mut next, &commit) {
                Ok(_) => break None,
                Err(facts) => match decide_start(&facts, &request, gone, NOW) {
                    StartDecision::AlreadyStarted(_) => break Some(FlowStage::Ack),
                    StartDecision::Over(follow_up) => {
                        break Some(self.follow_stage(state, &child, &follow_up, None));
                    }
                    StartDecision::NewerGuard => break Some(FlowStage::Ack),
                    StartDecision::OtherArguments => break Some(FlowStage::End(FailureKind::Lost)),
                    StartDecision::Revoked => break Some(FlowStage::End(FailureKind::Revoked)),
                    // It waits; what it waits for is another step.
                    StartDecision::Busy(_) => return,
                    StartDecision::TakeOver(take_over) => (commit, claim) = *take_over,
                },
            }
        };
        let says = |how: &str| format!("worker {worker} requests a start of {}{how}", child.id());
        let set = |next: &mut FlowState, stage: FlowStage| {
            next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        };
        if let Some(stage) = stage {
            set(&mut next, stage);
            return self.push(steps, says(""), false, next);
        }
        let number = {
            let mut claims = self.claims.borrow_mut();
            let known = claims.iter().position(|known| *known == claim);
            let number = known.unwrap_or_else(|| {
                claims.push(claim);
                claims.len() - 1
            });
            u32::try_from(number).expect("few claims")
        };
        self.check_start(&mut next, &child, record, gathered);
        let mut failing = next.clone();
        set(&mut next, FlowStage::Record(number, FlowEnd::Success));
        self.push(steps, says(", and runs"), false, next);
        let fails = &mut failing.faults_left[FlowFault::Fail as usize];
        if *fails > 0 && !child.place.is_root() {
            *fails -= 1;
            set(&mut failing, FlowStage::Record(number, FlowEnd::Failure));
            self.push(steps, says(", and fails"), true, failing);
        }
    }

    /// Returns the stage of a delivery that a worker looks at.
    pub(super) fn opened(&self, state: &FlowState, child: &Child) -> FlowStage {
        let waits = !child.step.flow.awaits.is_empty() && !self.mutated(FlowMutation::StartUndecided);
        if self.is_revoked(state) {
            FlowStage::End(FailureKind::Revoked)
        } else if waits {
            FlowStage::Look(false)
        } else {
            FlowStage::Start(None)
        }
    }

    /// Adds the step in which a server has done what was asked for, and the worker does not learn of it and asks again.
    fn push_unanswered(&self, steps: &mut Vec<FlowStep>, what: &str, next: &FlowState) {
        let mut again = next.clone();
        let left = &mut again.faults_left[FlowFault::Reply as usize];
        if *left > 0 {
            *left -= 1;
            self.push(steps, format!("{what}, and the answer is lost"), true, again);
        }
    }

    /// Returns `true` if a worker knows that what a session runs is over.
    fn is_gone(state: &FlowState, worker: usize, session: &SessionId) -> bool {
        let number: u8 = session.as_str().parse().expect("a number");
        // A process knows what it runs itself.
        state.alive & (1 << number) == 0 || number == state.workers[worker].session
    }

    /// Checks what must hold when a task starts.
    pub(super) fn check_start(
        &self,
        state: &mut FlowState,
        child: &Child,
        record: u16,
        gathered: Option<u32>,
    ) {
        let awaits = &child.step.flow.awaits;
        if awaits.is_empty() || state.lost {
            if let (Some(gathered), true) = (gathered, state.lost) {
                let before = state.started.insert(record, gathered);
                let facts = self.facts_of(state, record);
                let again = facts.iter().filter(|(fact, _)| fact.starts_with("s:")).count() > 1;
                if before.is_some_and(|before| before != gathered) && again {
                    self.say("started with other arguments than before".to_owned());
                }
            }
            return;
        }
        let truth: BTreeMap<u32, EndedMember> = Self::slots_of(child)
            .into_iter()
            .filter_map(|slot| {
                let (id, end) = self.counting_end(state, &slot.id)?;
                Some((slot.index, EndedMember::of(id, &end)?))
            })
            .collect();
        match (decide_join(awaits, &truth), gathered) {
            (JoinDecision::Run(args), Some(gathered)) => {
                if args != self.args.borrow()[gathered as usize] {
                    self.say("started with arguments that are not recorded".to_owned());
                }
                if state.started.insert(record, gathered).is_some_and(|before| before != gathered) {
                    self.say("started with other arguments than before".to_owned());
                }
            }
            _ => self.say("started before its join was decided".to_owned()),
        }
    }

    pub(super) fn joining_of(&self, child: &Child, index: u32) -> Joining {
        let size = u32::try_from(Self::slots_of(child).len()).expect("few members");
        Joining { waiting: child.place.clone(), index, size, policy: Policy::Collect }
    }

    pub(super) fn has_lost_members(&self, state: &FlowState, child: &Child) -> bool {
        let joined = self.members(state, &child.place);
        let has_no_record = |slot: &MemberSlot<'_>| {
            let counts = self.counting_record(state, &slot.id);
            counts
                .is_some_and(|(_, facts)| missing_member(&facts, slot.part.policy) == MissingMember::NoRecord)
        };
        let was_published = |slot: &MemberSlot<'_>| {
            let mut publishers = slot.publishers(&child.place);
            if self.mutated(FlowMutation::RootPublishesAll) {
                publishers = vec![task("R")];
            }
            publishers.iter().find_map(|id| has_published(&self.task_facts(state, id))).unwrap_or(true)
        };
        let mut missing = Self::slots_of(child).into_iter().filter(|slot| !joined.contains_key(&slot.index));
        missing.any(|slot| has_no_record(&slot) && was_published(&slot))
    }

    pub(super) fn verdict(&self, child: &Child, claim: &Claim, end: FlowEnd) -> Verdict {
        let failure = |kind, text| Verdict::Failure { kind, error: ErrorText::from(text) };
        match end {
            FlowEnd::Failure => return failure(FailureKind::Error, "broken"),
            FlowEnd::Revoked => return failure(FailureKind::Revoked, "revoked"),
            FlowEnd::Success => {}
        }
        // Each run returns something else.
        let value = format!("{} by {}", child.step.name, claim.run.as_str());
        let arg = Arg { name: String::new(), kind: "string".to_owned(), value: value.into() };
        if child.step.task != SWAP {
            return Verdict::Success(EncodedResults::of(&Results(vec![arg])));
        }
        let mut first = inc();
        first.parts.args = vec![arg];
        let steps = vec![StepPlan::new("x", first), StepPlan::new("y", inc()).after(["x"])];
        let chain = Workflow::of_steps(steps).expect("a workflow").into_parts();
        let spawned = vec![Spawned { replaces: true, ..spawned_of(chain).expect("a workflow") }];
        let mut results = EncodedResults::default();
        results.continued_by = continued_by(&child.id(), &spawned);
        results.spawned = spawned;
        Verdict::Success(results)
    }

    /// Returns the stage after an end: the list of what has to be done.
    pub(super) fn follow_stage(
        &self,
        state: &FlowState,
        child: &Child,
        follow_up: &FollowUp,
        memory: Option<Bytes>,
    ) -> FlowStage {
        if *follow_up == FollowUp::Nothing {
            return FlowStage::Ack;
        }
        let facts = self.facts_of(state, self.task_record(child));
        let Some(end) = memory.or_else(|| facts.get(name::END).cloned()) else { return FlowStage::Open };
        let flow = &child.step.flow;
        let verdict = EndedMember::of(child.id(), &end).expect("an end").verdict;
        let mut acts = Vec::new();
        let publish = |children: Vec<Child>, acts: &mut Vec<FlowAct>| {
            let (waiting, others): (Vec<_>, Vec<_>) =
                children.into_iter().partition(|child| !child.step.flow.awaits.is_empty());
            acts.extend(waiting.into_iter().chain(others).map(|child| FlowAct::Publish(self.child(child))));
        };
        let recorded: End = serde_json::from_slice(&end).expect("an end");
        publish(spawned_by(&child.id(), recorded.spawned, Some(&child.place), Some(flow)), &mut acts);
        if recorded.continued_by.is_some() {
            return FlowStage::Follow(self.acts.number(acts), 0, Vec::new());
        }
        match verdict {
            EndVerdict::Success { results } => {
                publish(after_success(&child.place, flow, &results.0), &mut acts)
            }
            EndVerdict::Failure(failure) => {
                if !self.mutated(FlowMutation::CallbackLeftOut) {
                    publish(after_failure(&child.place, flow, &failure), &mut acts);
                }
                let error = upstream_error(&child.id(), &failure);
                for never in never_after(&child.place, flow) {
                    let never = self.child(never);
                    if !self.mutated(FlowMutation::UpstreamLeftOut) {
                        acts.extend([FlowAct::EndChild(never, error.clone()), FlowAct::JoinChild(never)]);
                    }
                }
            }
        }
        if !self.mutated(FlowMutation::JoinBeforeRecord) {
            acts.push(FlowAct::JoinOwn(end));
        }
        FlowStage::Follow(self.acts.number(acts), 0, Vec::new())
    }

    pub(super) fn act(
        &self,
        state: &FlowState,
        worker: usize,
        delivery: &FlowDelivery,
        (acts, at): (u32, u8),
        woken: &[u16],
        steps: &mut Vec<FlowStep>,
    ) {
        let child = self.child_of(delivery.message.child);
        let mut next = state.clone();
        let mut woken: BTreeSet<u16> = woken.iter().copied().collect();
        if at == 0 && self.mutated(FlowMutation::AckBeforeFollow) && !delivery.settled {
            next.workers[worker].delivery.as_mut().expect("a delivery").settled = true;
            return self.push(steps, "acknowledges too early", false, next);
        }
        let list = self.acts.get(acts);
        let Some(act) = list.get(usize::from(at)) else {
            return self.release(state, worker, woken.into_iter().collect(), steps);
        };
        let is_last = list.len() == usize::from(at) + 1;
        let what = match act {
            FlowAct::Publish(number) => {
                let published = self.child_of(*number);
                self.check_publish(state, &child, &published);
                Self::put(&mut next, FlowMessage { child: *number, generation: 0 });
                let mut sent = Commit::new(published.id());
                sent.facts = vec![(name::SENT.into(), json(&NOW))];
                if !published.step.flow.awaits.is_empty() {
                    // The number of the child stands for its message.
                    sent.facts.push((name::MESSAGE.into(), number.to_string().into()));
                }
                drop(self.commit(&mut next, &sent));
                format!("publishes {}", published.id())
            }
            FlowAct::EndChild(number, error) => {
                let ended = self.child_of(*number);
                let failure = Failure::new(FailureKind::Upstream, error.as_str());
                let commit = failure_without_run(&ended.id(), &Facts::new(), 1, failure, NOW, TTL);
                drop(self.commit(&mut next, &commit));
                format!("ends {}", ended.id())
            }
            FlowAct::JoinChild(number) => {
                let ended = self.child_of(*number);
                let facts = self.facts_of(state, self.task_record(&ended));
                if let Some(end) = facts.get(name::END).cloned() {
                    self.join_all(&mut next, &ended, &end, &mut woken);
                }
                format!("lets {} join", ended.id())
            }
            FlowAct::JoinOwn(end) => {
                self.join_all(&mut next, &child, end, &mut woken);
                "joins".to_owned()
            }
        };
        let what = format!("worker {worker}, {}: {what}", child.id());
        self.push_unanswered(steps, &what, &next);
        // Without anybody to wake, only the mark is left.
        let stage = if is_last && woken.is_empty() {
            FlowStage::Mark
        } else {
            FlowStage::Follow(acts, at + 1, woken.into_iter().collect())
        };
        next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        self.push(steps, what, false, next);
    }

    pub(super) fn join_all(
        &self,
        state: &mut FlowState,
        ended: &Child,
        end: &Bytes,
        woken: &mut BTreeSet<u16>,
    ) {
        let verdict = EndedMember::of(ended.id(), end).expect("an end");
        for joining in joinings(&ended.place, &ended.step.flow) {
            let fact = json(&JoinedMember { id: ended.id(), end: String::from_utf8_lossy(end).into_owned() });
            let commit = join(&joining, fact);
            if self.mutated(FlowMutation::CountDecides) {
                *state.joined.entry(self.record_no(&commit.id)).or_default() += 1;
            }
            if let Ok(facts) = self.commit(state, &commit)
                && may_be_decided(&joining, verdict.failed(), &commit.done(&facts))
            {
                woken.insert(self.record_no(&RecordId::from(&joining.waiting.id())));
            }
        }
    }

    pub(super) fn release_stage(&self, woken: &[u16]) -> FlowStage {
        if woken.is_empty() {
            FlowStage::Mark
        } else {
            FlowStage::Follow(self.acts.number(Vec::new()), 1, woken.to_vec())
        }
    }

    /// Publishes a copy of the task that waits at the front of the list, if it still waits.
    pub(super) fn release(
        &self,
        state: &FlowState,
        worker: usize,
        woken: Vec<u16>,
        steps: &mut Vec<FlowStep>,
    ) {
        let mut next = state.clone();
        let Some(first) = woken.first() else {
            next.workers[worker].delivery.as_mut().expect("a delivery").stage = FlowStage::Mark;
            return self.push(steps, "has nobody to wake", false, next);
        };
        let facts = self.facts_of(state, *first);
        let waiting = waiting_callback(&facts).zip(facts.text(name::MESSAGE));
        let stage = match waiting {
            Some((generation, child)) => {
                let generation = u8::try_from(generation + 1).expect("few generations");
                let child = child.parse().expect("a number");
                Self::put(&mut next, FlowMessage { child, generation });
                self.push_unanswered(steps, "a task that waits is woken", &next);
                FlowStage::NoteCopy(generation, woken)
            }
            None => self.release_stage(&woken[1..]),
        };
        next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        self.push(steps, format!("worker {worker} wakes a task that waits"), false, next);
    }

    pub(super) fn store_guard(&self, state: &mut FlowState, child: &Child, generation: u8) {
        let mut mark = Commit::new(child.id());
        mark.unless = vec![name::END.into()];
        mark.facts = vec![(name::guard(1, u32::from(generation)), "1".into())];
        drop(self.commit(state, &mark));
    }

    /// Checks what must hold when a task is published.
    pub(super) fn check_publish(&self, state: &FlowState, parent: &Child, published: &Child) {
        if state.lost {
            return;
        }
        if !self.facts_of(state, self.task_record(parent)).has(name::END) {
            self.say(format!(
                "{} is published before the end of {} is recorded",
                published.id(),
                parent.id()
            ));
        }
        let children = self.children.borrow();
        let in_broker = |message: &FlowMessage| {
            let other = &children[usize::from(message.child)];
            other.place == published.place && **other != *published
        };
        let held =
            state.workers.iter().filter_map(|worker| worker.delivery.as_ref()).map(|held| &held.message);
        if state.queue.iter().chain(held).any(in_broker) {
            self.say(format!("{} is published with other arguments", published.id()));
        }
        let facts = self.facts_of(state, self.task_record(parent));
        let Some(End { verdict, spawned, continued_by, .. }) = facts.read(name::END) else { return };
        let flow = &parent.step.flow;
        let mut right = spawned_by(&parent.id(), spawned, Some(&parent.place), Some(flow));
        match (verdict, continued_by) {
            // What follows it follows the task that has replaced it.
            (_, Some(_)) => {}
            (EndVerdict::Success { results }, None) => {
                right.extend(after_success(&parent.place, flow, &results.0));
            }
            (EndVerdict::Failure(failure), None) => {
                right.extend(after_failure(&parent.place, flow, &failure));
            }
        }
        if !right.contains(published) {
            self.say(format!(
                "{} is published with arguments that are not recorded, or against what is recorded",
                published.id()
            ));
        }
    }
}
