//! Rules of single queues: their format, and what runs from them without a signature.
//!
//! Messages of another program are not signed. Every process that can publish to such a queue can run the tasks that are
//! listed for it, with any arguments, and no others: so the list is not optional.

use std::{collections::HashMap, sync::Arc};

use crate::{
    affinity::with_base,
    id::{QueueName, TaskName},
    mirror::Mirror,
    sign::Pattern,
    wire::{Envelope, Profile},
};

/// Options of one queue (`AppBuilder::queue`).
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct QueueOptions {
    profile: Option<Arc<dyn Profile>>,
    unsigned: Option<Vec<String>>,
    mirror: Option<Arc<dyn Mirror>>,
    shared: bool,
}

impl QueueOptions {
    /// Reads and writes the messages of the queue in the format of another program. Requires
    /// [`allow_unsigned`](Self::allow_unsigned), because other formats have no signature.
    pub fn profile(mut self, profile: impl Profile) -> Self {
        self.profile = Some(Arc::new(profile));
        self
    }

    /// Runs these tasks from the queue without a signature: names, or prefixes of names followed by `*`. Everybody who can
    /// publish to the queue can run them, with any arguments. All others need a signature, as ever.
    pub fn allow_unsigned<S: Into<String>>(mut self, tasks: impl IntoIterator<Item = S>) -> Self {
        self.unsigned = Some(tasks.into_iter().map(Into::into).collect());
        self
    }

    /// Shares the queue with workers of another program. Copies of running tasks that come back later go to a queue of
    /// machinist beside it, `NAME.guards`, which workers of the queue consume too: a worker of the other program would run
    /// them. Tasks that are not listed in [`allow_unsigned`](Self::allow_unsigned) are for that program: they are offered
    /// again, at longer and longer intervals up to a minute, until it takes them. A delayed task that is overdue is not
    /// published again: the other program may have run it.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Shows the states of the tasks of the queue in the store of another program.
    pub fn mirror(mut self, mirror: impl Mirror) -> Self {
        self.mirror = Some(Arc::new(mirror));
        self
    }

    /// Checks the options of a queue.
    fn into_rule(self, queue: &QueueName) -> Result<QueueRule, String> {
        if let (Some(profile), None) = (&self.profile, &self.unsigned) {
            return Err(format!(
                "its messages have the format {}, which has no signature: list the tasks that may run without one \
                 (`QueueOptions::allow_unsigned`)",
                profile.name()
            ));
        }
        if self.unsigned.as_ref().is_some_and(Vec::is_empty) {
            return Err(
                "the list of tasks that may run unsigned is empty: name them, or leave it out".to_owned()
            );
        }
        let patterns = self.unsigned.unwrap_or_default().into_iter().map(Pattern::parse);
        let unsigned = patterns
            .collect::<Result<_, _>>()
            .map_err(|wrong| format!("the task pattern {wrong:?} may have a `*` only at its end"))?;
        if self.profile.is_none() && (self.shared || self.mirror.is_some()) {
            return Err("no other program reads machinist's format: set the profile of the queue, or leave \
                        `shared` and `mirror` out"
                .to_owned());
        }
        let guards = self.shared.then(|| QueueName::parse(&format!("{queue}.guards"))).transpose();
        let guards = guards.map_err(|error| format!("its guards have no queue: {error}"))?;
        Ok(QueueRule { profile: self.profile, unsigned, guards, mirror: self.mirror })
    }
}

/// Options of one queue, checked.
#[derive(Debug)]
struct QueueRule {
    profile: Option<Arc<dyn Profile>>,
    unsigned: Vec<Pattern>,
    /// Queue of the copies that come back later, if the queue is shared with another program.
    guards: Option<QueueName>,
    mirror: Option<Arc<dyn Mirror>>,
}

/// The queues that differ from the others.
#[derive(Debug, Default)]
pub(crate) struct QueueRules {
    rules: HashMap<QueueName, QueueRule>,
    /// The queue of each queue of guards.
    homes: HashMap<QueueName, QueueName>,
}

impl QueueRules {
    /// Checks the options of all queues.
    ///
    /// # Errors
    /// The queue whose options are wrong, and the reason.
    pub(crate) fn new(options: HashMap<QueueName, QueueOptions>) -> Result<Self, (QueueName, String)> {
        let rule = |(queue, options): (QueueName, QueueOptions)| match options.into_rule(&queue) {
            Ok(rule) => Ok((queue, rule)),
            Err(why) => Err((queue, why)),
        };
        let rules: HashMap<_, _> = options.into_iter().map(rule).collect::<Result<_, _>>()?;
        let home = |(queue, rule): (&QueueName, &QueueRule)| Some((rule.guards.clone()?, queue.clone()));
        let homes = rules.iter().filter_map(home).collect();
        Ok(Self { rules, homes })
    }

    /// Returns the format of a queue; `None` if it is machinist's.
    pub(crate) fn profile(&self, queue: &QueueName) -> Option<&dyn Profile> {
        self.rule(queue)?.profile.as_deref()
    }

    /// Returns `true` if this task may run from this queue without a signature.
    pub(crate) fn allows_unsigned(&self, queue: &QueueName, task: &TaskName) -> bool {
        self.rule(queue).is_some_and(|rule| rule.unsigned.iter().any(|pattern| pattern.fits(task.as_str())))
    }

    /// Returns the store in which the states of the tasks of a queue are shown.
    pub(crate) fn mirror(&self, queue: &QueueName) -> Option<&Arc<dyn Mirror>> {
        self.rule(queue)?.mirror.as_ref()
    }

    /// Returns `true` if the states of the tasks of any queue are shown to another program.
    pub(crate) fn has_mirrors(&self) -> bool {
        self.rules.values().any(|rule| rule.mirror.is_some())
    }

    /// Returns the queues whose tasks have states in the store of another program, with those stores.
    pub(crate) fn mirrors(&self) -> impl Iterator<Item = (&QueueName, &Arc<dyn Mirror>)> {
        self.rules.iter().filter_map(|(queue, rule)| Some((queue, rule.mirror.as_ref()?)))
    }

    /// Returns the queue of the guards of a queue that is shared with another program.
    pub(crate) fn guards_of(&self, queue: &QueueName) -> Option<&QueueName> {
        self.rule(queue)?.guards.as_ref()
    }

    /// Returns the queue whose tasks come from this one: the queue itself, unless it holds guards of another.
    pub(crate) fn home<'a>(&'a self, queue: &'a QueueName) -> &'a QueueName {
        if self.homes.is_empty() { queue } else { self.homes.get(queue).unwrap_or(queue) }
    }

    /// Returns the queue to which the message of a task is published. Guards of a shared queue have a separate queue.
    pub(crate) fn queue_of(&self, envelope: &Envelope) -> QueueName {
        let guards = (envelope.generation > 0).then(|| self.guards_of(&envelope.queue)).flatten();
        guards.unwrap_or(&envelope.queue).clone()
    }

    fn rule(&self, queue: &QueueName) -> Option<&QueueRule> {
        // Nearly every application has none, and every delivery asks.
        if self.rules.is_empty() {
            return None;
        }
        // Tasks that require tags are tasks of their queue.
        with_base(queue).find_map(|queue| self.rules.get(&*queue))
    }
}
