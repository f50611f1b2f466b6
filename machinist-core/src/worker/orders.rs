//! Orders of people to this worker: they are checked, obeyed once, and answered.
//!
//! The state that is wanted belongs to the name of the worker. It is read with every renewal, so a worker that misses the
//! wake-up, or has started after the order, obeys it too. A process that dies before its answer leaves the order for the
//! next process of its name, or for its expiry.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{
    WorkerContext,
    order_book::{ChangeAnswer, WantedState},
};
use crate::{
    backend::{BackendError, Commit, Committed},
    clock::Timestamp,
    id::{QueueName, QueuePattern},
    record::{
        Newest, OrderAnswer, PresenceState, answer_order, json, keep_listed_runs, name, newest, orders,
        restore_wanted,
    },
    security::{WorkerAction, WorkerChange, WorkerOrder},
};
use machinist_adapter::error::chain;

/// Maximum time in which the broker has to prepare a queue that a worker is to take.
pub(super) const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of slots that an order can give a worker.
const MAX_CONCURRENCY: u32 = 10_000;

/// Decision about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OrderDecision {
    /// The order is done.
    Done,
    /// The options have to be changed.
    Change,
    /// The order is done as soon as the worker is in the state that is wanted.
    NotYet,
    /// The order is refused, for this reason.
    Refused(&'static str),
}

/// State of the worker that is ordered.
#[derive(Debug, Clone, Copy)]
struct Standing<'a> {
    session: &'a str,
    state: PresenceState,
    /// Number of the order whose state is wanted.
    wanted: Option<i64>,
    /// `true` if the subscription is the one that is wanted.
    settled: bool,
    /// `true` if a supervisor starts the program again.
    restartable: bool,
    now: Timestamp,
}

/// Decides about an order that a trusted key has signed for this worker.
fn decide(order: &WorkerOrder, worker: &Standing<'_>) -> OrderDecision {
    if order.expires < worker.now {
        return OrderDecision::Refused("the order has expired");
    }
    if order.session.as_deref().is_some_and(|ordered| ordered != worker.session) {
        return OrderDecision::Refused("the process that was to obey has gone; this is another of its name");
    }
    if order.action.is_lasting() && worker.wanted.is_some_and(|wanted| order.number < wanted) {
        return OrderDecision::Refused("a later order wants another state");
    }
    let drains = worker.state == PresenceState::Draining;
    match order.action {
        WorkerAction::Pause | WorkerAction::Resume if drains => {
            OrderDecision::Refused("it drains; the next process of its name obeys")
        }
        WorkerAction::Set(_) | WorkerAction::Reload if drains => OrderDecision::Refused("it drains"),
        WorkerAction::Pause | WorkerAction::Resume | WorkerAction::Settle if !worker.settled && !drains => {
            OrderDecision::NotYet
        }
        WorkerAction::Restart if !worker.restartable => OrderDecision::Refused(
            "no exit code tells its supervisor to start it again; set restart_exit_code in [worker]",
        ),
        WorkerAction::Set(_) | WorkerAction::Reload => OrderDecision::Change,
        _ => OrderDecision::Done,
    }
}

/// Returns the queues of a worker after a change.
fn changed_queues(
    mut queues: BTreeSet<QueuePattern>,
    change: &WorkerChange,
) -> Result<BTreeSet<QueuePattern>, String> {
    queues.extend(change.add_queues.iter().cloned());
    for queue in &change.drop_queues {
        if !queues.remove(queue) {
            let own: Vec<_> = queues.iter().map(QueuePattern::as_str).collect();
            return Err(format!("{queue} is none of its queues and patterns, which are {}", own.join(", ")));
        }
    }
    if queues.is_empty() {
        return Err("it would take tasks from no queue; pause it instead".to_owned());
    }
    Ok(queues)
}

impl WorkerContext {
    /// Waits before the start while other sessions hold the name of this worker, or the lowest of its numbers, and people have
    /// paused one of them: the process of that session may have been killed, and then this one takes the name and sleeps. A
    /// session that outlives its lease belongs to a process that lives, and this worker is a further one of its name. Returns
    /// `false` if the worker was told to stop meanwhile.
    pub(super) async fn await_paused_name(
        &self,
        mut shutdown: impl Future<Output = ()> + Unpin,
    ) -> Result<bool, BackendError> {
        let lease = self.sessions.lease();
        let until = Instant::now() + lease.duration() + lease.check_interval();
        let mut waits = false;
        while Instant::now() < until && self.sessions.is_paused_elsewhere().await? {
            if !std::mem::replace(&mut waits, true) {
                tracing::info!(
                    worker = %self.name,
                    "this name is paused, and its last session has not expired: waiting until it is clear who holds it"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(lease.check_interval()) => {}
                () = self.stages.reached_drain() => return Ok(false),
                () = &mut shutdown => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Applies what people want, as it was last read. Returns the commit that writes the wanted state back, where the
    /// backend has lost it or shows an earlier one.
    pub(super) fn apply_wanted_state(&self) -> Option<Commit> {
        self.sessions.presence.want_paused(self.sessions.switches.paused_queues());
        let (worker, facts) = (self.sessions.held_name(), self.sessions.orders());
        let read = facts.get(name::WANTED);
        let mut memory = self.orders.memory();
        // What is wanted of another name says nothing.
        let known = memory.wanted.clone().filter(|known| known.worker == *worker);
        if memory.wanted.is_some() && known.is_none() {
            memory.wanted = None;
            self.sessions.presence.want_sleep(false);
        }
        if known.as_ref().is_some_and(|known| read == Some(&known.stored)) {
            return None;
        }
        let order = match read.map(|stored| self.app.0.trust.read_order(worker, stored)).transpose() {
            Ok(order) => order,
            Err(why) => {
                let doubted = read.cloned().unwrap_or_default();
                if memory.doubted != doubted {
                    tracing::warn!(why, "the state that is wanted of this worker is not obeyed");
                    memory.doubted = doubted;
                }
                return None;
            }
        };
        let numbers = (known.as_ref().map(|known| known.number), order.as_ref().map(|order| order.number));
        match (newest(numbers.0, numbers.1), order, known) {
            (Newest::Read, Some(order), _) => {
                let stored = read.cloned().unwrap_or_default();
                memory.wanted = Some(WantedState { worker: worker.clone(), number: order.number, stored });
                drop(memory);
                let sleep = order.action == WorkerAction::Pause;
                self.sessions.presence.want_sleep(sleep);
                // Also of a worker that sleeps already, and whose runs were to end by themselves.
                if sleep && order.now {
                    self.sessions.cut_off_all();
                }
                None
            }
            (Newest::Known, _, Some(known)) => Some(restore_wanted(worker, &known.stored, read)),
            _ => None,
        }
    }

    /// Obeys and answers the orders that were last read, the earliest first. The renewals of the session wait for this, so only
    /// one of them changes options: what comes after it is left to the next renewal.
    pub(super) async fn obey_orders(&self) -> Result<(), BackendError> {
        let lost = self.apply_wanted_state().into_iter().chain(self.sessions.take_lost_switches());
        for commit in lost {
            // Refused: another process has written it.
            self.app.client().commit(commit).await?;
        }
        let facts = self.sessions.orders();
        let worker = self.sessions.held_name();
        let mut read: Vec<_> = orders(&facts)
            .into_iter()
            .map(|(id, stored)| (self.app.0.trust.read_order(worker, &stored), id, stored))
            .collect();
        read.sort_by_key(|(order, ..)| order.as_ref().map_or(i64::MIN, |order| order.number));
        let mut changed = false;
        for (order, id, stored) in read {
            let answer = match &order {
                Err(why) => Err(why.clone()),
                Ok(order) => match self.decide(order) {
                    OrderDecision::NotYet => continue,
                    OrderDecision::Done => {
                        if order.action == WorkerAction::ListRuns {
                            // First: whoever reads the answer finds the list.
                            self.keep_listed_runs(order).await?;
                        }
                        Ok(None)
                    }
                    OrderDecision::Change if changed => {
                        self.sessions.presence.woken.notify_one();
                        break;
                    }
                    OrderDecision::Change => {
                        changed = true;
                        self.change(order).await
                    }
                    OrderDecision::Refused(why) => Err(why.to_owned()),
                },
            };
            let done = answer.is_ok();
            let session = self.sessions.current().to_string();
            let reason = answer.unwrap_or_else(Some);
            let answer = OrderAnswer { done, reason, at: self.now(), session };
            let commit = answer_order(worker, &facts, &id, &stored, json(&answer));
            // Refused: it was answered, or taken back.
            let answered = matches!(self.app.client().commit(commit).await?, Committed::Done { .. });
            if let Ok(order) = order
                && done
                && answered
                && matches!(order.action, WorkerAction::Drain | WorkerAction::Restart)
            {
                self.orders.memory().restarts |= order.action == WorkerAction::Restart;
                self.stages.drain();
                if order.now {
                    self.stages.advance();
                }
            }
        }
        Ok(())
    }

    /// Writes all that runs into a separate record: kept with the answers, it would be read with every renewal.
    async fn keep_listed_runs(&self, order: &WorkerOrder) -> Result<(), BackendError> {
        let runs = self.sessions.all_runs();
        self.app.client().commit(keep_listed_runs(&order.id, &self.sessions.current(), runs)).await.map(drop)
    }

    fn decide(&self, order: &WorkerOrder) -> OrderDecision {
        let session = self.sessions.current();
        let presence = &self.sessions.presence;
        decide(
            order,
            &Standing {
                session: session.as_str(),
                state: presence.state(),
                wanted: self.orders.memory().wanted.as_ref().map(|wanted| wanted.number),
                settled: presence.is_settled(),
                restartable: self.orders.restart_exit_code.is_some(),
                now: self.now(),
            },
        )
    }

    /// Changes the options of this process, once for each order, and not after a later order has changed them.
    async fn change(&self, order: &WorkerOrder) -> ChangeAnswer {
        match self.orders.memory().changed.clone() {
            Some((number, answer)) if number == order.number => return answer,
            Some((number, _)) if number > order.number => {
                return Err("a later order has changed its options".to_owned());
            }
            _ => {}
        }
        let answer = match &order.action {
            WorkerAction::Set(change) => self.try_change(change).await.map(|()| None),
            WorkerAction::Reload => self.reload().await,
            _ => Ok(None),
        };
        self.orders.memory().changed = Some((order.number, answer.clone()));
        answer
    }

    /// Maximum time for a change of options. The renewals of the session wait for it.
    fn change_timeout(&self) -> Duration {
        PREPARE_TIMEOUT.min(self.sessions.lease().duration() / 2)
    }

    /// Reads the configuration again. It is dropped when it takes long. It has changed nothing then.
    async fn reload(&self) -> ChangeAnswer {
        let within = self.change_timeout();
        let hook = "the function that reads the configuration again";
        // The session would expire if a panic ended its renewals.
        let reload = self.app.0.observers.await_hook(hook, || self.orders.reload());
        match tokio::time::timeout(within, reload).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(format!("{hook} panicked")),
            Err(_) => {
                Err(format!("the configuration could not be applied within {within:?}; nothing has changed"))
            }
        }
    }

    /// Changes the options. An error has changed nothing.
    async fn try_change(&self, change: &WorkerChange) -> Result<(), String> {
        let Ok(_changing) = self.orders.changing.try_lock() else {
            return Err("it is reading its configuration again; ask again".to_owned());
        };
        let presence = &self.sessions.presence;
        if let Some(concurrency) = change.concurrency
            && !(1..=MAX_CONCURRENCY).contains(&concurrency)
        {
            return Err(format!("concurrency {concurrency} is not a number from 1 to {MAX_CONCURRENCY}"));
        }
        let before = presence.own_queues();
        let queues = changed_queues(before.clone(), change)?;
        let new: Vec<_> = queues.difference(&before).filter_map(QueuePattern::queue).collect();
        new.iter().try_for_each(|queue| self.may_take(queue))?;
        self.prepare(&new, self.change_timeout()).await?;
        if let Some(level) = &change.log_level {
            let unable = || "this program does not let its log level be set".to_owned();
            let set = self.orders.set_log_level.as_ref().ok_or_else(unable)?;
            let panicked = || Err("the function that sets the log level panicked".to_owned());
            let observers = &self.app.0.observers;
            observers
                .call_hook("the function that sets the log level", || set(level))
                .unwrap_or_else(panicked)?;
        }
        if let Some(concurrency) = change.concurrency {
            let slots = usize::try_from(concurrency).unwrap_or(usize::MAX);
            self.capacity.set_limit(slots)?;
            self.capacity.give();
            self.look_ahead.set_concurrency(slots);
        }
        presence.want_queues(queues);
        self.describe_queues();
        Ok(())
    }

    /// Lets the broker prepare queues that the worker is to take: one that cannot be subscribed to would keep it from all
    /// others.
    ///
    /// # Cancel safety
    /// A dropped future may leave queues that nobody consumes.
    pub(super) async fn prepare(&self, new: &[QueueName], within: Duration) -> Result<(), String> {
        if new.is_empty() {
            return Ok(());
        }
        match tokio::time::timeout(within, self.app.broker().prepare(new)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the broker: {}", chain(&error).join(": "))),
            Err(_) => Err(format!("the broker: no answer within {within:?}")),
        }
    }

    /// Checks that the application's key can sign what this worker would publish again of a queue.
    pub(super) fn may_take(&self, queue: &QueueName) -> Result<(), String> {
        self.orders.tasks().iter().try_for_each(|task| self.app.0.trust.may_sign(task, queue, self.now()))
    }

    /// Shows the queues, the tags and the number of slots that the worker has now.
    pub(super) fn describe_queues(&self) {
        self.sessions.describe(self.capacity.limit());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(action: WorkerAction) -> WorkerOrder {
        WorkerOrder {
            id: "1".into(),
            action,
            now: false,
            session: None,
            number: 5,
            issued: Timestamp::from_micros(1),
            expires: Timestamp::from_micros(10),
        }
    }

    fn standing(state: PresenceState) -> Standing<'static> {
        Standing {
            session: "s",
            state,
            wanted: Some(5),
            settled: true,
            restartable: true,
            now: Timestamp::from_micros(5),
        }
    }

    #[test]
    fn an_order_is_done_when_the_worker_is_in_the_state_that_is_wanted() {
        let pause = order(WorkerAction::Pause);
        let awake = standing(PresenceState::Awake);
        let asleep = standing(PresenceState::Asleep);
        assert_eq!(decide(&pause, &Standing { settled: false, ..awake }), OrderDecision::NotYet);
        assert_eq!(decide(&pause, &asleep), OrderDecision::Done);
        assert!(matches!(decide(&pause, &Standing { wanted: Some(6), ..asleep }), OrderDecision::Refused(_)));
        assert!(matches!(decide(&pause, &standing(PresenceState::Draining)), OrderDecision::Refused(_)));
    }

    #[test]
    fn an_expired_order_and_one_to_another_process_are_refused() {
        let mut drain = order(WorkerAction::Drain);
        let at = |order: &WorkerOrder, now| {
            decide(order, &Standing { now: Timestamp::from_micros(now), ..standing(PresenceState::Awake) })
        };
        assert_eq!(at(&drain, 10), OrderDecision::Done);
        assert!(matches!(at(&drain, 11), OrderDecision::Refused(_)));
        drain.session = Some("t".into());
        assert!(matches!(at(&drain, 5), OrderDecision::Refused(_)));
        drain.session = Some("s".into());
        assert_eq!(at(&drain, 5), OrderDecision::Done);
    }

    #[test]
    fn a_restart_is_refused_where_nobody_would_start_the_program_again() {
        let restart = order(WorkerAction::Restart);
        let worker = standing(PresenceState::Awake);
        assert_eq!(decide(&restart, &worker), OrderDecision::Done);
        let OrderDecision::Refused(why) = decide(&restart, &Standing { restartable: false, ..worker }) else {
            panic!("it is refused")
        };
        assert!(why.contains("restart_exit_code"));
    }

    #[test]
    fn queues_are_added_and_dropped_and_one_is_left() {
        let queue = |name: &str| QueuePattern::parse(name).unwrap();
        let own = BTreeSet::from([queue("a"), queue("b")]);
        let change = |add: &[&str], drop: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|name| queue(name)).collect::<Vec<_>>();
            let change =
                WorkerChange { add_queues: names(add), drop_queues: names(drop), ..WorkerChange::default() };
            changed_queues(own.clone(), &change)
        };
        assert_eq!(change(&["c", "a"], &["b"]), Ok(BTreeSet::from([queue("a"), queue("c")])));
        assert_eq!(change(&["t-*"], &["a", "b"]), Ok(BTreeSet::from([queue("t-*")])));
        assert!(change(&[], &["a", "b"]).unwrap_err().contains("no queue"));
        assert!(change(&[], &["c"]).unwrap_err().contains("which are a, b"));
    }
}
