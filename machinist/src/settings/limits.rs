//! Limits and uniqueness of `[tasks.NAME]`, and `[queues.NAME]` of `machinist.toml`.

use std::collections::BTreeMap;

use machinist_core::{
    FairShare, OnConflict, QueueName, QueuePattern, Unique, UniqueUntil,
    limit::{Limit, LimitKey, Rate},
};
use toml::de::DeValue;

use super::{
    Connectors, Setting, SettingsError,
    section::Section,
    text::parse_duration,
    unsigned::{self, UNSIGNED_KEYS, UnsignedQueue},
    value,
};

/// Keys of a limit.
pub(super) const LIMIT_KEYS: [&str; 5] = ["rate", "burst", "cost", "max_running", "limit_key"];
/// Keys of uniqueness.
pub(super) const UNIQUE_KEYS: [&str; 6] =
    ["unique", "unique_until", "on_conflict", "debounce", "debounce_max", "throttle"];
/// Number of waits of a debounce that its longest wait is unless it is set.
pub const DEBOUNCE_MAX_WAITS: u32 = 10;

/// Values of `[queues.NAME]`, by queue.
#[derive(Debug, Default)]
pub(super) struct FileQueues {
    pub(super) limits: BTreeMap<QueueName, Setting<Limit>>,
    pub(super) concurrency: BTreeMap<QueueName, Setting<usize>>,
    pub(super) max_depth: BTreeMap<QueueName, Setting<u64>>,
    pub(super) priority: BTreeMap<QueueName, Setting<bool>>,
    pub(super) fair: BTreeMap<QueueName, Setting<FairShare>>,
    pub(super) unsigned: BTreeMap<QueueName, UnsignedQueue>,
}

/// Reads `[queues.NAME]`, by queue.
pub(super) fn read_queues(top: &Section<'_>, connectors: &Connectors) -> Result<FileQueues, SettingsError> {
    let mut queues = FileQueues::default();
    let own = ["concurrency", "max_depth", "priority_queues", "fair_key", "fair_rate", "fair_burst"];
    let keys = [&LIMIT_KEYS[..], &own, &UNSIGNED_KEYS].concat();
    for (name, section) in top.sections("queues", &keys)? {
        let queue =
            QueueName::parse(&name).map_err(|error| section.error(&format!("names no queue: {error}")))?;
        if QueuePattern::from(queue.clone()).is_prefix() {
            return Err(section.error("names a pattern, and these options are of one queue; name the queue"));
        }
        if let Some(most) = section.get("concurrency", value::concurrency)? {
            queues.concurrency.insert(queue.clone(), most);
        }
        if let Some(most) = section.get("max_depth", max_depth)? {
            queues.max_depth.insert(queue.clone(), most);
        }
        if let Some(priority) = section.get("priority_queues", value::boolean)? {
            queues.priority.insert(queue.clone(), priority);
        }
        if let Some(share) = read_share(&section)? {
            queues.fair.insert(queue.clone(), share);
        }
        if let Some(unsigned) = unsigned::read(&queue, &section, connectors)? {
            queues.unsigned.insert(queue.clone(), unsigned);
        }
        if let Some(limit) = read_limit(&section)? {
            queues.limits.insert(queue, limit);
        }
    }
    Ok(queues)
}

/// Reads the shares of the keys of a queue.
fn read_share(section: &Section<'_>) -> Result<Option<Setting<FairShare>>, SettingsError> {
    let key = section.get("fair_key", |v| LimitKey::template(value::string(v, "a key, like \"{0}\"")?))?;
    let rate = section.get("fair_rate", |v| Rate::parse(value::string(v, "a rate, like \"5/s\"")?))?;
    let burst = section.get("fair_burst", |v| {
        let number = value::integer(v, "a number of tasks")?;
        let fits = u32::try_from(number).ok().filter(|burst| *burst > 0);
        fits.ok_or_else(|| format!("{number} tasks at once are no share; take 1 or more"))
    })?;
    let Some(key) = key else {
        let without = [("fair_rate", rate.is_some()), ("fair_burst", burst.is_some())];
        let Some((option, _)) = without.into_iter().find(|(_, given)| *given) else { return Ok(None) };
        return Err(section.error(&format!("has {option} and no fair_key; add fair_key = \"{{0}}\"")));
    };
    let mut share = FairShare::by(key.value);
    share.rate = rate.map_or(share.rate, |rate| rate.value);
    share.burst = burst.map_or(share.burst, |burst| burst.value);
    Ok(Some(Setting::new(share, key.origin)))
}

/// Reads a number of tasks that may wait.
fn max_depth(value: &DeValue<'_>) -> Result<u64, String> {
    let number = value::integer(value, "a number of tasks")?;
    u64::try_from(number).map_err(|_| format!("{number} tasks cannot wait; take 0 or more"))
}

/// Reads the limit of a task or a queue.
pub(super) fn read_limit(section: &Section<'_>) -> Result<Option<Setting<Limit>>, SettingsError> {
    let mut limit = Limit::new();
    let mut origin = None;
    for key in LIMIT_KEYS {
        let set = section.get(key, |v| limit.set(key, &option(key, v)?))?;
        origin = origin.or_else(|| set.map(|set| set.origin));
    }
    let Some(origin) = origin else { return Ok(None) };
    limit.check().map_err(|why| section.error(&format!("has a wrong limit: {why}")))?;
    Ok(Some(Setting::new(limit, origin)))
}

/// Reads an option of a limit as text.
fn option(key: &str, value: &DeValue<'_>) -> Result<String, String> {
    match key {
        "rate" => value::string(value, "a rate, like \"5/s\"").map(str::to_owned),
        "limit_key" => value::string(value, "a key, like \"{0}\"").map(str::to_owned),
        _ => value::integer(value, "a number").map(|number| number.to_string()),
    }
}

/// Reads the uniqueness of a task.
pub(super) fn read_unique(section: &Section<'_>) -> Result<Option<Setting<Unique>>, SettingsError> {
    let unique = section.get("unique", |v| match v {
        DeValue::Boolean(true) => Ok(Some(Unique::new())),
        DeValue::Boolean(false) => Ok(None),
        DeValue::String(text) => Ok(Some(Unique::new().by(LimitKey::template(text)?))),
        other => Err(value::wrong_type(other, "true, or a key like \"{0}\" in quotes")),
    })?;
    let until = section
        .value("unique_until", |v| parse_unique_until(value::string(v, "start, end or a duration")?))?;
    let conflict = section.value("on_conflict", |v| parse_on_conflict(value::string(v, "a consequence")?))?;
    let debounce = section.get("debounce", value::positive_duration)?;
    let longest = section.get("debounce_max", value::positive_duration)?;
    let throttle = section.get("throttle", value::positive_duration)?;
    if longest.is_some() && debounce.is_none() {
        section.get::<()>("debounce_max", |_| {
            Err("needs debounce; add it, or leave debounce_max out".to_owned())
        })?;
    }
    if debounce.is_some() && throttle.is_some() {
        section
            .get::<()>("throttle", |_| Err("does not go with debounce; leave one of them out".to_owned()))?;
    }
    let timed = match (debounce, throttle) {
        (Some(wait), _) => {
            let longest = longest
                .map_or_else(|| wait.value.saturating_mul(DEBOUNCE_MAX_WAITS), |longest| longest.value);
            Some(Setting::new(Unique::debounce(wait.value, longest), wait.origin))
        }
        (None, Some(period)) => Some(Setting::new(Unique::throttle(period.value), period.origin)),
        (None, None) => None,
    };
    if let Some(mut timed) = timed {
        for key in ["unique_until", "on_conflict"] {
            section.get::<()>(key, |_| {
                Err(format!("does not go with debounce or throttle, which imply it; leave {key} out"))
            })?;
        }
        if let Some(Setting { value: Some(unique), .. }) = unique {
            timed.value = timed.value.keyed_as(unique);
        }
        return Ok(Some(timed));
    }
    let Some(Setting { value: Some(mut unique), origin }) = unique else {
        for key in ["unique_until", "on_conflict"] {
            section.get::<()>(key, |_| {
                Err(format!("needs unique = true, or a key; add it, or leave {key} out"))
            })?;
        }
        return Ok(None);
    };
    if let Some(until) = until {
        unique = unique.until(until);
    }
    if let Some(conflict) = conflict {
        unique = unique.on_conflict(conflict);
    }
    Ok(Some(Setting::new(unique, origin)))
}

/// Reads the end of uniqueness: `start`, `end` or a duration.
///
/// # Errors
/// The text is none of them.
pub fn parse_unique_until(text: &str) -> Result<UniqueUntil, String> {
    match text {
        "start" => Ok(UniqueUntil::Start),
        "end" => Ok(UniqueUntil::End),
        text => match parse_duration(text) {
            Ok(period) if !period.is_zero() => Ok(UniqueUntil::For(period)),
            _ => Err(format!("{text:?} is neither start nor end nor a duration such as 10m")),
        },
    }
}

/// Reads the consequence of a conflict: `existing`, `refuse`, `replace` or `drop`.
///
/// # Errors
/// The text is none of them.
pub fn parse_on_conflict(text: &str) -> Result<OnConflict, String> {
    match text {
        "existing" => Ok(OnConflict::Existing),
        "refuse" => Ok(OnConflict::Refuse),
        "replace" => Ok(OnConflict::Replace),
        "drop" => Ok(OnConflict::Drop),
        text => Err(format!("{text:?} is no consequence; write existing, refuse, replace or drop")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{connector::Connectors, settings::file};

    fn error(text: &str) -> String {
        file::read(Path::new("machinist.toml"), text, &Connectors::default()).unwrap_err().to_string()
    }

    #[test]
    fn limits_and_uniqueness_are_read() {
        let text = "[tasks.a]\nrate = \"5/s\"\nburst = 10\nmax_running = 1\nlimit_key = \"{0}\"\nunique = \"{1}\"\n\
                    unique_until = \"10m\"\non_conflict = \"drop\"\n[tasks.b]\nunique = true\n[queues.q]\nmax_running = 3";
        let file = file::read(Path::new("machinist.toml"), text, &Connectors::default()).unwrap();
        let limit = &file.tasks["a"].limit.as_ref().unwrap().value;
        assert_eq!(limit.to_string(), "rate=5/s burst=10 max_running=1 limit_key={0}");
        let unique = &file.tasks["a"].unique.as_ref().unwrap().value;
        let expected = Unique::new()
            .by(LimitKey::template("{1}").unwrap())
            .until(UniqueUntil::For(std::time::Duration::from_secs(600)))
            .on_conflict(OnConflict::Drop);
        assert_eq!(*unique, expected);
        assert_eq!(file.tasks["b"].unique.as_ref().unwrap().value, Unique::new());
        let text = "[tasks.c]\nunique = \"{0}\"\ndebounce = \"5s\"\n[tasks.d]\nthrottle = \"1m\"";
        let timed = file::read(Path::new("machinist.toml"), text, &Connectors::default()).unwrap();
        let secs = std::time::Duration::from_secs;
        let debounce = Unique::debounce(secs(5), secs(50)).by(LimitKey::template("{0}").unwrap());
        assert_eq!(timed.tasks["c"].unique.as_ref().unwrap().value, debounce);
        assert_eq!(timed.tasks["d"].unique.as_ref().unwrap().value, Unique::throttle(secs(60)));
        let queue = QueueName::parse("q").unwrap();
        assert_eq!(file.queues.limits[&queue].value, Limit::new().max_running(3));
    }

    #[test]
    fn weights_and_numbers_of_runs_in_a_worker_are_read() {
        let text = "[worker]\nqueues = { critical = 6, low = 1, \"t.*\" = 2 }\nstrict = true\n[tasks.a]\nconcurrency = 2\n\
                    [queues.slow]\nconcurrency = 3\nmax_depth = 1000\npriority_queues = true";
        let file = file::read(Path::new("machinist.toml"), text, &Connectors::default()).unwrap();
        let queue = |name: &str| QueueName::parse(name).unwrap();
        let pattern = |name: &str| QueuePattern::parse(name).unwrap();
        assert_eq!(file.worker.queues.unwrap().value, [pattern("critical"), pattern("low"), pattern("t.*")]);
        let weights = file.worker.weights.unwrap().value;
        assert_eq!((weights[&pattern("critical")], weights[&pattern("t.*")]), (6, 2));
        assert!(file.worker.strict.unwrap().value);
        assert_eq!(file.tasks["a"].concurrency.as_ref().unwrap().value, 2);
        assert_eq!(file.queues.concurrency[&queue("slow")].value, 3);
        assert_eq!(file.queues.max_depth[&queue("slow")].value, 1000);
        assert!(file.queues.priority[&queue("slow")].value);
        for (text, problem) in [
            ("[worker]\nqueues = { low = 0 }", "worker.queues: low: 0 is no weight"),
            ("[worker]\nqueues = { low = \"1\" }", "worker.queues: low: "),
            ("[worker]\nqueues = {}", "names no queue"),
            ("[queues.q]\npriority_queues = 3", "queues.q.priority_queues: expected true or false"),
            ("[queues.q]\nmax_depth = -1", "queues.q.max_depth: -1 tasks cannot wait"),
            (
                "[queues.q]\nconcurrency = 0",
                "queues.q.concurrency: 0 is not a number of tasks to run at once",
            ),
            ("[tasks.t]\nconcurrency = -1", "tasks.t.concurrency"),
        ] {
            let error = error(text);
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn shares_of_a_queue_are_read() {
        let read =
            |text: &str| file::read(Path::new("machinist.toml"), text, &Connectors::default()).unwrap();
        let queue = QueueName::parse("q").unwrap();
        let by_default = FairShare::by(LimitKey::template("{0}").unwrap());
        let file = read("[queues.q]\nfair_key = \"{0}\"");
        assert_eq!(file.queues.fair[&queue].value, by_default);
        let file = read("[queues.q]\nfair_key = \"{0}\"\nfair_rate = \"90/m\"\nfair_burst = 7");
        let expected = FairShare { rate: Rate::parse("90/m").unwrap(), burst: 7, ..by_default };
        assert_eq!(file.queues.fair[&queue].value, expected);
        for (text, problem) in [
            ("fair_key = \"all\"", "has no placeholder"),
            ("fair_key = \"{0}\"\nfair_rate = 5", "queues.q.fair_rate: "),
            ("fair_key = \"{0}\"\nfair_burst = 0", "queues.q.fair_burst: 0 tasks at once are no share"),
            ("fair_burst = 5", "has fair_burst and no fair_key; add fair_key"),
        ] {
            let error = error(&format!("[queues.q]\n{text}"));
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn wrong_limits_are_reported_with_their_place() {
        for (text, problem) in [
            ("[tasks.a]\nrate = 5", "2:8: tasks.a.rate: "),
            ("[tasks.a]\nrate = \"5\"", "is no rate"),
            ("[tasks.a]\nburst = 5", "burst needs a rate"),
            ("[tasks.a]\nmax_running = -1", "max_running"),
            ("[tasks.a]\nmax_running = 1\nlimit_key = \"all\"", "has no placeholder"),
            ("[tasks.a]\nunique_until = \"start\"", "needs unique = true"),
            ("[tasks.a]\nunique = 1", "tasks.a.unique"),
            ("[tasks.a]\ndebounce = \"5s\"\non_conflict = \"drop\"", "does not go with debounce or throttle"),
            ("[tasks.a]\ndebounce = \"5s\"\nthrottle = \"5s\"", "leave one of them out"),
            ("[tasks.a]\ndebounce_max = \"5s\"", "needs debounce"),
            ("[tasks.a]\nthrottle = \"0s\"", "throttle"),
            ("[tasks.a]\nunique = true\non_conflict = \"x\"", "is no consequence"),
            ("[queues.\"t-*\"]\nrate = \"5/s\"", "names a pattern"),
            ("[queues.\"amq.q\"]\nrate = \"5/s\"", "names no queue"),
        ] {
            let error = error(text);
            assert!(error.contains(problem), "{error}");
        }
    }
}
