//! The order in which the queues of a worker get its slots: by weight or strictly, and no more than each may have.
//!
//! A worker without weights and without local limits gives slots in the order of arrival, and needs none of this. The order
//! holds for one worker; limits that hold for all workers together are those of `limits`.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::oneshot;

use crate::{
    affinity::{TagQueue, takes},
    fair_queues::weight_of_share,
    id::{QueueName, QueuePattern, TaskName},
    priority_queues::weight_of_class,
};

/// Share of a queue in the slots of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueShare {
    /// Weight among the queues that have tasks which wait.
    pub(super) weight: u32,
    /// Maximum number of its tasks that run at once in this worker.
    pub(super) concurrency: Option<usize>,
}

impl Default for QueueShare {
    fn default() -> Self {
        Self { weight: 1, concurrency: None }
    }
}

/// Shares of the queues and tasks of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SlotShares {
    pub(super) queues: BTreeMap<QueuePattern, QueueShare>,
    /// Maximum number of runs at once in this worker, by task.
    pub(super) tasks: HashMap<TaskName, usize>,
    /// `true` if tasks of a queue start only while no queue of a larger weight has tasks that wait.
    pub(super) strict: bool,
    /// `true` if queues may have separate queues, for higher priorities or for tasks within their shares.
    pub(super) by_class: bool,
}

impl SlotShares {
    /// Returns `true` if slots are given in the order of arrival.
    pub(super) fn is_empty(&self) -> bool {
        let is_plain = |share: &QueueShare| *share == QueueShare::default();
        self.tasks.is_empty() && !self.strict && !self.by_class && self.queues.values().all(is_plain)
    }

    fn of(&self, queue: &QueueName) -> QueueShare {
        let of = |(pattern, share): (&QueuePattern, &QueueShare)| {
            takes(std::iter::once(pattern.as_str()), |_| true, queue.as_str()).then_some(*share)
        };
        if let Some(share) = self.queues.get(&QueuePattern::from(queue.clone())) {
            return *share;
        }
        // The longest one that fits: a name goes before a pattern, and a pattern before a wider one.
        let share = self.queues.iter().rev().find_map(of).unwrap_or_default();
        let factor = TagQueue::of(queue.as_str())
            .map_or(1, |of| weight_of_class(&of.tags) * weight_of_share(&of.tags));
        QueueShare { weight: share.weight.saturating_mul(factor), ..share }
    }
}

/// Deliveries that wait together: those of a queue, or of a task that has a limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SlotLane {
    queue: QueueName,
    task: Option<TaskName>,
}

/// Deliveries that wait for a slot, and the runs that have one. `P` is the permit that a slot is.
#[derive(Debug)]
pub(super) struct SlotOrder<P> {
    shares: SlotShares,
    /// Deliveries that wait, by lane and in the order of their arrival.
    waiting: BTreeMap<SlotLane, BTreeMap<u64, oneshot::Sender<P>>>,
    running: HashMap<QueueName, usize>,
    running_tasks: HashMap<TaskName, usize>,
    /// Debt to each queue, for the order by weight.
    owed: HashMap<QueueName, i64>,
    arrivals: u64,
}

impl<P> SlotOrder<P> {
    pub(super) fn new(shares: SlotShares) -> Self {
        Self {
            shares,
            waiting: BTreeMap::new(),
            running: HashMap::new(),
            running_tasks: HashMap::new(),
            owed: HashMap::new(),
            arrivals: 0,
        }
    }

    /// Maximum number of tasks of a queue that run at once.
    pub(super) fn most_of(&self, queue: &QueueName) -> Option<usize> {
        self.shares.of(queue).concurrency
    }

    /// Returns `true` if a task has a limit.
    pub(super) fn limits_task(&self, task: &TaskName) -> bool {
        self.shares.tasks.contains_key(task)
    }

    /// Returns the lane of a delivery.
    pub(super) fn lane(&self, queue: &QueueName, task: &TaskName) -> SlotLane {
        let task = self.limits_task(task).then(|| task.clone());
        SlotLane { queue: queue.clone(), task }
    }

    /// Adds a delivery that waits, which gets its slot from the returned receiver.
    pub(super) fn wait(&mut self, lane: SlotLane) -> oneshot::Receiver<P> {
        let (give, given) = oneshot::channel();
        self.arrivals += 1;
        self.waiting.entry(lane).or_default().insert(self.arrivals, give);
        given
    }

    /// Takes out the delivery that gets the next slot, and counts it as running.
    pub(super) fn next(&mut self) -> Option<(SlotLane, oneshot::Sender<P>)> {
        self.waiting.retain(|_, waiting| {
            waiting.retain(|_, give| !give.is_closed());
            !waiting.is_empty()
        });
        // The first one of each queue that may run now.
        let mut first: BTreeMap<&QueueName, (u64, &SlotLane)> = BTreeMap::new();
        for (lane, waiting) in &self.waiting {
            let Some(arrival) = waiting.keys().next().copied() else { continue };
            if self.may_run(lane) && first.get(&lane.queue).is_none_or(|(earliest, _)| arrival < *earliest) {
                first.insert(&lane.queue, (arrival, lane));
            }
        }
        let queues: Vec<_> = first.keys().map(|queue| (*queue).clone()).collect();
        let lanes: Vec<_> = first.into_values().map(|(arrival, lane)| (arrival, lane.clone())).collect();
        let chosen = self.choose(&queues)?;
        let (arrival, lane) = lanes.into_iter().nth(chosen)?;
        let give = self.waiting.get_mut(&lane)?.remove(&arrival)?;
        self.begin(&lane);
        Some((lane, give))
    }

    fn may_run(&self, lane: &SlotLane) -> bool {
        let running = |number: Option<&usize>| number.copied().unwrap_or(0);
        let of_queue = self.shares.of(&lane.queue).concurrency;
        of_queue.is_none_or(|most| running(self.running.get(&lane.queue)) < most)
            && lane.task.as_ref().is_none_or(|task| {
                self.shares.tasks.get(task).is_none_or(|most| running(self.running_tasks.get(task)) < *most)
            })
    }

    /// Chooses one of these queues, by its place.
    fn choose(&mut self, queues: &[QueueName]) -> Option<usize> {
        let weight = |queue: &QueueName| i64::from(self.shares.of(queue).weight);
        let weights: Vec<i64> = queues.iter().map(weight).collect();
        let most = *weights.iter().max()?;
        let strict = self.shares.strict;
        // Smooth and without chance: each queue is owed its weight in each turn, and the chosen one pays for all.
        let mut chosen: Option<(usize, i64)> = None;
        let mut turn = 0;
        for (place, queue) in queues.iter().enumerate() {
            if strict && weights[place] < most {
                continue;
            }
            turn += weights[place];
            let owed = self.owed.entry(queue.clone()).or_default();
            *owed += weights[place];
            if chosen.is_none_or(|(_, most_owed)| *owed > most_owed) {
                chosen = Some((place, *owed));
            }
        }
        let (place, _) = chosen?;
        *self.owed.entry(queues[place].clone()).or_default() -= turn;
        Some(place)
    }

    fn begin(&mut self, lane: &SlotLane) {
        *self.running.entry(lane.queue.clone()).or_default() += 1;
        if let Some(task) = &lane.task {
            *self.running_tasks.entry(task.clone()).or_default() += 1;
        }
    }

    /// Counts a delivery as not running any more.
    pub(super) fn end(&mut self, lane: &SlotLane) {
        if let Some(running) = self.running.get_mut(&lane.queue) {
            *running = running.saturating_sub(1);
        }
        if let Some(running) = lane.task.as_ref().and_then(|task| self.running_tasks.get_mut(task)) {
            *running = running.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    fn task(name: &str) -> TaskName {
        TaskName::parse(name).unwrap()
    }

    fn order(weights: &[(&str, u32)], strict: bool) -> SlotOrder<()> {
        let share = |(name, weight): &(&str, u32)| {
            (queue(name).into(), QueueShare { weight: *weight, concurrency: None })
        };
        SlotOrder::new(SlotShares {
            queues: weights.iter().map(share).collect(),
            strict,
            ..SlotShares::default()
        })
    }

    /// Lets `number` deliveries of a queue wait. They wait while the result lives.
    fn waiting(order: &mut SlotOrder<()>, name: &str, number: usize) -> Vec<oneshot::Receiver<()>> {
        let lane = order.lane(&queue(name), &task("t"));
        (0..number).map(|_| order.wait(lane.clone())).collect()
    }

    fn next(order: &mut SlotOrder<()>) -> Option<String> {
        Some(order.next()?.0.queue.to_string())
    }

    #[test]
    fn queues_get_slots_by_their_weights_and_none_starves() {
        let mut order = order(&[("critical", 6), ("default", 3), ("low", 1)], false);
        let _all = ["critical", "default", "low"].map(|name| waiting(&mut order, name, 100));
        let given: Vec<_> = (0..100).filter_map(|_| next(&mut order)).collect();
        let number = |name: &str| given.iter().filter(|given| *given == name).count();
        assert_eq!((number("critical"), number("default"), number("low")), (60, 30, 10));
        for ten in given.windows(10) {
            assert!(ten.iter().any(|name| name == "low"), "{ten:?}");
        }
    }

    #[test]
    fn a_queue_alone_gets_every_slot() {
        let mut order = order(&[("critical", 6), ("low", 1)], false);
        let _low = waiting(&mut order, "low", 10);
        assert!((0..10).all(|_| next(&mut order).as_deref() == Some("low")));
        assert_eq!(next(&mut order), None);
    }

    #[test]
    fn a_strict_order_serves_the_largest_weight_first_and_equal_ones_in_turn() {
        let mut order = order(&[("a", 2), ("b", 2), ("low", 1)], true);
        let _all = ["a", "b", "low"].map(|name| waiting(&mut order, name, 2));
        let given: Vec<_> = std::iter::from_fn(|| next(&mut order)).collect();
        assert_eq!(given, ["a", "b", "a", "b", "low", "low"]);
    }

    #[test]
    fn higher_priorities_get_more_slots_and_a_strict_order_serves_them_first() {
        let names = ["mail", "mail+priority:medium", "mail+priority:high", "other"];
        let mut weighted = order(&[("mail", 2), ("other", 26)], false);
        let _all = names.map(|name| waiting(&mut weighted, name, 100));
        let given: Vec<_> = (0..52).filter_map(|_| next(&mut weighted)).collect();
        let number = |name: &str| given.iter().filter(|given| *given == name).count();
        assert_eq!(names.map(number), [2, 6, 18, 26]);
        let mut strict = order(&[("mail", 1)], true);
        let _all = names[..3].iter().map(|name| waiting(&mut strict, name, 1)).collect::<Vec<_>>();
        let given: Vec<_> = std::iter::from_fn(|| next(&mut strict)).collect();
        assert_eq!(given, ["mail+priority:high", "mail+priority:medium", "mail"]);
    }

    #[test]
    fn a_queue_and_a_task_have_no_more_slots_than_they_may() {
        let mut shares = SlotShares::default();
        shares.queues.insert(queue("slow").into(), QueueShare { weight: 9, concurrency: Some(2) });
        shares.tasks.insert(task("heavy"), 1);
        assert!(!shares.is_empty() && SlotShares::default().is_empty());
        let mut order = SlotOrder::<()>::new(shares);
        let _slow = waiting(&mut order, "slow", 5);
        let heavy = order.lane(&queue("quick"), &task("heavy"));
        let _heavy = [order.wait(heavy.clone()), order.wait(heavy.clone())];
        let _quick = waiting(&mut order, "quick", 2);
        let given: Vec<_> = std::iter::from_fn(|| Some(order.next()?.0)).collect();
        let of = |name: &str| given.iter().filter(|lane| lane.queue == queue(name)).count();
        assert_eq!((of("slow"), of("quick")), (2, 3), "one heavy task, and those behind it");
        order.end(&heavy);
        assert_eq!(order.next().map(|(lane, _)| lane), Some(heavy));
        assert!(order.next().is_none());
    }

    #[test]
    fn a_delivery_that_has_left_gets_no_slot() {
        let mut order = order(&[("a", 1)], true);
        drop(waiting(&mut order, "a", 3));
        assert!(order.next().is_none());
        assert!(order.waiting.is_empty());
    }
}
