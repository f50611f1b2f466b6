//! Troubles of this moment, in words with links. Pure.

use machinist::{FailureGroups, WorkerInfo, record::WorkerHealth, view::QueueView, visible};
use serde::Serialize;

use crate::{link, panel::PanelView};

/// Maximum number of findings of one kind. More of them are counted.
const MAX_OF_KIND: usize = 5;

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    /// One sentence.
    pub(crate) text: String,
    /// Page that shows more, relative to the first page.
    pub(crate) link: String,
}

/// All that the first page shows.
#[derive(Debug)]
pub(crate) struct Overview {
    pub(crate) queues: PanelView<Vec<QueueView>>,
    pub(crate) workers: PanelView<Vec<WorkerInfo>>,
    pub(crate) failures: PanelView<FailureGroups>,
}

impl Overview {
    /// Returns what is wrong now.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let problems = [&self.queues.problem, &self.workers.problem, &self.failures.problem];
        let mut troubles: Vec<Trouble> =
            problems.into_iter().flatten().map(|problem| unanswered(problem)).collect();
        let queues = self.queues.value.as_deref().map(Vec::as_slice).unwrap_or_default();
        if let Some(workers) = self.workers.value.as_deref() {
            troubles.extend(of_workers(workers, queues));
        }
        troubles.extend(of_queues(queues));
        troubles.extend(self.failures.value.as_deref().and_then(of_failures));
        troubles
            .into_iter()
            .map(|trouble| Trouble { text: visible::one_line(&trouble.text), ..trouble })
            .collect()
    }
}

fn unanswered(problem: &str) -> Trouble {
    Trouble { text: problem.to_owned(), link: String::new() }
}

fn of_workers(workers: &[WorkerInfo], queues: &[QueueView]) -> Vec<Trouble> {
    let trouble = |text: String| Trouble { text, link: "workers".to_owned() };
    let waits: u64 = queues.iter().filter_map(|queue| queue.ready).sum();
    if workers.is_empty() && waits > 0 {
        return vec![trouble(format!("No worker is live, and {waits} messages wait."))];
    }
    let ill = workers.iter().filter(|worker| worker.health != WorkerHealth::Green);
    some(ill, "workers are not healthy", "workers", |worker| {
        let reason = worker.health_reason.as_deref().unwrap_or("no reason is given");
        trouble(format!("Worker {} is {}: {reason}.", worker.name, worker.health.as_str()))
    })
}

fn of_queues(queues: &[QueueView]) -> Vec<Trouble> {
    let trouble = |queue: &QueueView, text: String| Trouble { text, link: link::queue(&queue.queue) };
    let unconsumed = queues.iter().filter(|queue| {
        !queue.paused && queue.consumers == Some(0) && queue.ready.is_some_and(|ready| ready > 0)
    });
    let mut troubles = some(unconsumed, "queues wait for a consumer", "queues", |queue| {
        let ready = queue.ready.unwrap_or_default();
        trouble(queue, format!("Queue {} has {ready} messages and no consumer.", queue.queue))
    });
    let paused = queues.iter().filter(|queue| queue.paused);
    troubles.extend(some(paused, "queues are paused", "queues", |queue| {
        let ready = queue.ready.unwrap_or_default();
        trouble(queue, format!("Queue {} is paused; {ready} messages wait.", queue.queue))
    }));
    let dead: u64 = queues.iter().filter_map(|queue| queue.dead).sum();
    if dead > 0 {
        troubles.push(Trouble {
            text: format!("{dead} dead letters wait for a decision."),
            link: "dead".to_owned(),
        });
    }
    troubles
}

fn of_failures(failures: &FailureGroups) -> Option<Trouble> {
    let shown = failures.groups.iter().filter(|group| group.silenced_until.is_none());
    let (count, causes) = shown.fold((0, 0), |(count, causes), group| {
        (count + group.last_hour, causes + u32::from(group.last_hour > 0))
    });
    let text = format!("{count} tasks failed within the last hour, for {causes} causes.");
    (count > 0).then(|| Trouble { text, link: "failures".to_owned() })
}

/// Returns a trouble for each of the first, and one for the number of the others.
fn some<'a, T: 'a>(
    all: impl Iterator<Item = &'a T>,
    others: &str,
    page: &str,
    trouble: impl Fn(&T) -> Trouble,
) -> Vec<Trouble> {
    let all: Vec<&T> = all.collect();
    let mut troubles: Vec<Trouble> = all.iter().take(MAX_OF_KIND).map(|one| trouble(one)).collect();
    if all.len() > MAX_OF_KIND {
        let text = format!("{} more {others}.", all.len() - MAX_OF_KIND);
        troubles.push(Trouble { text, link: page.to_owned() });
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn seen<T>(value: T) -> PanelView<T> {
        PanelView { value: Some(Arc::new(value)), age: None, problem: None }
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let nothing = Overview {
            queues: seen(Vec::new()),
            workers: seen(Vec::new()),
            failures: seen(FailureGroups::default()),
        };
        assert_eq!(nothing.troubles(), []);
        let away = PanelView {
            value: None,
            age: None,
            problem: Some("the queues: no answer within 1 s".to_owned()),
        };
        let texts = Overview { queues: away, ..nothing }.troubles();
        assert_eq!(
            texts.iter().map(|trouble| trouble.text.as_str()).collect::<Vec<_>>(),
            ["the queues: no answer within 1 s"]
        );
    }

    #[test]
    fn many_of_one_kind_are_counted() {
        let numbers: Vec<u32> = (0..8).collect();
        let troubles = some(numbers.iter(), "numbers are odd", "queues", |number| Trouble {
            text: number.to_string(),
            link: String::new(),
        });
        assert_eq!(troubles.len(), MAX_OF_KIND + 1);
        assert_eq!(troubles[MAX_OF_KIND].text, "3 more numbers are odd.");
    }
}
