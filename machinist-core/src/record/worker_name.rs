//! The record of a worker's name: which session holds the name, the orders to it, and the answers.
//!
//! The name is held for as long as the session that it names is alive, so holding it costs no renewal. The state that
//! people want belongs to the name: it outlives the process, until the name was not used for thirty days.

use std::time::Duration;

use bytes::Bytes;

use super::facts::{FactName, Facts, name};
use crate::{
    backend::{Commit, Expiry},
    id::{RecordId, RecordKind, SessionId},
};

/// Time for which a name is remembered after its last use.
const NAME_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Maximum number of answers that a record keeps.
const KEPT_ANSWERS: usize = 20;

/// Returns the record of a worker's name.
pub(crate) fn name_record(worker: &str) -> RecordId {
    RecordId::new(RecordKind::Worker, worker)
}

/// Returns the name of the n-th live process of one name, from 1.
pub(crate) fn numbered_name(worker: &str, number: u32) -> String {
    if number == 1 { worker.to_owned() } else { format!("{worker}#{number}") }
}

/// Returns the session that holds the name, alive or not.
pub(crate) fn holder_of(facts: &Facts) -> Option<SessionId> {
    facts.text(name::HOLDER).map(|session| SessionId::from(&*session))
}

/// Creates the commit by which a session takes a name. It is refused if another has taken the name since `before` held
/// it.
pub(crate) fn claim_name(worker: &str, session: &SessionId, before: Option<&SessionId>) -> Commit {
    let holder = |session: &SessionId| (FactName::from(name::HOLDER), Bytes::from(session.to_string()));
    let mut commit = Commit::new(name_record(worker));
    match before {
        Some(before) => {
            commit.require = vec![holder(before)];
            commit.drop = vec![name::HOLDER.into()];
        }
        None => commit.unless = vec![name::HOLDER.into()],
    }
    commit.facts = vec![holder(session)];
    commit.expiry = Expiry::After(NAME_TTL);
    commit
}

/// Creates the commit that keeps a name that is in use from being forgotten.
pub(crate) fn keep_name(worker: &str) -> Commit {
    let mut commit = Commit::new(name_record(worker));
    commit.expiry = Expiry::After(NAME_TTL);
    commit
}

/// Creates the commit that gives an order to a worker.
pub(crate) fn give_order(worker: &str, id: &str, order: &Bytes) -> Commit {
    let mut commit = Commit::new(name_record(worker));
    commit.facts = vec![(format!("{}{id}", name::ORDER).into(), order.clone())];
    commit.expiry = Expiry::After(NAME_TTL);
    commit.wake = true;
    commit
}

/// Creates the commit that gives an order to a worker that is also what is wanted of its name from now on. It is refused if
/// something else is wanted than `before`.
pub(crate) fn give_lasting_order(worker: &str, id: &str, order: &Bytes, before: Option<&Bytes>) -> Commit {
    let mut commit = give_order(worker, id, order);
    replace(&mut commit, name::WANTED.into(), order, before);
    commit
}

/// Creates the commit that writes back what is wanted of a name. It is refused if something else is wanted than `before`.
pub(crate) fn restore_wanted(worker: &str, order: &Bytes, before: Option<&Bytes>) -> Commit {
    let mut commit = Commit::new(name_record(worker));
    replace(&mut commit, name::WANTED.into(), order, before);
    commit.expiry = Expiry::After(NAME_TTL);
    commit
}

/// Lets a commit replace a fact, which must have the value `before`, or be absent.
pub(super) fn replace(commit: &mut Commit, fact: FactName, value: &Bytes, before: Option<&Bytes>) {
    match before {
        Some(before) => {
            commit.require.push((fact.clone(), before.clone()));
            commit.drop.push(fact.clone());
        }
        None => commit.unless.push(fact.clone()),
    }
    commit.facts.push((fact, value.clone()));
}

/// Creates the commit that takes an order back that nobody has answered. What is wanted stays.
pub(crate) fn withdraw_order(worker: &str, id: &str) -> Commit {
    let mut commit = Commit::new(name_record(worker));
    commit.drop = vec![format!("{}{id}", name::ORDER).into()];
    commit
}

/// Returns the orders that nobody has answered, with their ids.
pub(crate) fn orders(facts: &Facts) -> Vec<(String, Bytes)> {
    let order =
        |(fact, value): (&str, &Bytes)| Some((fact.strip_prefix(name::ORDER)?.to_owned(), value.clone()));
    facts.iter().filter_map(order).collect()
}

/// Creates the commit that answers an order. It is refused if the order was answered or taken back, so that an order is
/// obeyed once. The oldest answers are dropped: ids of orders grow with time.
pub(crate) fn answer_order(worker: &str, facts: &Facts, id: &str, order: &Bytes, answer: Bytes) -> Commit {
    let mut commit = Commit::new(name_record(worker));
    let order_fact = FactName::from(format!("{}{id}", name::ORDER));
    let answers: Vec<_> = facts.iter().filter(|(fact, _)| fact.starts_with(name::ANSWER)).collect();
    let excess = (answers.len() + 1).saturating_sub(KEPT_ANSWERS);
    commit.require = vec![(order_fact.clone(), order.clone())];
    commit.drop = answers.iter().take(excess).map(|(fact, _)| FactName::from((*fact).to_owned())).collect();
    commit.drop.push(order_fact);
    commit.facts = vec![(format!("{}{id}", name::ANSWER).into(), answer)];
    commit.wake = true;
    commit
}

/// Returns the answer to an order, if there is one.
pub(crate) fn answer_of<'a>(facts: &'a Facts, id: &str) -> Option<&'a Bytes> {
    facts.get(&format!("{}{id}", name::ANSWER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_passes_on_only_from_the_holder_that_was_seen() {
        let [a, b, c] = [SessionId::fresh(), SessionId::fresh(), SessionId::fresh()];
        let mut facts = Facts::new();
        assert!(claim_name("w", &a, None).apply(&mut facts));
        assert!(!claim_name("w", &b, None).apply(&mut facts));
        assert!(claim_name("w", &b, Some(&a)).apply(&mut facts));
        assert!(!claim_name("w", &c, Some(&a)).apply(&mut facts));
        assert_eq!(holder_of(&facts), Some(b));
        assert_eq!((numbered_name("w", 1), numbered_name("w", 3)), ("w".to_owned(), "w#3".to_owned()));
    }

    #[test]
    fn an_order_is_answered_once_and_what_is_wanted_stays() {
        let mut facts = Facts::new();
        let order = Bytes::from_static(b"pause");
        assert!(give_lasting_order("w", "1", &order, None).apply(&mut facts));
        assert!(!give_lasting_order("w", "2", &order, None).apply(&mut facts), "another was first");
        assert_eq!(orders(&facts), [("1".to_owned(), order.clone())]);
        let answer = answer_order("w", &facts, "1", &order, "done".into());
        assert!(answer.apply(&mut facts) && !answer.apply(&mut facts));
        assert!(orders(&facts).is_empty());
        assert_eq!(answer_of(&facts, "1"), Some(&"done".into()));
        assert_eq!(facts.get(name::WANTED), Some(&order));
        let later = Bytes::from_static(b"resume");
        assert!(!restore_wanted("w", &later, Some(&later)).apply(&mut facts));
        assert!(restore_wanted("w", &later, Some(&order)).apply(&mut facts));
        assert_eq!(facts.get(name::WANTED), Some(&later));
    }

    #[test]
    fn answers_are_bounded() {
        let mut facts = Facts::new();
        for id in (10..60).map(|id| id.to_string()) {
            let order = Bytes::from_static(b"ping");
            assert!(give_order("w", &id, &order).apply(&mut facts));
            assert!(answer_order("w", &facts, &id, &order, "done".into()).apply(&mut facts));
        }
        assert_eq!(facts.len(), KEPT_ANSWERS);
        assert!(answer_of(&facts, "59").is_some() && answer_of(&facts, "39").is_none());
    }
}
