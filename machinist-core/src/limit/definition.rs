//! The definition of a limit: numbers that people choose, checked once.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{bucket::Terms, key::LimitKey, rate::Rate};

/// Maximum of `max_running`: one record holds the places.
pub const MAX_RUNNING: u32 = 1000;
/// Maximum of `burst` and `cost`.
pub(crate) const MAX_BURST: u32 = 1_000_000;

/// Limit of a task or of a queue, for all workers together.
///
/// A task that may not start now is parked: it spends no attempt, holds no slot, and does not stop the tasks behind it.
///
/// # Examples
/// ```
/// use machinist_core::limit::{Limit, LimitKey, Rate};
/// use std::time::Duration;
///
/// // Five calls a second and two at once, for each customer (the first argument).
/// let limit = Limit::new()
///     .rate(Rate::new(5, Duration::from_secs(1))?)
///     .burst(10)
///     .max_running(2)
///     .key(LimitKey::template("{0}")?);
/// assert_eq!(limit.to_string(), "rate=5/s burst=10 max_running=2 limit_key={0}");
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) burst: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_running: Option<u32>,
    #[serde(default, rename = "limit_key", skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<LimitKey>,
}

impl Limit {
    /// Creates a limit that limits nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of starts in a period.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Sets the number of starts that may come at once after a pause; 1 unless set. It needs a rate.
    #[must_use]
    pub fn burst(mut self, starts: u32) -> Self {
        self.burst = Some(starts);
        self
    }

    /// Sets the number of starts for which one task counts; 1 unless set. It needs a rate.
    #[must_use]
    pub fn cost(mut self, starts: u32) -> Self {
        self.cost = Some(starts);
        self
    }

    /// Sets the maximum number of runs at once, up to [`MAX_RUNNING`]. 0 pauses the tasks.
    #[must_use]
    pub fn max_running(mut self, runs: u32) -> Self {
        self.max_running = Some(runs);
        self
    }

    /// Limits the tasks of each key separately.
    #[must_use]
    pub fn key(mut self, key: LimitKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets an option by its name in configurations: `rate`, `burst`, `cost`, `max_running` or `limit_key`.
    ///
    /// # Errors
    /// The option or its value is wrong, in words for people.
    pub fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        let number =
            || value.parse::<u32>().map_err(|_| format!("{option} = {value:?} is no number; take 0 or more"));
        match option {
            "rate" => self.rate = Some(Rate::parse(value)?),
            "burst" => self.burst = Some(number()?),
            "cost" => self.cost = Some(number()?),
            "max_running" => self.max_running = Some(number()?),
            "limit_key" => {
                self.key = Some(LimitKey::template(value).map_err(|why| format!("limit_key: {why}"))?);
            }
            other => {
                return Err(format!(
                    "{other:?} is no option of a limit; the options are rate, burst, cost, max_running and limit_key"
                ));
            }
        }
        Ok(())
    }

    /// Returns the template of the key by which it limits tasks separately, if there is one.
    pub fn limit_key(&self) -> Option<&LimitKey> {
        self.key.as_ref()
    }

    /// Returns `true` if it limits nothing.
    pub fn is_empty(&self) -> bool {
        self.rate.is_none() && self.max_running.is_none()
    }

    /// Returns `true` if it lets nothing start.
    pub fn is_paused(&self) -> bool {
        self.max_running == Some(0) || self.rate.is_some_and(|rate| rate.starts == 0)
    }

    /// Checks that its numbers fit together.
    ///
    /// # Errors
    /// The contradiction and the remedy, in words for people.
    pub fn check(&self) -> Result<(), String> {
        let needs =
            |option: &str, other: &str| Err(format!("{option} needs {other}; add it, or leave {option} out"));
        for (option, value) in [("burst", self.burst), ("cost", self.cost)] {
            match value {
                None => {}
                Some(_) if self.rate.is_none() => return needs(option, "a rate, such as rate = \"5/s\""),
                Some(number) if (1..=MAX_BURST).contains(&number) => {}
                Some(number) => return Err(format!("{option} = {number} is not in 1 to {MAX_BURST}")),
            }
        }
        if let Some(number) = self.max_running.filter(|number| *number > MAX_RUNNING) {
            return Err(format!(
                "max_running = {number} is more than {MAX_RUNNING}; take a smaller number, or a rate"
            ));
        }
        if self.key.is_some() && self.is_empty() {
            return needs("limit_key", "a rate or max_running");
        }
        Ok(())
    }

    /// Returns the numbers of the rate for a task that counts for `cost` starts, or for as many as all tasks of the limit;
    /// `None` if there is no rate, or it is zero.
    pub(crate) fn terms(&self, cost: Option<u32>) -> Option<Terms> {
        let interval = self.rate?.interval()?;
        let cost = u64::from(cost.or(self.cost).unwrap_or(1).clamp(1, MAX_BURST));
        Some(Terms {
            interval,
            cost,
            // A task that costs more than the burst would never start.
            burst: u64::from(self.burst.unwrap_or(1)).max(cost),
        })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = [
            self.rate.map(|rate| format!("rate={rate}")),
            self.burst.map(|burst| format!("burst={burst}")),
            self.cost.map(|cost| format!("cost={cost}")),
            self.max_running.map(|runs| format!("max_running={runs}")),
            self.key.as_ref().map(|key| format!("limit_key={key}")),
        ];
        let options: Vec<_> = options.into_iter().flatten().collect();
        f.write_str(&options.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_told_with_the_remedy() {
        let mut limit = Limit::new();
        assert_eq!(limit.check(), Ok(()));
        limit.set("burst", "3").unwrap();
        assert!(limit.check().unwrap_err().contains("burst needs a rate"));
        limit.set("rate", "5/s").unwrap();
        assert_eq!(limit.check(), Ok(()));
        for (option, value, problem) in [
            ("rate", "5", "is no rate"),
            ("burst", "-1", "is no number"),
            ("speed", "1", "is no option of a limit"),
            ("limit_key", "{", "limit_key"),
        ] {
            let error = limit.set(option, value).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        assert!(Limit::new().max_running(1001).check().unwrap_err().contains("1000"));
        assert!(limit.clone().cost(0).check().unwrap_err().contains("cost = 0"));
        assert!(Limit::new().key(LimitKey::template("{0}").unwrap()).check().is_err());
    }

    #[test]
    fn zero_pauses() {
        assert!(Limit::new().max_running(0).is_paused());
        assert!(Limit::new().rate(Rate::parse("0/s").unwrap()).is_paused());
        assert!(!Limit::new().max_running(1).is_paused());
        assert!(Limit::new().rate(Rate::parse("0/s").unwrap()).terms(None).is_none());
    }

    #[test]
    fn a_limit_is_stored_as_it_is_written() {
        let mut limit = Limit::new();
        for (option, value) in
            [("rate", "100/m"), ("burst", "10"), ("max_running", "2"), ("limit_key", "{0}")]
        {
            limit.set(option, value).unwrap();
        }
        let text = serde_json::to_string(&limit).unwrap();
        assert_eq!(text, r#"{"rate":"100/m","burst":10,"max_running":2,"limit_key":"{0}"}"#);
        assert_eq!(serde_json::from_str::<Limit>(&text).unwrap(), limit);
        let terms = limit.terms(None).unwrap();
        assert_eq!((terms.interval, terms.cost, terms.burst), (Duration::from_millis(600), 1, 10));
        let dear = limit.terms(Some(25)).unwrap();
        assert_eq!((dear.cost, dear.burst), (25, 25), "it would never start within a burst of 10");
    }
}
