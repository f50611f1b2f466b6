//! Queues of `[queues.NAME]` from which tasks run without a signature, and the format of their messages.
//!
//! Everybody who can publish to such a queue can run the tasks that are listed for it: the list is never left out.

use std::{collections::BTreeMap, time::Duration};

use machinist_core::QueueName;

use super::{Connectors, Setting, SettingOrigin, Settings, SettingsError, section::Section, value};
use crate::{
    topology::QueueAddress,
    url::{Role, ServerUrl},
};

/// Keys of a queue whose tasks run without a signature.
pub(super) const UNSIGNED_KEYS: [&str; 8] = [
    "profile",
    "allow_unsigned",
    "tasks",
    "exchange",
    "routing_key",
    "result_backend",
    "results_ttl",
    "go_program",
];

/// Format of the messages of a queue of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileName {
    /// Go machinery.
    Machinery,
}

impl ProfileName {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Machinery];

    /// Word for it in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Machinery => "machinery",
        }
    }

    /// Name of the exchange that its program takes if none is set.
    pub(crate) const fn default_exchange(self) -> &'static str {
        match self {
            Self::Machinery => "machinery_exchange",
        }
    }

    /// Name of the queue that its program takes if none is set.
    pub const fn default_queue(self) -> &'static str {
        match self {
            Self::Machinery => "machinery_tasks",
        }
    }

    /// Reads its word.
    ///
    /// # Errors
    /// A sentence that names the known words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|profile| profile.as_str() == text);
        found.ok_or_else(|| format!("\"{text}\" is no profile; the profiles are {known}"))
    }
}

/// `[queues.NAME]`: tasks that run from a queue without a signature.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnsignedQueue {
    /// Format of its messages; `None` for machinist's.
    pub profile: Option<Setting<ProfileName>>,
    /// Names of the tasks, or prefixes followed by `*`.
    pub tasks: Setting<Vec<String>>,
    /// Exchange and routing key by which another program reaches it.
    pub address: Option<QueueAddress>,
    /// Redis in which that program looks for states; `None` for the backend, if that is a Redis.
    pub result_backend: Option<Setting<ServerUrl>>,
    /// Time for which a state is kept there; `None` for that program's default.
    pub results_ttl: Option<Setting<Duration>>,
    /// Base name of the program of Go with whose periodic tasks those of the queue share their ticks.
    pub go_program: Option<Setting<String>>,
}

impl UnsignedQueue {
    /// Creates the queue of another program as that program declares it, for these tasks.
    pub fn of_profile(profile: ProfileName, queue: &QueueName, tasks: Vec<String>) -> Self {
        let address = QueueAddress {
            exchange: profile.default_exchange().to_owned(),
            routing_key: queue.as_str().to_owned(),
        };
        Self {
            profile: Some(Setting::new(profile, SettingOrigin::Default)),
            tasks: Setting::new(tasks, SettingOrigin::Default),
            address: Some(address),
            result_backend: None,
            results_ttl: None,
            go_program: None,
        }
    }
}

impl Settings {
    /// Returns the addresses of the queues of other programs.
    pub(crate) fn existing_queues(&self) -> BTreeMap<QueueName, QueueAddress> {
        let address = |(queue, unsigned): (&QueueName, &UnsignedQueue)| {
            unsigned.address.clone().map(|address| (queue.clone(), address))
        };
        self.unsigned_queues.iter().filter_map(address).collect()
    }
}

/// Reads what runs from a queue without a signature; `None` if nothing does.
pub(super) fn read(
    queue: &QueueName,
    section: &Section<'_>,
    connectors: &Connectors,
) -> Result<Option<UnsignedQueue>, SettingsError> {
    let profile = section.get("profile", |value| ProfileName::parse(value::string(value, "a profile")?))?;
    let allowed = section.get("allow_unsigned", value::boolean)?;
    let tasks =
        section.get("tasks", |value| match value::strings(value, "a list of tasks, like [\"add\"]")? {
            tasks if tasks.is_empty() => Err("names no task".to_owned()),
            tasks => Ok(tasks),
        })?;
    let exchange = section.get("exchange", |value| Ok(value::string(value, "an exchange")?.to_owned()))?;
    let routing_key =
        section.get("routing_key", |value| Ok(value::string(value, "a routing key")?.to_owned()))?;
    let result_backend = section
        .get("result_backend", |value| connectors.url(value::string(value, "a URL")?, Role::Backend))?;
    let results_ttl = section.get("results_ttl", value::positive_duration)?;
    let go_program = section.get("go_program", |value| {
        match value::string(value, "the base name of a program of Go, like \"shop-worker\"")? {
            name if name.is_empty() || name.contains('/') => {
                Err("is no base name of a program; write its file name without the path".to_owned())
            }
            name => Ok(name.to_owned()),
        }
    })?;
    let foreign = [
        exchange.is_some(),
        routing_key.is_some(),
        result_backend.is_some(),
        results_ttl.is_some(),
        go_program.is_some(),
    ];
    if profile.is_none() && foreign.contains(&true) {
        return Err(section.error(
            "has an exchange, a routing key, a result_backend, a results_ttl or a go_program, which only a queue of another program has; add \
             profile = \"machinery\", or leave them out",
        ));
    }
    let allowed = allowed.is_some_and(|allowed| allowed.value);
    let tasks = match (allowed, tasks) {
        (true, Some(tasks)) => tasks,
        (true, None) => {
            return Err(section.error(
                "runs tasks without a signature: everybody who can publish to it can run them. List their names, \
                 like tasks = [\"add\", \"mail.*\"]",
            ));
        }
        (false, Some(_)) => {
            return Err(section.error("lists tasks that run without a signature; add allow_unsigned = true"));
        }
        (false, None) if profile.is_some() => {
            return Err(section.error(
                "has the format of another program, which has no signature; add allow_unsigned = true, and \
                 tasks = [\"add\", \"mail.*\"] with the names of the tasks that may run",
            ));
        }
        (false, None) => return Ok(None),
    };
    let mut unsigned =
        UnsignedQueue { profile: None, tasks, address: None, result_backend, results_ttl, go_program };
    if let Some(profile) = profile {
        let defaults = UnsignedQueue::of_profile(profile.value, queue, Vec::new());
        let mut address = defaults.address;
        if let Some(address) = &mut address {
            if let Some(exchange) = exchange {
                address.exchange = exchange.value;
            }
            if let Some(routing_key) = routing_key {
                address.routing_key = routing_key.value;
            }
        }
        (unsigned.profile, unsigned.address) = (Some(profile), address);
    }
    Ok(Some(unsigned))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::Overrides;

    fn settings(text: &str) -> Result<Settings, SettingsError> {
        Settings::resolve(Overrides::default(), &|_| None, Some((Path::new("machinist.toml"), text)))
    }

    #[test]
    fn a_queue_of_go_machinery_has_its_exchange_and_its_routing_key() {
        let text = "[queues.machinery_tasks]\nprofile = \"machinery\"\nallow_unsigned = true\ntasks = [\"add\"]\n\
                    [queues.other]\nprofile = \"machinery\"\nallow_unsigned = true\ntasks = [\"*\"]\n\
                    exchange = \"e\"\nrouting_key = \"k\"\n[queues.plain]\nallow_unsigned = true\ntasks = [\"mail.*\"]";
        let settings = settings(text).unwrap();
        let existing = settings.existing_queues();
        let address = |queue: &str| {
            let address = &existing[&QueueName::parse(queue).unwrap()];
            (address.exchange.clone(), address.routing_key.clone())
        };
        assert_eq!(existing.len(), 2);
        assert_eq!(
            address("machinery_tasks"),
            ("machinery_exchange".to_owned(), "machinery_tasks".to_owned())
        );
        assert_eq!(address("other"), ("e".to_owned(), "k".to_owned()));
        let rows = settings.entries();
        let row = rows.iter().find(|row| row.key == "queues.machinery_tasks.tasks").unwrap();
        assert_eq!(row.value, "add");
    }

    #[test]
    fn nothing_runs_unsigned_without_two_words() {
        for (text, says) in [
            ("profile = \"machinery\"", "add allow_unsigned = true"),
            ("profile = \"machinery\"\nallow_unsigned = false\ntasks = [\"a\"]", "add allow_unsigned = true"),
            ("profile = \"machinery\"\nallow_unsigned = true", "List their names"),
            ("allow_unsigned = true\ntasks = []", "names no task"),
            ("tasks = [\"a\"]", "add allow_unsigned = true"),
            ("profile = \"celery\"", "\"celery\" is no profile; the profiles are machinery"),
            ("exchange = \"x\"", "profile = \"machinery\""),
        ] {
            let error = settings(&format!("[queues.q]\n{text}")).unwrap_err().to_string();
            assert!(error.contains("queues.q") && error.contains(says), "{error}");
        }
    }
}
