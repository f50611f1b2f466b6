//! Orders of people to this worker: they are checked, obeyed once, and answered.
//!
//! The state that is wanted belongs to the name of the worker. It is read with every renewal, so a worker that misses the
//! wake-up, or has started after the order, obeys it too. A process that dies before its answer leaves the order for the
//! next process of its name, or for its expiry.

use super::WorkerContext;
use crate::{
    backend::{BackendError, Committed},
    clock::Timestamp,
    record::{OrderAnswer, PresenceState, answer_order, json, name, orders},
    security::{WorkerAction, WorkerOrder},
};

/// Decision about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OrderDecision {
    /// The order is done.
    Done,
    /// The order is done as soon as the worker is in the state that is wanted.
    NotYet,
    /// The order is refused, for this reason.
    Refused(&'static str),
}

/// Decides about an order that a trusted key has signed for this worker.
fn decide(
    order: &WorkerOrder,
    session: &str,
    state: PresenceState,
    must_sleep: bool,
    now: Timestamp,
) -> OrderDecision {
    if order.expires < now {
        return OrderDecision::Refused("the order has expired");
    }
    if order.session.as_deref().is_some_and(|ordered| ordered != session) {
        return OrderDecision::Refused("the process that was to obey has gone; this is another of its name");
    }
    if order.action.is_lasting() && (order.action == WorkerAction::Pause) != must_sleep {
        return OrderDecision::Refused("a later order wants another state");
    }
    match (order.action, state) {
        (WorkerAction::Pause, PresenceState::Asleep) | (WorkerAction::Resume, PresenceState::Awake) => {
            OrderDecision::Done
        }
        (WorkerAction::Pause | WorkerAction::Resume, PresenceState::Draining) => {
            OrderDecision::Refused("it drains; the next process of its name obeys")
        }
        (WorkerAction::Pause | WorkerAction::Resume, _) => OrderDecision::NotYet,
        (WorkerAction::Drain | WorkerAction::Ping, _) => OrderDecision::Done,
    }
}

impl WorkerContext {
    /// Applies the state that people want, as the record of the worker's name was last read.
    pub(super) fn apply_wanted_state(&self) {
        let Some(wanted) = self.sessions.orders().get(name::WANTED).cloned() else { return };
        let order: WorkerOrder = match serde_json::from_slice(&wanted) {
            Ok(order) => order,
            Err(error) => {
                return tracing::warn!(%error, "the state that is wanted of this worker is unreadable");
            }
        };
        if let Err(why) = self.app.0.trust.check_order(&order, &self.sessions.held_name()) {
            return tracing::warn!(why, "the state that is wanted of this worker is not obeyed");
        }
        let sleep = order.action == WorkerAction::Pause;
        if self.sessions.presence.want_sleep(sleep) && sleep && order.now {
            self.sessions.cut_off_all();
        }
    }

    /// Obeys and answers the orders that were last read.
    pub(super) async fn obey_orders(&self) -> Result<(), BackendError> {
        self.apply_wanted_state();
        let facts = self.sessions.orders();
        let worker = self.sessions.held_name();
        for (id, stored) in orders(&facts) {
            let (answer, order) = match self.answer_to(&stored, &worker) {
                Ok((OrderDecision::NotYet, _)) => continue,
                Ok((OrderDecision::Done, order)) => (OrderAnswer::done(self.now()), Some(order)),
                Ok((OrderDecision::Refused(why), _)) => (OrderAnswer::refused(why, self.now()), None),
                Err(why) => (OrderAnswer::refused(&why, self.now()), None),
            };
            let commit = answer_order(&worker, &facts, &id, &stored, json(&answer));
            // Refused: it was answered, or taken back.
            let answered = matches!(self.app.client().commit(commit).await?, Committed::Done { .. });
            if let Some(order) = order.filter(|order| answered && order.action == WorkerAction::Drain) {
                self.stages.drain();
                if order.now {
                    self.stages.advance();
                }
            }
        }
        Ok(())
    }

    /// Returns the decision about a stored order, or the reason that it is not believed.
    fn answer_to(&self, stored: &[u8], worker: &str) -> Result<(OrderDecision, WorkerOrder), String> {
        let order: WorkerOrder =
            serde_json::from_slice(stored).map_err(|error| format!("it is unreadable: {error}"))?;
        self.app.0.trust.check_order(&order, worker)?;
        let session = self.sessions.current();
        let presence = &self.sessions.presence;
        let decision = decide(&order, session.as_str(), presence.state(), presence.must_sleep(), self.now());
        Ok((decision, order))
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
            target: "w".into(),
            session: None,
            issued: Timestamp::from_micros(1),
            expires: Timestamp::from_micros(10),
            key: None,
            mac: None,
        }
    }

    #[test]
    fn an_order_is_done_when_the_worker_is_in_the_state_that_is_wanted() {
        let now = Timestamp::from_micros(5);
        let pause = order(WorkerAction::Pause);
        let at = |state, must_sleep| decide(&pause, "s", state, must_sleep, now);
        assert_eq!(at(PresenceState::Awake, true), OrderDecision::NotYet);
        assert_eq!(at(PresenceState::Asleep, true), OrderDecision::Done);
        assert!(matches!(at(PresenceState::Awake, false), OrderDecision::Refused(_)));
        assert!(matches!(at(PresenceState::Draining, true), OrderDecision::Refused(_)));
    }

    #[test]
    fn an_expired_order_and_one_to_another_process_are_refused() {
        let mut drain = order(WorkerAction::Drain);
        let at = |order: &WorkerOrder, now| {
            decide(order, "s", PresenceState::Awake, false, Timestamp::from_micros(now))
        };
        assert_eq!(at(&drain, 10), OrderDecision::Done);
        assert!(matches!(at(&drain, 11), OrderDecision::Refused(_)));
        drain.session = Some("t".into());
        assert!(matches!(at(&drain, 5), OrderDecision::Refused(_)));
        drain.session = Some("s".into());
        assert_eq!(at(&drain, 5), OrderDecision::Done);
    }
}
