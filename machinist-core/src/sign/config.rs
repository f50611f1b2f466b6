//! Keys as text: a key file, or `[[keys]]` in a configuration.
//!
//! ```toml
//! id = "2026-11"
//! alg = "hmac-sha256"
//! secret = "base64 of at least 32 bytes"
//! ```

use std::{
    fmt,
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{Algorithm, Key, KeyError, KeyId, KeyState, secret_file::read_key_file};
use crate::clock::Timestamp;

/// Maximum size of a key file, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A key as text: a whole key file, or one of the `[[keys]]` of a configuration.
///
/// A configuration may name the location of the key instead of holding it: `file` or `env`. The reader of the
/// configuration fetches that text (from files by [`Key::read_text`], which checks who else can read them) and passes
/// it to [`key`](Self::key).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KeyConfig {
    /// Name of the key.
    pub id: Option<KeyId>,
    /// Algorithm of the key.
    pub alg: Option<Algorithm>,
    /// Secret, as base64.
    pub secret: Option<SecretText>,
    /// Public half of an Ed25519 key, as base64, if the secret is kept elsewhere.
    pub public: Option<String>,
    /// Key file that holds the key.
    pub file: Option<PathBuf>,
    /// Environment variable that holds the text of a key file.
    pub env: Option<String>,
    /// RFC 3339 time: anything that it signed earlier is not trusted.
    pub not_before: Option<String>,
    /// RFC 3339 time: anything that it signed later is not trusted.
    pub not_after: Option<String>,
    /// `active` (the default), `verify` or `revoked`.
    pub state: Option<KeyState>,
    /// Tasks that it may sign: names, or prefixes of names followed by `*`. All tasks by default.
    pub tasks: Option<Vec<String>>,
    /// Queues that it may sign for, in the same form. All queues by default.
    pub queues: Option<Vec<String>>,
    /// `false` if it may not command workers.
    pub control: Option<bool>,
}

impl KeyConfig {
    /// Creates the key. `fetched` is the text behind `file` or `env`, if one of them is given; the fields of this
    /// configuration (state, times, allow-lists) override that text.
    ///
    /// # Errors
    /// [`KeyError`] names the missing or wrong field.
    pub fn key(&self, fetched: Option<&str>) -> Result<Key, KeyError> {
        let sources = [self.secret.is_some(), self.public.is_some(), self.file.is_some(), self.env.is_some()];
        if sources.iter().filter(|given| **given).count() > 1 {
            return Err(KeyError::Format(format!(
                "key {}: only one of `secret`, `public`, `file` and `env` can be given",
                self.name()
            )));
        }
        let key = match fetched {
            Some(text) => self.check_same_key(Key::from_toml(text)?)?,
            None => self.inline_key()?,
        };
        self.restrict(key)
    }

    fn inline_key(&self) -> Result<Key, KeyError> {
        let missing = |what: &str| KeyError::Format(format!("key {}: `{what}` is missing", self.name()));
        let id = self.id.as_ref().ok_or_else(|| missing("id"))?.as_str();
        let algorithm = self.alg.unwrap_or_default();
        match (&self.secret, &self.public, self.state) {
            (Some(secret), _, _) => {
                let secret = self.base64("secret", secret.expose())?;
                let key = Key::with_secret(algorithm, id, &secret)?;
                if secret.windows(2).all(|pair| pair[0] == pair[1]) {
                    return Err(KeyError::Format(format!(
                        "key {id}: its secret is one byte repeated, which anybody can guess; `machinist keygen` makes a \
                         random one"
                    )));
                }
                Ok(key)
            }
            (None, Some(public), _) if self.alg.is_none_or(|alg| alg == Algorithm::Ed25519) => {
                Key::with_public(id, &self.base64("public", public)?)
            }
            (None, Some(_), _) => Err(KeyError::Format(format!(
                "key {id}: `public` is for the algorithm `ed25519`, but this key has `{algorithm}`"
            ))),
            (None, None, Some(KeyState::Revoked)) => Key::revoked(id),
            (None, None, _) => Err(missing("secret")),
        }
    }

    /// Decodes base64, with optional white space around it.
    fn base64(&self, field: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        // The library's error would repeat a character of the secret, and add nothing useful.
        let decoded = BASE64.decode(text.trim()).map_err(|_| {
            KeyError::Format(format!("key {}: `{field}` is not base64 (RFC 4648, with padding)", self.name()))
        })?;
        Ok(Zeroizing::new(decoded))
    }

    fn check_same_key(&self, key: Key) -> Result<Key, KeyError> {
        let mismatch = |field: &str, configured: &dyn fmt::Display, found: &dyn fmt::Display| {
            Err(KeyError::Format(format!(
                "key {}: its {field} is {configured} in the configuration and {found} in its text",
                self.name()
            )))
        };
        match (&self.id, self.alg) {
            (Some(id), _) if id != key.id() => mismatch("id", id, key.id()),
            (_, Some(alg)) if alg != key.algorithm() => mismatch("alg", &alg, &key.algorithm()),
            _ => Ok(key),
        }
    }

    fn restrict(&self, mut key: Key) -> Result<Key, KeyError> {
        let is_restricted = self.not_before.is_some()
            || self.not_after.is_some()
            || self.tasks.is_some()
            || self.queues.is_some()
            || self.control.is_some();
        if is_restricted && key.encrypts() {
            return Err(KeyError::Format(format!(
                "key {}: `not_before`, `not_after`, `tasks`, `queues` and `control` restrict signing, and this key \
                 encrypts: only its `state` can be set",
                self.name()
            )));
        }
        if let Some(state) = self.state {
            key = key.with_state(state);
        }
        if let Some(text) = &self.not_before {
            key = key.not_before(self.instant("not_before", text)?);
        }
        if let Some(text) = &self.not_after {
            key = key.not_after(self.instant("not_after", text)?);
        }
        if let Some(patterns) = &self.tasks {
            key = key.for_tasks(patterns.iter().cloned())?;
        }
        if let Some(patterns) = &self.queues {
            key = key.for_queues(patterns.iter().cloned())?;
        }
        if let Some(control) = self.control {
            key = key.for_control(control);
        }
        Ok(key)
    }

    fn instant(&self, field: &str, text: &str) -> Result<Timestamp, KeyError> {
        match text.parse::<jiff::Timestamp>() {
            Ok(instant) => Ok(Timestamp::from_micros(instant.as_microsecond())),
            Err(_) => Err(KeyError::Format(format!(
                "key {}: `{field}` must be an RFC 3339 time such as \"2026-11-20T00:00:00Z\"",
                self.name()
            ))),
        }
    }

    fn name(&self) -> &str {
        self.id.as_ref().map_or("(without id)", KeyId::as_str)
    }
}

impl Key {
    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`KeyError`]; its text never repeats the secret.
    pub fn from_toml(text: &str) -> Result<Self, KeyError> {
        let config: KeyConfig = toml::from_str(text).map_err(|error| {
            // Only the line: the library's message and the line itself can hold the secret, also in a wrong field.
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            KeyError::Format(format!(
                "line {line} of the key's text is wrong: a key has id, alg, secret or public, state, not_before, \
                 not_after, tasks, queues and control, with values in quotes, as `machinist keygen` writes them"
            ))
        })?;
        if config.file.is_some() || config.env.is_some() {
            return Err(KeyError::Format(
                "a key's text cannot refer to another key with `file` or `env`".to_owned(),
            ));
        }
        config.key(None)
    }

    /// Returns the text of a key file, **with the secret** if the key has one. Times and allow-lists belong to the
    /// processes that trust the key and are not part of the text.
    pub fn to_toml(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(format!("id = \"{}\"\nalg = \"{}\"\n", self.id(), self.algorithm()));
        if let Some(secret) = self.secret_base64() {
            *text += "secret = \"";
            *text += &secret;
            *text += "\"\n";
        } else if let Some(public) = self.public_base64() {
            *text += &format!("public = \"{public}\"\n");
        }
        if self.state() != KeyState::Active {
            let state = if self.state() == KeyState::Revoked { "revoked" } else { "verify" };
            *text += &format!("state = \"{state}\"\n");
        }
        text
    }

    /// Reads a key file. A file that anybody but its owner can read is refused, and so is one that belongs to neither this
    /// user nor root.
    ///
    /// # Errors
    /// [`KeyError::File`] names the file and the remedy.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let in_file = |error: KeyError| KeyError::File { path: path.to_owned(), why: error.to_string() };
        Self::from_toml(&Self::read_text(path)?).map_err(in_file)
    }

    /// Reads a key file's text, for [`KeyConfig::key`]. A file that anybody but its owner can read is refused, and so is
    /// one that belongs to neither this user nor root.
    ///
    /// # Errors
    /// [`KeyError::File`].
    pub fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
        let failed = |error: std::io::Error| KeyError::File { path: path.to_owned(), why: error.to_string() };
        read_key_file(path, MAX_FILE_BYTES).map_err(failed)
    }

    /// Writes a new key file that only its owner can read (mode 0600).
    ///
    /// # Errors
    /// [`KeyError::File`]; an existing file is never overwritten.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |error: std::io::Error| {
            let why = match error.kind() {
                std::io::ErrorKind::AlreadyExists => "it already exists and is not overwritten".to_owned(),
                _ => error.to_string(),
            };
            KeyError::File { path: path.to_owned(), why }
        };
        // Written to a temporary file and then named in one step, so that nobody ever reads half a key.
        let temporary = temporary_path(path);
        let written = write_private(&temporary, self.to_toml().as_bytes())
            .and_then(|()| std::fs::hard_link(&temporary, path));
        drop(std::fs::remove_file(&temporary));
        written.map_err(failed)
    }

    /// Reads the key file, or creates one with a new key if there is none: for programs that need a key without any
    /// setup, such as those that keep everything in one file. If several programs do so at once, one wins and the
    /// others read its key.
    ///
    /// # Errors
    /// As [`read`](Self::read) and [`write_new`](Self::write_new).
    pub fn read_or_create(path: &Path, algorithm: Algorithm, id: &str) -> Result<Self, KeyError> {
        if !path.exists() {
            let written = Self::generate(algorithm, id)?.write_new(path);
            if !path.exists() {
                written?;
            }
        }
        Self::read(path)
    }
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", uuid::Uuid::new_v4().simple()));
    path.with_file_name(name)
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Returns a path as an error shows it. A path that looks like a key is hidden: it may be one, in the wrong field.
pub fn shown_path(path: &Path) -> String {
    let text = path.display().to_string();
    if looks_like_key(&text) { "***".to_owned() } else { text }
}

/// Returns `true` for text that may hold a key: several lines, base64 of 32 bytes or more, or a long word of letters of
/// both cases and digits.
fn looks_like_key(text: &str) -> bool {
    let is_mixed = |word: &str| {
        let has = |kind: fn(&char) -> bool| word.chars().any(|c| kind(&c));
        word.len() >= 20
            && has(char::is_ascii_lowercase)
            && has(char::is_ascii_uppercase)
            && has(char::is_ascii_digit)
    };
    let is_hex = |word: &str| word.len() >= 64 && word.chars().all(|c| c.is_ascii_hexdigit());
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "+=".contains(c)));
    text.contains(char::is_control)
        || BASE64.decode(text.trim()).is_ok_and(|bytes| bytes.len() >= 32)
        || words.any(|word| is_mixed(word) || is_hex(word))
}

/// Text that is wiped from memory and never printed.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes ownership of a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Returns the secret. Do not show it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Key::from_toml(text).unwrap_err().to_string()
    }

    #[test]
    fn keys_survive_their_text() {
        for alg in [Algorithm::HmacSha256, Algorithm::Ed25519] {
            let key = Key::generate(alg, "k-1").unwrap();
            let back = Key::from_toml(&key.to_toml()).unwrap();
            assert_eq!((back.id(), back.algorithm(), back.state()), (key.id(), alg, KeyState::Active));
            assert_eq!(back.material.sign(b"x"), key.material.sign(b"x"));
        }
        let public = Key::generate(Algorithm::Ed25519, "k").unwrap().public().unwrap();
        assert!(!public.to_toml().contains("secret"));
        let back = Key::from_toml(&public.to_toml()).unwrap();
        assert_eq!((back.state(), back.public_base64()), (KeyState::Verify, public.public_base64()));
    }

    #[test]
    fn errors_name_the_problem_and_never_the_secret() {
        let secret = BASE64.encode([7; 32]);
        assert_eq!(refused("alg = \"ed25519\""), "key (without id): `id` is missing");
        assert_eq!(refused("id = \"k\""), "key k: `secret` is missing");
        for wrong in ["id = \"a b\"\nsecret = \"x\"", "secret = \"x\"\nid = \"k\"\nalg = \"md5\""] {
            assert!(
                refused(wrong).contains("of the key's text is wrong: a key has id, alg, secret"),
                "{wrong}"
            );
        }
        for text in [
            format!("id = \"k\"\nsecret = \"{secret}"),
            format!("id = \"k\"\nsecret = {secret}"),
            format!("id = \"k\"\nsecret = \"{}!\"", &secret[1..]),
            format!("id = \"k\"\nsecret = \"{secret}\"\npublic = \"x\""),
            format!("id = \"k\"\nsecret = \"{secret}\"\nnot_after = \"soon\""),
            format!("id = \"{secret}\""),
            format!("id = \"k\"\nalg = \"{secret}\""),
            format!("id = \"k\"\nstate = \"{secret}\""),
            format!("id = \"k\"\nsecret = \"x\"\nnot_before = \"{secret}\""),
            format!("id = \"k\"\n{} = \"x\"", secret.trim_end_matches('=')),
            format!("id = \"k\"\ntasks = \"{secret}\""),
            secret.clone(),
            format!("id = \"k\"\nalg = \"ed25519\"\nsecret = \"{}\"", BASE64.encode([7; 31])),
        ] {
            let error = refused(&text);
            assert!(!error.contains("BwcH"), "{error}");
        }
        assert!(refused("id = \"k\"\nsecret = \"Bwc=\"").contains("at least 32"));
    }

    #[test]
    fn a_secret_that_anybody_guesses_is_refused() {
        for byte in [0, 7] {
            let text = format!("id = \"k\"\nsecret = \"{}\"", BASE64.encode([byte; 32]));
            assert!(refused(&text).contains("one byte repeated"));
        }
    }

    #[test]
    fn a_path_that_looks_like_a_key_is_hidden() {
        let secret = Key::generate(Algorithm::HmacSha256, "k").unwrap().secret_base64().unwrap();
        for key in [secret.as_str(), &format!("id = 'k'\nsecret = '{}'", *secret), &"0f".repeat(32)] {
            let error = Key::read(Path::new(key)).unwrap_err().to_string();
            assert!(error.starts_with("key file ***: "), "{error}");
        }
        for path in ["machinist.key", "/run/secrets/app/machinist.key", "/srv/User1/Projects/2026-11/k.toml"]
        {
            assert_eq!(shown_path(Path::new(path)), path);
        }
    }

    #[test]
    fn a_configuration_restricts_the_key_that_it_refers_to() {
        let text = Key::generate(Algorithm::HmacSha256, "k").unwrap().to_toml();
        let config = "file = \"k.toml\"\nstate = \"verify\"\ntasks = [\"mail.*\"]\nnot_before = \"2026-01-01T00:00:00Z\"";
        let config: KeyConfig = toml::from_str(config).unwrap();
        let key = config.key(Some(&text)).unwrap();
        assert_eq!(key.state(), KeyState::Verify);
        assert!(key.may("add", "q").is_err() && !key.valid_at(Timestamp::from_micros(0)));
        let other = KeyConfig { id: Some(KeyId::parse("other").unwrap()), ..KeyConfig::default() };
        assert_eq!(
            other.key(Some(&text)).unwrap_err().to_string(),
            "key other: its id is other in the configuration and k in its text"
        );
        let revoked: KeyConfig = toml::from_str("id = \"old\"\nstate = \"revoked\"").unwrap();
        assert_eq!(revoked.key(None).unwrap().state(), KeyState::Revoked);
    }

    #[test]
    fn key_files_are_private_and_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machinist.key");
        let made = Key::read_or_create(&path, Algorithm::Ed25519, "own").unwrap();
        let again = Key::read_or_create(&path, Algorithm::Ed25519, "own").unwrap();
        assert_eq!(made.public_base64(), again.public_base64());
        let error = made.write_new(&path).unwrap_err().to_string();
        assert!(error.ends_with("it already exists and is not overwritten"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
            let error = Key::read(&path).unwrap_err().to_string();
            assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
        }
    }
}
