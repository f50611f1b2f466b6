//! Options of a task definition: what sender and worker use where neither the call nor a setting says otherwise.
//!
//! A definition is a `const`, so the options are plain data that can be copied while the program is compiled.

use std::time::Duration;

use crate::{
    limit::LimitKey,
    retry::{Backoff, RetryPolicy},
    unique::{Debounce, OnConflict, Unique, UniqueUntil},
};

/// Options of a definition; `None` for what it does not set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DefinedOptions {
    pub(crate) queue: Option<&'static str>,
    pub(crate) requires: &'static [&'static str],
    pub(crate) priority: Option<u8>,
    pub(crate) expires_in: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) soft_timeout: Option<Duration>,
    /// Template of the key of its limits.
    pub(crate) limit_key: Option<&'static str>,
    pub(crate) limit_cost: Option<u32>,
    unique: Option<DefinedUnique>,
    /// Template of the key of which there is one task.
    unique_by: Option<&'static str>,
    retries: Option<u32>,
    postponements: Option<u32>,
    backoff: Option<DefinedBackoff>,
    retry_for: Option<Duration>,
    retry_timeouts: bool,
}

/// A back-off that can be copied while the program is compiled.
#[derive(Debug, Clone, Copy)]
enum DefinedBackoff {
    Exponential { base: Duration, cap: Duration },
    Fibonacci { unit: Duration, cap: Duration },
    Fixed { wait: Duration },
    List(&'static [Duration]),
}

/// A rule for unique tasks that can be copied while the program is compiled.
#[derive(Debug, Clone, Copy)]
struct DefinedUnique {
    until: UniqueUntil,
    on_conflict: OnConflict,
    debounce: Option<Debounce>,
}

impl DefinedOptions {
    pub(crate) const NONE: Self = Self {
        queue: None,
        requires: &[],
        priority: None,
        expires_in: None,
        timeout: None,
        soft_timeout: None,
        limit_key: None,
        limit_cost: None,
        unique: None,
        unique_by: None,
        retries: None,
        postponements: None,
        backoff: None,
        retry_for: None,
        retry_timeouts: false,
    };

    pub(crate) const fn retries(self, retries: u32) -> Self {
        Self { retries: Some(retries), ..self }
    }

    pub(crate) const fn postponements(self, postponements: u32) -> Self {
        Self { postponements: Some(postponements), ..self }
    }

    pub(crate) const fn retry_for(self, limit: Duration) -> Self {
        Self { retry_for: Some(limit), ..self }
    }

    pub(crate) const fn retry_timeouts(self) -> Self {
        Self { retry_timeouts: true, ..self }
    }

    pub(crate) const fn backoff_list(self, waits: &'static [Duration]) -> Self {
        Self { backoff: Some(DefinedBackoff::List(waits)), ..self }
    }

    pub(crate) const fn backoff(self, backoff: Backoff) -> Self {
        let defined = match &backoff {
            Backoff::Exponential { base, cap } => {
                Some(DefinedBackoff::Exponential { base: *base, cap: *cap })
            }
            Backoff::Fibonacci { unit, cap } => Some(DefinedBackoff::Fibonacci { unit: *unit, cap: *cap }),
            Backoff::Fixed { wait } => Some(DefinedBackoff::Fixed { wait: *wait }),
            Backoff::List { .. } => None,
        };
        // A value with a destructor cannot be dropped while the program is compiled. Only a list owns memory.
        std::mem::forget(backoff);
        match defined {
            Some(defined) => Self { backoff: Some(defined), ..self },
            None => panic!("a definition cannot own a list of waits: use backoff_list(&[…])"),
        }
    }

    pub(crate) const fn unique(self, rule: Unique) -> Self {
        let has_key = rule.key.is_some() || rule.template.is_some();
        let Unique { until, on_conflict, debounce, .. } = rule;
        // As for a back-off: only a key owns memory.
        std::mem::forget(rule);
        if has_key {
            panic!("a definition cannot own the key of its unique tasks: use unique_by");
        }
        Self { unique: Some(DefinedUnique { until, on_conflict, debounce }), ..self }
    }

    pub(crate) const fn unique_by(self, template: &'static str) -> Self {
        Self { unique_by: Some(template), ..self }
    }

    /// Returns the rule for unique tasks, if the definition has one.
    ///
    /// # Errors
    /// The template of its key is wrong, in words for people.
    pub(crate) fn unique_rule(&self) -> Result<Option<Unique>, String> {
        let rule = self.unique.map(|rule| Unique::with(rule.until, rule.on_conflict, rule.debounce));
        match self.unique_by {
            None => Ok(rule),
            Some(template) => Ok(Some(rule.unwrap_or_default().by(LimitKey::template(template)?))),
        }
    }

    /// Returns the retry policy, if the definition sets a part of it.
    pub(crate) fn retry_policy(&self) -> Option<RetryPolicy> {
        let Self { retries, postponements, backoff, retry_for, retry_timeouts, .. } = *self;
        let unset = retries.is_none()
            && postponements.is_none()
            && backoff.is_none()
            && retry_for.is_none()
            && !retry_timeouts;
        if unset {
            return None;
        }
        let mut policy = RetryPolicy { retry_timeouts, ..RetryPolicy::default() };
        if let Some(retries) = retries {
            policy.max_retries = retries;
        }
        if let Some(postponements) = postponements {
            policy.max_postponements = postponements;
        }
        match backoff {
            None => {}
            Some(DefinedBackoff::Exponential { base, cap }) => {
                policy.backoff = Backoff::exponential(base, cap);
            }
            Some(DefinedBackoff::Fibonacci { unit, cap }) => policy.backoff = Backoff::fibonacci(unit, cap),
            Some(DefinedBackoff::Fixed { wait }) => policy.backoff = Backoff::fixed(wait),
            Some(DefinedBackoff::List(waits)) => policy.backoff = Backoff::list(waits),
        }
        if let Some(limit) = retry_for {
            match retries {
                // `retries(0)` means that the first failure is final, whatever the time.
                Some(_) => policy.retry_for = Some(limit),
                None => policy.bound_by_time(limit),
            }
        }
        Some(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_without_options_leaves_all_to_the_worker() {
        assert_eq!(DefinedOptions::NONE.retry_policy(), None);
        assert!(DefinedOptions::NONE.retry_timeouts().retry_policy().is_some());
    }

    #[test]
    fn every_back_off_of_a_definition_becomes_the_same_back_off_of_a_policy() {
        const SECOND: Duration = Duration::from_secs(1);
        const FIXED: DefinedOptions = DefinedOptions::NONE.backoff(Backoff::fixed(SECOND));
        const EXPONENTIAL: DefinedOptions =
            DefinedOptions::NONE.backoff(Backoff::exponential(SECOND, Duration::from_secs(9)));
        const FIBONACCI: DefinedOptions =
            DefinedOptions::NONE.backoff(Backoff::fibonacci(SECOND, Duration::from_secs(8)));
        const LIST: DefinedOptions = DefinedOptions::NONE.backoff_list(&[SECOND, Duration::from_secs(7)]);
        let backoff = |options: DefinedOptions| options.retry_policy().unwrap().backoff;
        assert_eq!(backoff(FIXED), Backoff::fixed(SECOND));
        assert_eq!(backoff(EXPONENTIAL), Backoff::exponential(SECOND, Duration::from_secs(9)));
        assert_eq!(backoff(FIBONACCI), Backoff::fibonacci(SECOND, Duration::from_secs(8)));
        assert_eq!(backoff(LIST), Backoff::list(&[SECOND, Duration::from_secs(7)]));
    }

    #[test]
    fn a_rule_for_unique_tasks_takes_its_key_from_a_template() {
        const HOUR: Duration = Duration::from_secs(3600);
        const THROTTLED: DefinedOptions =
            DefinedOptions::NONE.unique(Unique::throttle(HOUR)).unique_by("{0}");
        let by = || LimitKey::template("{0}").unwrap();
        assert_eq!(DefinedOptions::NONE.unique_rule(), Ok(None));
        assert_eq!(DefinedOptions::NONE.unique(Unique::new()).unique_rule(), Ok(Some(Unique::new())));
        assert_eq!(DefinedOptions::NONE.unique_by("{0}").unique_rule(), Ok(Some(Unique::new().by(by()))));
        assert_eq!(THROTTLED.unique_rule(), Ok(Some(Unique::throttle(HOUR).by(by()))));
        assert!(DefinedOptions::NONE.unique_by("all").unique_rule().is_err());
    }

    #[test]
    fn a_time_limit_alone_bounds_retries_by_time() {
        let minute = Duration::from_secs(60);
        let policy = DefinedOptions::NONE.retry_for(minute).retry_policy().unwrap();
        assert_eq!((policy.max_retries, policy.retry_for), (u32::MAX, Some(minute)));
        let policy = DefinedOptions::NONE.retry_for(minute).retries(3).retry_policy().unwrap();
        assert_eq!((policy.max_retries, policy.retry_for), (3, Some(minute)));
    }
}
