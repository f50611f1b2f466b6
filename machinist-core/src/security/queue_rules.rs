//! Rules of single queues: their format, and what runs from them without a signature.
//!
//! Messages of another program are not signed. Every process that can publish to such a queue can run the tasks that are
//! listed for it, with any arguments, and no others: so the list is not optional.

use std::{collections::HashMap, sync::Arc};

use crate::{
    affinity::base_queue,
    id::{QueueName, TaskName},
    sign::Pattern,
    wire::Profile,
};

/// Options of one queue (`AppBuilder::queue`).
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct QueueOptions {
    profile: Option<Arc<dyn Profile>>,
    unsigned: Option<Vec<String>>,
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

    /// Checks the options of a queue.
    fn into_rule(self) -> Result<QueueRule, String> {
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
        Ok(QueueRule { profile: self.profile, unsigned })
    }
}

/// Options of one queue, checked.
#[derive(Debug)]
struct QueueRule {
    profile: Option<Arc<dyn Profile>>,
    unsigned: Vec<Pattern>,
}

/// The queues that differ from the others.
#[derive(Debug, Default)]
pub(crate) struct QueueRules(HashMap<QueueName, QueueRule>);

impl QueueRules {
    /// Checks the options of all queues.
    ///
    /// # Errors
    /// The queue whose options are wrong, and the reason.
    pub(crate) fn new(options: HashMap<QueueName, QueueOptions>) -> Result<Self, (QueueName, String)> {
        let rule = |(queue, options): (QueueName, QueueOptions)| match options.into_rule() {
            Ok(rule) => Ok((queue, rule)),
            Err(why) => Err((queue, why)),
        };
        options.into_iter().map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the format of a queue; `None` if it is machinist's.
    pub(crate) fn profile(&self, queue: &QueueName) -> Option<&dyn Profile> {
        self.rule(queue)?.profile.as_deref()
    }

    /// Returns `true` if this task may run from this queue without a signature.
    pub(crate) fn allows_unsigned(&self, queue: &QueueName, task: &TaskName) -> bool {
        self.rule(queue).is_some_and(|rule| rule.unsigned.iter().any(|pattern| pattern.fits(task.as_str())))
    }

    fn rule(&self, queue: &QueueName) -> Option<&QueueRule> {
        // Nearly every application has none, and every delivery asks.
        if self.0.is_empty() {
            return None;
        }
        // Tasks that require tags are tasks of their queue.
        self.0.get(queue).or_else(|| self.0.get(&base_queue(queue)?))
    }
}
