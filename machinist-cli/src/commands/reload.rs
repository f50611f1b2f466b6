//! Reload of machinist.toml by a running worker: on SIGHUP, and by an order.

use machinist::{
    App, Connectors, Worker, WorkerBuilder,
    settings::{Overrides, Settings},
    worker::Reloader,
};
use tokio::sync::Mutex;

use super::worker_tasks::{command_tasks, fit_open_files, with_commands};
use crate::{
    command::Host,
    exit::{CliError, chain},
    output,
};

/// Settings that a reload applies, beside those of tasks, periodic tasks and queues. All others need a restart.
const RELOADED: [&str; 7] = [
    "keys",
    "key_file",
    "worker.queues",
    "worker.tags",
    "worker.sleep",
    "worker.concurrency",
    "worker.keep_args",
];

/// Means of a worker to read its configuration again.
pub(super) struct Reload {
    app: App,
    connectors: Connectors,
    flags: Overrides,
    host: Host,
    reloader: Reloader,
    /// Settings in force. Locked while others are read and applied.
    settings: Mutex<Settings>,
}

impl Reload {
    pub(super) fn new(
        app: &App,
        connectors: &Connectors,
        flags: Overrides,
        settings: Settings,
        host: &Host,
        reloader: Reloader,
    ) -> Self {
        let (app, connectors, host) = (app.clone(), connectors.clone(), host.clone());
        Self { app, connectors, flags, host, reloader, settings: Mutex::new(settings) }
    }

    /// Reads the configuration and applies it, and says so. A configuration that is wrong changes nothing. Returns a remark
    /// about what needs a restart.
    ///
    /// # Cancel safety
    /// A dropped future has changed nothing.
    pub(super) async fn reload(&self) -> Result<Option<String>, String> {
        let done = Box::pin(self.try_reload()).await;
        let text = match &done {
            Ok(Done { keys, restart: None }) => format!("configuration reloaded; {keys}"),
            Ok(Done { keys, restart: Some(restart) }) => format!("configuration reloaded; {keys}; {restart}"),
            Err(why) => format!("configuration and keys unchanged: {why}"),
        };
        output::note(&format!("machinist: {text}"));
        done.map(|done| done.restart)
    }

    async fn try_reload(&self) -> Result<Done, String> {
        let mut in_force = self.settings.lock().await;
        let mut new =
            Settings::load_with(&self.connectors, self.flags.clone()).map_err(|error| chain(&error))?;
        fit_open_files(&mut new).map_err(text)?;
        let ring = new.keyring().map_err(|error| chain(&error))?;
        let (before, after) = (self.builder(&in_force)?, self.builder(&new)?);
        let ids: Option<Vec<String>> =
            ring.as_ref().map(|ring| ring.keys().map(|key| key.id().to_string()).collect());
        let refused = self.reloader.reload(before, after, ring).await.map_err(|error| chain(&error))?;
        let keys = match (ids, refused) {
            (None, _) => "no keys are configured, and those in force stay".to_owned(),
            (Some(ids), None) => format!("keys reloaded: {}", ids.join(", ")),
            (Some(_), Some(error)) => format!(
                "keys not replaced: {error}. What the new configuration revokes is revoked; if that is the key that signs, \
                 no deliveries are taken until another is active"
            ),
        };
        let restart = needing_restart(&in_force, &new);
        let restart =
            (!restart.is_empty()).then(|| format!("a restart is needed for {}", restart.join(", ")));
        *in_force = new;
        Ok(Done { keys, restart })
    }

    /// Returns a builder with what the settings say.
    fn builder(&self, settings: &Settings) -> Result<WorkerBuilder, String> {
        let commands = command_tasks(settings, &self.host).map_err(|error| chain(&error))?;
        Ok(with_commands(settings.configure(Worker::builder(&self.app)), commands))
    }
}

/// Result of a reload.
struct Done {
    /// Sentence about the keys.
    keys: String,
    /// Settings that need a restart.
    restart: Option<String>,
}

fn text(error: CliError) -> String {
    error.remedy.map_or_else(|| error.text.clone(), |remedy| format!("{}; {remedy}", error.text))
}

/// Returns the names of the settings that differ and that a reload does not apply.
fn needing_restart(old: &Settings, new: &Settings) -> Vec<String> {
    let rows = |settings: &Settings| -> Vec<(String, String)> {
        settings.entries().into_iter().map(|row| (row.key, row.value)).collect()
    };
    let (old, new) = (rows(old), rows(new));
    let changed =
        old.iter().filter(|row| !new.contains(row)).chain(new.iter().filter(|row| !old.contains(row)));
    let mut names: Vec<String> =
        changed.map(|(key, _)| key.clone()).filter(|key| !is_reloaded(key)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn is_reloaded(key: &str) -> bool {
    match key.split_once('.') {
        Some(("queues", option)) => option.ends_with(".limit"),
        Some(("tasks", option)) => !option.ends_with(".concurrency"),
        Some(("periodic", _)) => true,
        _ => RELOADED.contains(&key),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_a_reload_does_not_apply_is_named() {
        let settings = |text: &str| {
            Settings::resolve(Overrides::default(), &|_| None, Some((Path::new("machinist.toml"), text)))
                .unwrap()
        };
        let old = settings("[worker]\nconcurrency = 2\n[tasks.a]\nretries = 1\nrate = \"5/s\"");
        let new = settings(
            "[worker]\nconcurrency = 3\ntags = [\"gpu\"]\nqueues = { a = 3, b = 1 }\nkeep_args = true\ngrace = \"5s\"\n\
             sleep = [{ from = \"01:00\", to = \"02:00\" }]\n[tasks.a]\nretries = 2\nconcurrency = 1\n\
             [tasks.b]\ncommand = [\"true\"]\n[queues.q]\nrate = \"1/s\"\nmax_depth = 5\nconcurrency = 1",
        );
        let restart = [
            "queues.q.concurrency",
            "queues.q.max_depth",
            "tasks.a.concurrency",
            "worker.grace",
            "worker.queues.weights",
        ];
        assert_eq!(needing_restart(&old, &new), restart);
        assert!(needing_restart(&old, &old).is_empty());
    }
}
