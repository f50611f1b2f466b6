//! Settings as text: the rows of `machinist config`.

use std::collections::BTreeMap;

use machinist_core::{QueuePattern, periodic::Periodic};

use super::{
    Setting, SettingOrigin, Settings, SizeSettings, TaskSettings, WebSettings, WorkerSettings, show_duration,
    table::{self, Definition},
    text,
};
use crate::{redact, url::ServerUrl};

/// Row of `machinist config`: a setting as text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingEntry {
    /// Key in `machinist.toml`, with its section: `worker.grace`.
    pub key: String,
    /// Value, without passwords and secrets.
    pub value: String,
    /// Place that sets the value.
    pub origin: SettingOrigin,
}

impl SettingEntry {
    fn new<T>(key: impl Into<String>, setting: &Setting<T>, show: impl FnOnce(&T) -> String) -> Self {
        Self { key: key.into(), value: show(&setting.value), origin: setting.origin.clone() }
    }
}

impl<T> Definition<T> {
    fn entry(&self, setting: &Setting<T>) -> SettingEntry {
        SettingEntry::new(self.info.name, setting, self.show)
    }
}

impl Settings {
    /// Returns all settings, in the order in which `machinist config` lists them. Sizes that nothing sets are left
    /// out.
    pub fn entries(&self) -> Vec<SettingEntry> {
        let mut rows = vec![
            SettingEntry::new(table::BROKER.name, &self.broker, ServerUrl::to_string),
            SettingEntry::new(table::BACKEND.name, &self.backend, ServerUrl::to_string),
            table::NAMESPACE.entry(&self.namespace),
            table::RESULTS_TTL.entry(&self.results_ttl),
        ];
        rows.extend(self.freshness.iter().map(|setting| table::FRESHNESS.entry(setting)));
        rows.extend(self.key_file.iter().map(|setting| table::KEY_FILE.entry(setting)));
        rows.extend(self.keys.iter().map(|key| SettingEntry::new("keys", key, text::show_key)));
        rows.push(table::ALLOW_UNSIGNED.entry(&self.allow_unsigned));
        rows.push(table::INSECURE_PLAINTEXT.entry(&self.insecure_plaintext));
        rows.push(table::TOPOLOGY.entry(&self.topology));
        rows.push(table::EVENTS.entry(&self.events));
        rows.extend(self.tls.ca_file.iter().map(|file| table::TLS_CA_FILE.entry(file)));
        rows.extend(self.tls.cert_file.iter().map(|file| table::TLS_CERT_FILE.entry(file)));
        rows.extend(self.tls.key_file.iter().map(|file| table::TLS_KEY_FILE.entry(file)));
        rows.extend(self.worker.entries());
        rows.extend(self.buffer.iter().map(|buffer| table::BUFFER.entry(buffer)));
        rows.extend(self.trace_link.iter().map(|link| table::TRACE_LINK.entry(link)));
        rows.extend(self.web.entries());
        rows.extend(self.sizes.entries());
        rows.extend(self.tasks.iter().flat_map(|(name, task)| task.entries(name)));
        rows.extend(self.periodic.iter().map(|(name, periodic)| {
            let show = |one: &Periodic| format!("{}: {}", one.schedule(), one.task_name());
            SettingEntry::new(format!("periodic.{name}"), periodic, show)
        }));
        rows.extend(self.queue_limits.iter().map(|(queue, limit)| {
            SettingEntry::new(format!("queues.{queue}.limit"), limit, ToString::to_string)
        }));
        rows.extend(self.queue_concurrency.iter().map(|(queue, most)| {
            SettingEntry::new(format!("queues.{queue}.concurrency"), most, usize::to_string)
        }));
        rows.extend(self.max_depths.iter().map(|(queue, most)| {
            SettingEntry::new(format!("queues.{queue}.max_depth"), most, u64::to_string)
        }));
        rows.extend(self.priority_queues.iter().map(|(queue, separate)| {
            SettingEntry::new(format!("queues.{queue}.priority_queues"), separate, bool::to_string)
        }));
        for (queue, share) in &self.fair_shares {
            let key = |key: &str| format!("queues.{queue}.{key}");
            rows.push(SettingEntry::new(key("fair_key"), share, |share| share.key.to_string()));
            rows.push(SettingEntry::new(key("fair_rate"), share, |share| share.rate.to_string()));
            rows.push(SettingEntry::new(key("fair_burst"), share, |share| share.burst.to_string()));
        }
        for (queue, unsigned) in &self.unsigned_queues {
            let key = |key: &str| format!("queues.{queue}.{key}");
            if let Some(profile) = &unsigned.profile {
                rows.push(SettingEntry::new(key("profile"), profile, |profile| profile.as_str().to_owned()));
            }
            if let Some(url) = &unsigned.result_backend {
                rows.push(SettingEntry::new(key("result_backend"), url, ToString::to_string));
            }
            if let Some(program) = &unsigned.go_program {
                rows.push(SettingEntry::new(key("go_program"), program, String::clone));
            }
            rows.push(SettingEntry::new(key("tasks"), &unsigned.tasks, |tasks| tasks.join(", ")));
        }
        rows
    }
}

fn show_weights(weights: &BTreeMap<QueuePattern, u32>) -> String {
    let shown: Vec<_> = weights.iter().map(|(queue, weight)| format!("{queue} = {weight}")).collect();
    shown.join(", ")
}

impl WorkerSettings {
    /// Returns the rows. A name, tags and a look-ahead that nothing sets are left out.
    fn entries(&self) -> impl Iterator<Item = SettingEntry> {
        let tags = Some(&self.tags).filter(|tags| tags.origin != SettingOrigin::Default);
        let rows = [
            self.name.as_ref().map(|name| table::WORKER_NAME.entry(name)),
            tags.map(|tags| table::TAGS.entry(tags)),
            Some(table::QUEUES.entry(&self.queues)),
            self.weights
                .as_ref()
                .map(|weights| SettingEntry::new("worker.queues.weights".to_owned(), weights, show_weights)),
            self.strict.as_ref().map(|strict| table::STRICT.entry(strict)),
            Some(table::CONCURRENCY.entry(&self.concurrency)),
            self.look_ahead.as_ref().map(|number| table::LOOK_AHEAD.entry(number)),
            self.keep_args.as_ref().map(|kept| table::KEEP_ARGS.entry(kept)),
            Some(table::GRACE.entry(&self.grace)),
            Some(table::CONSUMER_TIMEOUT.entry(&self.consumer_timeout)),
            self.restart_exit_code.as_ref().map(|code| table::RESTART_EXIT_CODE.entry(code)),
            self.max_tasks.as_ref().map(|number| table::MAX_TASKS.entry(number)),
            self.max_memory.as_ref().map(|bytes| table::MAX_MEMORY.entry(bytes)),
            self.metrics_token_file.as_ref().map(|file| table::METRICS_TOKEN_FILE.entry(file)),
        ];
        let sleep =
            self.sleep.iter().map(|hours| SettingEntry::new("worker.sleep", hours, ToString::to_string));
        rows.into_iter().flatten().chain(sleep.collect::<Vec<_>>())
    }
}

impl WebSettings {
    /// Returns the rows of what is set.
    fn entries(&self) -> impl Iterator<Item = SettingEntry> {
        let proxy_addresses = self.proxy_addresses.as_ref();
        let rows = [
            Some(table::WEB_LISTEN.entry(&self.listen)),
            self.name.as_ref().map(|name| table::WEB_NAME.entry(name)),
            Some(table::WEB_READ_ONLY.entry(&self.read_only)),
            self.password_file.as_ref().map(|file| table::WEB_PASSWORD_FILE.entry(file)),
            self.token_file.as_ref().map(|file| table::WEB_TOKEN_FILE.entry(file)),
            self.proxy_header.as_ref().map(|header| table::WEB_PROXY_HEADER.entry(header)),
            proxy_addresses.map(|addresses| table::WEB_PROXY_ADDRESSES.entry(addresses)),
            Some(table::WEB_PROXY_ROLE.entry(&self.proxy_role)),
        ];
        rows.into_iter().flatten().filter(|row| row.origin != SettingOrigin::Default)
    }
}

impl SizeSettings {
    fn entries(&self) -> impl Iterator<Item = SettingEntry> {
        let rows = [
            table::BODY_SIZE.entry(&self.body),
            table::HEADERS_SIZE.entry(&self.headers),
            table::ARGUMENT_COUNT.entry(&self.args),
            table::NESTING_DEPTH.entry(&self.depth),
            table::RESULT_SIZE.entry(&self.results),
            table::ERROR_SIZE.entry(&self.errors),
        ];
        rows.into_iter().filter(|row| row.origin != SettingOrigin::Default)
    }
}

impl TaskSettings {
    fn entries(&self, name: &str) -> Vec<SettingEntry> {
        fn row<T>(
            key: String,
            setting: Option<&Setting<T>>,
            show: impl FnOnce(&T) -> String,
        ) -> Option<SettingEntry> {
            setting.map(|setting| SettingEntry::new(key, setting, show))
        }
        let key = |field: &str| format!("tasks.{name}.{field}");
        let rows = [
            row(key("command"), self.command.as_ref(), |argv| redact::text(&argv.join(" ")).into_owned()),
            row(key("args"), self.args.as_ref(), |names| names.join(", ")),
            row(key("queue"), self.queue.as_ref(), ToString::to_string),
            row(key("requires"), self.requires.as_ref(), |tags| text::join(tags)),
            row(key("timeout"), self.timeout.as_ref(), |time| show_duration(*time)),
            row(key("soft_timeout"), self.soft_timeout.as_ref(), |time| show_duration(*time)),
            row(key("retry_timeouts"), self.retry_timeouts.as_ref(), bool::to_string),
            row(key("retry_for"), self.retry_for.as_ref(), |time| show_duration(*time)),
            row(key("retries"), self.retries.as_ref(), u32::to_string),
            row(key("backoff"), self.backoff.as_ref(), text::show_backoff),
            row(key("env"), self.env.as_ref(), |set| {
                set.keys().map(|name| format!("{name}=***")).collect::<Vec<_>>().join(", ")
            }),
            row(key("env_pass"), self.env_pass.as_ref(), |names| names.join(", ")),
            row(key("cwd"), self.cwd.as_ref(), |folder| folder.display().to_string()),
            row(key("user"), self.user.as_ref(), String::clone),
            row(key("dash_values"), self.dash_values.as_ref(), bool::to_string),
            row(key("limit"), self.limit.as_ref(), ToString::to_string),
            row(key("circuit"), self.circuit.as_ref(), |(failures, pause)| {
                format!("{failures} failures, {}", show_duration(*pause))
            }),
            row(key("concurrency"), self.concurrency.as_ref(), usize::to_string),
            row(key("unique"), self.unique.as_ref(), ToString::to_string),
            row(key("keep_args"), self.keep_args.as_ref(), bool::to_string),
            row(key("hide_args"), self.hide_args.as_ref(), bool::to_string),
        ];
        rows.into_iter().flatten().collect()
    }
}
