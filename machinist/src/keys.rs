//! Configured keys: `key_file`, `[[keys]]`, and the key of an SQLite broker.
//!
//! ```toml
//! key_file = "machinist.key"      # the key that signs; enough for a single key
//!
//! [[keys]]                        # further keys of the key ring; see docs/signing.md
//! file = "producer.key"           # or `env = "NAME"`, or `secret`/`public` with `id` and `alg`
//! state = "verify"                # active (the default), verify, revoked
//! not_after = 2027-01-01T00:00:00Z
//! tasks = ["mail.*"]
//! queues = ["mail"]
//! ```
//!
//! Settings only name the places of keys. The keys are read here, when an application is built and when a worker is
//! told to reload them. An error names the setting of the key.

use std::path::Path;

use machinist_core::{
    clock::{self, Timestamp},
    diagnose::Finding,
    sign::{Algorithm, Key, KeyConfig, KeyError, KeyState, Keyring, shown_path},
};
use zeroize::Zeroizing;

use crate::settings::{Setting, SettingOrigin, Settings, SettingsError};

/// Configured key, with its properties that may be shown.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConfiguredKey {
    /// The key.
    pub key: Key,
    /// Time before which its signatures are not valid (RFC 3339).
    pub not_before: Option<String>,
    /// Time after which its signatures are not valid (RFC 3339).
    pub not_after: Option<String>,
    /// Tasks it may sign; `None` for all.
    pub tasks: Option<Vec<String>>,
    /// Queues it may sign for; `None` for all.
    pub queues: Option<Vec<String>>,
    /// Setting that names the key.
    pub origin: SettingOrigin,
}

impl Settings {
    /// Reads all configured keys, each with its own error. The key of an SQLite broker is not created here, and is
    /// missing until an application has created it.
    pub fn configured_keys(&self) -> Vec<Result<ConfiguredKey, SettingsError>> {
        let own = self.key_file.iter().filter(|file| !is_default_key(file) || file.value.exists());
        let own = own.map(|file| {
            let mut config = KeyConfig::default();
            config.file = Some(file.value.clone());
            read(&config, &file.origin)
        });
        own.chain(self.keys.iter().map(|key| read(&key.value, &key.origin))).collect()
    }

    /// Builds the key ring of all configured keys. Returns `None` if there are none, and if the key of an SQLite
    /// broker has not been created yet.
    ///
    /// # Errors
    /// [`SettingsError`] names the key that cannot be used, the reason and the remedy.
    pub fn keyring(&self) -> Result<Option<Keyring>, SettingsError> {
        let keys: Vec<Key> = self
            .configured_keys()
            .into_iter()
            .map(|key| Ok(key?.key))
            .collect::<Result<_, SettingsError>>()?;
        if keys.is_empty() {
            return Ok(None);
        }
        Keyring::new(keys).map(Some).map_err(|error| self.wrong_ring(&error))
    }

    /// Builds the key ring of a sender or a worker. Creates the key of an SQLite broker if it has none.
    pub(crate) fn signing_keyring(&self) -> Result<Option<Keyring>, SettingsError> {
        if let Some(file) = self.key_file.as_ref().filter(|file| is_default_key(file)) {
            let id = fresh_id("embedded");
            Key::read_or_create(&file.value, Algorithm::default(), &id)
                .map_err(|error| wrong(&file.origin, &error))?;
        }
        self.keyring()
    }

    /// Returns `true` if the broker is reached over a network and no key is configured to verify tasks.
    pub fn lacks_key(&self) -> bool {
        self.broker.value.scheme().is_remote() && self.key_file.is_none() && self.keys.is_empty()
    }

    fn wrong_ring(&self, error: &KeyError) -> SettingsError {
        let origin = self
            .keys
            .first()
            .map(|key| &key.origin)
            .or_else(|| self.key_file.as_ref().map(|key| &key.origin));
        wrong(origin.unwrap_or(&SettingOrigin::Default), error)
    }

    /// Checks that each key can be read, is valid and private, and that one signs.
    pub fn diagnose_keys(&self) -> Vec<Finding> {
        let now = clock::wall();
        let mut findings = Vec::new();
        let mut keys = Vec::new();
        for key in self.configured_keys() {
            match key {
                Ok(key) => {
                    findings.push(key.finding(now));
                    keys.push(key.key);
                }
                Err(error) => findings.push(Finding::error("key", error.to_string(), "")),
            }
        }
        let own = self.key_file.as_ref().is_some_and(is_default_key);
        match Keyring::new(keys) {
            Ok(ring) if ring.signing_key().is_none() => findings.push(Finding::warning(
                "signing key",
                "none is active: results can be verified, but no task can be sent or run",
                "set state = \"active\" for a key with its secret",
            )),
            Ok(_) => {}
            // The errors of the single keys are findings already.
            Err(KeyError::Empty) if !findings.is_empty() => {}
            Err(KeyError::Empty) if own => findings.push(Finding::good(
                "signing key",
                "none yet: the first worker or sender makes one next to the SQLite file",
            )),
            Err(KeyError::Empty) if self.lacks_key() && !self.allow_unsigned.value => {
                findings.push(Finding::warning(
                    "signing key",
                    "none is configured, so no worker and no sender starts",
                    "`machinist keygen` makes one; name it by --key-file or MACHINIST_KEY_FILE",
                ));
            }
            Err(KeyError::Empty) => findings.push(Finding::good("signing key", "none is configured")),
            Err(error) => findings.push(Finding::error("ring", self.wrong_ring(&error).to_string(), "")),
        }
        if self.allow_unsigned.value {
            findings.push(Finding::warning(
                "unsigned tasks",
                format!(
                    "are run ({}): anyone who can publish to a queue can run every task of its workers",
                    self.allow_unsigned.origin
                ),
                "remove allow_unsigned once every sender has a key",
            ));
        }
        findings
    }
}

impl ConfiguredKey {
    fn finding(&self, now: Timestamp) -> Finding {
        let key = &self.key;
        let subject = format!("key {}", key.id());
        let about = format!("{}, {}, {}", key.algorithm(), self.state(), self.origin);
        let at = |text: &Option<String>| {
            let instant = text.as_ref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            instant.map(|instant| Timestamp::from_micros(instant.as_microsecond()))
        };
        let active = key.state() == KeyState::Active;
        let (early, late) =
            (at(&self.not_before).is_some_and(|t| now < t), at(&self.not_after).is_some_and(|t| now > t));
        let until = self.not_after.as_deref().unwrap_or_default();
        match (early, late, active) {
            (true, _, true) => Finding::error(
                subject,
                format!(
                    "{about}: it is active, but not valid before {}",
                    self.not_before.as_deref().unwrap_or_default()
                ),
                "make another key active until then",
            ),
            (_, true, true) => Finding::error(
                subject,
                format!("{about}: it is active, but not valid after {until}"),
                "`machinist keygen` makes another; docs/signing.md says how to replace a key",
            ),
            (_, true, false) => Finding::warning(
                subject,
                format!("{about}: its signatures after {until} are not valid"),
                "remove it once no message that it signed is under way",
            ),
            _ => Finding::good(subject, about),
        }
    }

    /// `active`, `verify` or `revoked`.
    pub fn state(&self) -> &'static str {
        match self.key.state() {
            KeyState::Revoked => "revoked",
            KeyState::Verify => "verify",
            _ => "active",
        }
    }
}

/// Reads one key from its place.
fn read(config: &KeyConfig, origin: &SettingOrigin) -> Result<ConfiguredKey, SettingsError> {
    let failed = |error: KeyError| wrong(origin, &error);
    if config.secret.is_some()
        && let SettingOrigin::File { path, .. } = origin
    {
        // The secret is in the configuration itself, which then has to be as private as a key file.
        Key::read_text(path).map_err(failed)?;
    }
    let text = match (&config.file, &config.env) {
        (Some(file), _) => Some(Key::read_text(file).map_err(|error| missing(origin, file, &error))?),
        (None, Some(name)) => {
            let text = std::env::var(name).map(Zeroizing::new);
            Some(text.map_err(|_| {
                SettingsError::new(
                    origin,
                    format!("the variable {} holds no key", shown_path(Path::new(name))),
                )
            })?)
        }
        (None, None) => None,
    };
    let key = config.key(text.as_deref().map(String::as_str)).map_err(|error| {
        match (&config.file, &config.env) {
            (Some(file), _) => SettingsError::new(origin, format!("key file {}: {error}", shown_path(file))),
            (None, Some(name)) => {
                SettingsError::new(origin, format!("the variable {}: {error}", shown_path(Path::new(name))))
            }
            (None, None) => failed(error),
        }
    })?;
    // The text is a valid key. Its other properties hold unless the setting has them too.
    let inner: KeyConfig = text.and_then(|text| toml::from_str(&text).ok()).unwrap_or_default();
    Ok(ConfiguredKey {
        key,
        not_before: config.not_before.clone().or(inner.not_before),
        not_after: config.not_after.clone().or(inner.not_after),
        tasks: config.tasks.clone().or(inner.tasks),
        queues: config.queues.clone().or(inner.queues),
        origin: origin.clone(),
    })
}

/// Returns `true` for the key of an SQLite broker, which no setting names and which may not exist yet.
fn is_default_key(file: &Setting<std::path::PathBuf>) -> bool {
    file.origin == SettingOrigin::Default
}

fn wrong(origin: &SettingOrigin, error: &KeyError) -> SettingsError {
    SettingsError::new(origin, error.to_string())
}

fn missing(origin: &SettingOrigin, file: &Path, error: &KeyError) -> SettingsError {
    if file.exists() {
        return wrong(origin, error);
    }
    let shown = shown_path(file);
    SettingsError::new(origin, format!("{error}; `machinist keygen --out {shown}` makes one"))
}

/// Returns a unique id for a new key: the prefix, and eight letters and digits.
pub fn fresh_id(prefix: &str) -> String {
    let id = machinist_core::TaskId::fresh();
    let word: String = id.as_str().chars().rev().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("{prefix}-{word}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Overrides;

    struct Conf(tempfile::TempDir);

    impl Conf {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn key(&self, name: &str, id: &str) -> Key {
            let key = Key::generate(Algorithm::HmacSha256, id).unwrap();
            key.write_new(&self.0.path().join(name)).unwrap();
            key
        }

        fn settings(&self, toml: &str) -> Settings {
            let path = self.0.path().join("machinist.toml");
            std::fs::write(&path, toml).unwrap();
            Settings::resolve(Overrides::default(), &|_| None, Some((&path, toml))).unwrap()
        }

        fn error(&self, toml: &str) -> String {
            self.settings(toml).keyring().unwrap_err().to_string()
        }
    }

    #[test]
    fn a_ring_is_put_together() {
        let conf = Conf::new();
        conf.key("own.key", "own");
        conf.key("old.key", "old");
        let toml = "key_file = \"own.key\"\n[[keys]]\nfile = \"old.key\"\nstate = \"verify\"\ntasks = [\"mail.*\"]\n\
                    [[keys]]\nid = \"gone\"\nstate = \"revoked\"\n";
        let ring = conf.settings(toml).keyring().unwrap().unwrap();
        assert_eq!(ring.signing_key().unwrap().id().as_str(), "own");
        assert_eq!(ring.keys().count(), 3);
        let keys = conf.settings(toml).configured_keys();
        assert_eq!(keys[1].as_ref().unwrap().tasks.as_deref(), Some(&["mail.*".to_owned()][..]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_remedy() {
        let conf = Conf::new();
        conf.key("a.key", "a");
        conf.key("b.key", "b");
        let error = conf.error("\nkey_file = \"nowhere.key\"");
        assert!(
            error.contains("machinist.toml:2: key file ") && error.contains("`machinist keygen --out "),
            "{error}"
        );
        let error = conf.error("key_file = \"a.key\"\n[[keys]]\nfile = \"b.key\"");
        assert!(error.contains("machinist.toml:2: keys a and b are both active"), "{error}");
        let error = conf.error("key_file = \"a.key\"\n[[keys]]\nfile = \"a.key\"\nstate = \"verify\"");
        assert!(error.contains("key a is in the ring twice"), "{error}");
        let error = conf.error("[[keys]]\nenv = \"MACHINIST_NO_SUCH_KEY\"");
        assert!(
            error.contains("machinist.toml:1: the variable MACHINIST_NO_SUCH_KEY holds no key"),
            "{error}"
        );
        let error = conf.error("[[keys]]\nid = \"k\"\n");
        assert!(error.contains("machinist.toml:1: key k: `secret` is missing"), "{error}");
    }

    #[test]
    fn a_secret_in_a_wrong_field_is_not_repeated() {
        let secret = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
        let conf = Conf::new();
        let path = conf.0.path().join("machinist.toml");
        for field in ["id", "alg", "state", "file", "env", "not_before", "not_after", "tasks", "queues"] {
            let toml = format!("[[keys]]\n{field} = \"{secret}\"");
            let shown = match Settings::resolve(Overrides::default(), &|_| None, Some((&path, &toml))) {
                Ok(settings) => settings.keyring().unwrap_err().to_string(),
                Err(error) => error.to_string(),
            };
            assert!(!shown.contains(&secret[..40]), "{shown}");
            assert!(shown.contains("machinist.toml:"), "{shown}");
        }
        let shown = conf.error(&format!("key_file = \"{secret}\""));
        assert!(!shown.contains(&secret[..40]) && shown.contains("***"), "{shown}");
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_that_others_can_read_is_refused_wherever_it_is() {
        use std::os::unix::fs::PermissionsExt;
        let conf = Conf::new();
        conf.key("a.key", "a");
        let others = |name: &str, mode| {
            std::fs::set_permissions(conf.0.path().join(name), std::fs::Permissions::from_mode(mode))
                .unwrap();
        };
        others("a.key", 0o640);
        let error = conf.error("key_file = \"a.key\"");
        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
        let toml = format!("[[keys]]\nid = \"k\"\nsecret = \"{}\"", "Z2Vo".repeat(11));
        conf.settings(&toml);
        others("machinist.toml", 0o644);
        let settings = Settings::resolve(
            Overrides::default(),
            &|_| None,
            Some((&conf.0.path().join("machinist.toml"), &toml)),
        );
        let settings = settings.unwrap();
        let error = settings.keyring().unwrap_err().to_string();
        assert!(error.contains("mode 0644") && !error.contains("Z2Vo"), "{error}");
        others("machinist.toml", 0o600);
        assert!(settings.keyring().unwrap().is_some());
    }

    #[test]
    fn the_embedded_file_makes_its_own_key_once() {
        let conf = Conf::new();
        let settings = conf.settings("broker = \"sqlite://m.db\"");
        assert!(settings.keyring().unwrap().is_none(), "who only reads makes none");
        assert_eq!(settings.diagnose_keys().len(), 1);
        let made = settings.signing_keyring().unwrap().unwrap();
        let read = settings.keyring().unwrap().unwrap();
        assert_eq!(made.signing_key().unwrap().id(), read.signing_key().unwrap().id());
        assert!(conf.0.path().join("m.db.key").exists());
    }

    #[test]
    fn findings_tell_what_would_fail() {
        use machinist_core::diagnose::Level;
        let conf = Conf::new();
        conf.key("a.key", "a");
        let worst =
            |toml: &str| conf.settings(toml).diagnose_keys().into_iter().map(|f| f.level).max().unwrap();
        assert_eq!(worst("key_file = \"a.key\""), Level::Good);
        assert_eq!(worst("broker = \"amqp://h\""), Level::Warning);
        assert_eq!(worst("key_file = \"a.key\"\nallow_unsigned = true"), Level::Warning);
        assert_eq!(worst("[[keys]]\nfile = \"a.key\"\nstate = \"verify\""), Level::Warning);
        assert_eq!(worst("[[keys]]\nfile = \"a.key\"\nnot_after = 2020-01-01T00:00:00Z"), Level::Error);
        assert_eq!(worst("[[keys]]\nfile = \"a.key\"\nnot_before = 2999-01-01T00:00:00Z"), Level::Error);
        assert_eq!(worst("key_file = \"no.key\""), Level::Error);
    }
}
