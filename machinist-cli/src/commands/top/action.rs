//! Actions: what a capital letter asks for, held by name and id. Pure.

use super::{listing::ListEntry, views::TopView};

/// Maximum number of failed tasks that one action sends again.
pub(super) const MAX_RETRIED: usize = 1000;

/// Change that a person asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TopAction {
    PauseQueue(String),
    ResumeQueue(String),
    Worker {
        name: String,
        /// A process that took the name since is another worker.
        session: String,
        order: TopOrder,
    },
    Revoke {
        id: String,
        name: String,
    },
    Retry {
        id: String,
        name: String,
    },
    RetryGroup {
        fingerprint: String,
        about: String,
    },
    Silence {
        fingerprint: String,
        about: String,
    },
}

/// Order to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopOrder {
    Pause,
    Resume,
    Drain,
}

impl TopOrder {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
        }
    }
}

impl TopAction {
    /// Returns the action of a capital letter on an entry of a view.
    pub(super) fn of(view: TopView, key: char, entry: &ListEntry) -> Option<Self> {
        let (id, about) = (entry.id.clone(), entry.about.clone());
        let worker = |order| Self::Worker { name: id.clone(), session: entry.session.clone(), order };
        Some(match (view, key) {
            (TopView::Queues, 'P') => Self::PauseQueue(id),
            (TopView::Queues, 'R') => Self::ResumeQueue(id),
            (TopView::Workers, 'P') => worker(TopOrder::Pause),
            (TopView::Workers, 'R') => worker(TopOrder::Resume),
            (TopView::Workers, 'D') => worker(TopOrder::Drain),
            (TopView::Tasks, 'X') => Self::Revoke { id, name: about },
            (TopView::Tasks, 'R') => Self::Retry { id, name: about },
            (TopView::Failures, 'R') => Self::RetryGroup { fingerprint: id, about },
            (TopView::Failures, 'S') => Self::Silence { fingerprint: id, about },
            _ => return None,
        })
    }

    /// Returns the action in words, with its target.
    pub(super) fn words(&self) -> String {
        match self {
            Self::PauseQueue(queue) => format!("pause queue {queue} for all workers"),
            Self::ResumeQueue(queue) => format!("resume queue {queue} for all workers"),
            Self::Worker { name, order, .. } => format!("{} worker {name}", order.as_str()),
            Self::Revoke { id, name } => format!("revoke task {id} ({name})"),
            Self::Retry { id, name } => format!("retry task {id} ({name})"),
            Self::RetryGroup { fingerprint, about } => {
                format!("retry the failed tasks of group {fingerprint} ({about}), {MAX_RETRIED} at most")
            }
            Self::Silence { fingerprint, about } => {
                format!("silence group {fingerprint} ({about}) for an hour")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> ListEntry {
        ListEntry {
            id: "w1".to_owned(),
            about: "mail.send".to_owned(),
            session: "s-1".to_owned(),
            ..ListEntry::default()
        }
    }

    #[test]
    fn each_letter_that_a_view_offers_acts_there_and_names_its_target() {
        for view in TopView::ALL {
            for (key, _) in view.actions() {
                let action = TopAction::of(view, *key, &entry()).unwrap();
                assert!(action.words().contains("w1"), "{}", action.words());
            }
        }
        assert_eq!(TopAction::of(TopView::Queues, 'X', &entry()), None);
    }

    #[test]
    fn a_worker_is_held_by_its_session_too() {
        let drain = TopAction::of(TopView::Workers, 'D', &entry()).unwrap();
        let TopAction::Worker { name, session, order: TopOrder::Drain } = drain else { panic!("{drain:?}") };
        assert_eq!((name.as_str(), session.as_str()), ("w1", "s-1"));
    }
}
