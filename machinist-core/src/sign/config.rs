//! Keys as text: a key file, or `[[keys]]` in a configuration.
//!
//! ```toml
//! id = "2026-11"
//! alg = "hmac-sha256"
//! secret = "base64 of at least 32 bytes"
//! ```

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{Algorithm, Key, KeyError, KeyId, KeyState};
use crate::clock::Timestamp;

/// The largest file that is read as a key.
const FILE_LIMIT: u64 = 64 * 1024;

/// A key as it is written down: all of a key file, or one of the `[[keys]]` of a configuration.
///
/// A configuration may say where the key lies instead of holding it: `file` or `env`. Whoever reads configurations
/// fetches that text (files by [`Key::read_text`], which checks who else can read them) and passes it to
/// [`key`](Self::key).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KeyConfig {
    /// Its name.
    pub id: Option<KeyId>,
    /// What it does, and how.
    pub alg: Option<Algorithm>,
    /// The secret, as base64.
    pub secret: Option<SecretText>,
    /// The public half of an Ed25519 key, as base64, where the secret is not to be here.
    pub public: Option<String>,
    /// A key file that holds the key.
    pub file: Option<PathBuf>,
    /// An environment variable that holds the text of a key file.
    pub env: Option<String>,
    /// RFC 3339: not believed about what it signed before.
    pub not_before: Option<String>,
    /// RFC 3339: not believed about what it signed after.
    pub not_after: Option<String>,
    /// `active` (unless said otherwise), `verify` or `revoked`.
    pub state: Option<KeyState>,
    /// The tasks it may sign: names, or beginnings of names followed by `*`. All of them unless given.
    pub tasks: Option<Vec<String>>,
    /// The queues it may sign for, likewise.
    pub queues: Option<Vec<String>>,
}

impl KeyConfig {
    /// The key. `fetched` is the text behind `file` or `env`, where one of them is given; what is said here beside
    /// it (state, times, allow-lists) holds over what it says.
    ///
    /// # Errors
    /// [`KeyError`] names what is missing or wrong.
    pub fn key(&self, fetched: Option<&str>) -> Result<Key, KeyError> {
        let sources = [self.secret.is_some(), self.public.is_some(), self.file.is_some(), self.env.is_some()];
        if sources.iter().filter(|given| **given).count() > 1 {
            return Err(KeyError::Format(format!(
                "key {}: only one of `secret`, `public`, `file` and `env` can be given",
                self.name()
            )));
        }
        let key = match fetched {
            Some(text) => self.agrees(Key::from_toml(text)?)?,
            None => self.of_its_own()?,
        };
        self.limit(key)
    }

    fn of_its_own(&self) -> Result<Key, KeyError> {
        let missing = |what: &str| KeyError::Format(format!("key {}: `{what}` is missing", self.name()));
        let id = self.id.as_ref().ok_or_else(|| missing("id"))?.as_str();
        let algorithm = self.alg.unwrap_or_default();
        match (&self.secret, &self.public, self.state) {
            (Some(secret), _, _) => Key::with_secret(algorithm, id, &self.base64("secret", secret.text())?),
            (None, Some(public), _) if self.alg.is_none_or(|alg| alg == Algorithm::Ed25519) => {
                Key::with_public(id, &self.base64("public", public)?)
            }
            (None, Some(_), _) => Err(KeyError::Format(format!(
                "key {id}: `public` is for the algorithm `ed25519`, and this is `{algorithm}`"
            ))),
            (None, None, Some(KeyState::Revoked)) => Key::revoked(id),
            (None, None, _) => Err(missing("secret")),
        }
    }

    /// Base64, perhaps with white space around it.
    fn base64(&self, field: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        // The library's error would repeat a character of the secret, and say nothing more useful.
        let decoded = BASE64.decode(text.trim()).map_err(|_| {
            KeyError::Format(format!("key {}: `{field}` is not base64 (RFC 4648, with padding)", self.name()))
        })?;
        Ok(Zeroizing::new(decoded))
    }

    fn agrees(&self, key: Key) -> Result<Key, KeyError> {
        let other = |what: &str, here: &dyn fmt::Display, there: &dyn fmt::Display| {
            Err(KeyError::Format(format!("key {}: its {what} is {here} here and {there} there", self.name())))
        };
        match (&self.id, self.alg) {
            (Some(id), _) if id != key.id() => other("id", id, key.id()),
            (_, Some(alg)) if alg != key.algorithm() => other("alg", &alg, &key.algorithm()),
            _ => Ok(key),
        }
    }

    fn limit(&self, mut key: Key) -> Result<Key, KeyError> {
        let limited = self.not_before.is_some()
            || self.not_after.is_some()
            || self.tasks.is_some()
            || self.queues.is_some();
        if limited && key.encrypts() {
            return Err(KeyError::Format(format!(
                "key {}: `not_before`, `not_after`, `tasks` and `queues` limit who signs, and this key encrypts: only \
                 its `state` can be set",
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
        Ok(key)
    }

    fn instant(&self, field: &str, text: &str) -> Result<Timestamp, KeyError> {
        match text.parse::<jiff::Timestamp>() {
            Ok(instant) => Ok(Timestamp::from_micros(instant.as_microsecond())),
            Err(_) => Err(KeyError::Format(format!(
                "key {}: `{field}` is {text:?}; it must be an RFC 3339 time such as \"2026-11-20T00:00:00Z\"",
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
    /// [`KeyError`]; no text of it repeats the secret.
    pub fn from_toml(text: &str) -> Result<Self, KeyError> {
        let config: KeyConfig = toml::from_str(text).map_err(|error| {
            // Only the message: the whole error would show the line, and the line may be the secret.
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            KeyError::Format(format!("line {line} of the key's text: {}", error.message()))
        })?;
        if config.file.is_some() || config.env.is_some() {
            return Err(KeyError::Format(
                "a key's text cannot point to another by `file` or `env`".to_owned(),
            ));
        }
        config.key(None)
    }

    /// The text of a key file: **with the secret**, where the key has one. Times and allow-lists belong to those
    /// who trust the key and are not part of it.
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

    /// Reads a key file. One that others than its owner can read is refused.
    ///
    /// # Errors
    /// [`KeyError::File`] names the file and the remedy.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let in_file = |error: KeyError| KeyError::File { path: path.to_owned(), why: error.to_string() };
        Self::from_toml(&Self::read_text(path)?).map_err(in_file)
    }

    /// Reads a key file's text, for [`KeyConfig::key`]. One that others than its owner can read is refused.
    ///
    /// # Errors
    /// [`KeyError::File`].
    pub fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
        let failed = |why: String| KeyError::File { path: path.to_owned(), why };
        let io = |error: std::io::Error| failed(error.to_string());
        let file = File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(failed("it is not a file".to_owned()));
        }
        private(&about).map_err(failed)?;
        // One read into room that suffices: a text that grew would leave copies of the secret behind.
        let room = usize::try_from(about.len().min(FILE_LIMIT)).unwrap_or_default();
        let mut text = Zeroizing::new(String::with_capacity(room + 1));
        match file.take(FILE_LIMIT + 1).read_to_string(&mut text) {
            Ok(read) if read as u64 > FILE_LIMIT => {
                Err(failed(format!("it is larger than {FILE_LIMIT} bytes")))
            }
            Ok(_) => Ok(text),
            Err(error) => Err(io(error)),
        }
    }

    /// Writes a new key file that only its owner can read (mode 0600).
    ///
    /// # Errors
    /// [`KeyError::File`]; a file that is there already is never overwritten.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |error: std::io::Error| {
            let why = match error.kind() {
                std::io::ErrorKind::AlreadyExists => "it exists already and is not overwritten".to_owned(),
                _ => error.to_string(),
            };
            KeyError::File { path: path.to_owned(), why }
        };
        // Written beside it and then given its name in one step, so that nobody ever reads half a key.
        let beside = beside(path);
        let written = write_private(&beside, self.to_toml().as_bytes())
            .and_then(|()| std::fs::hard_link(&beside, path));
        drop(std::fs::remove_file(&beside));
        written.map_err(failed)
    }

    /// Reads the key file, or makes one with a fresh key where there is none: for programs that need a key and
    /// no ceremony, such as those that keep everything in one file. Of several that do so at once one wins, and
    /// the others read its key.
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

fn beside(path: &Path) -> PathBuf {
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

#[cfg(unix)]
fn private(about: &std::fs::Metadata) -> Result<(), String> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(format!("others than its owner can read or change it (mode {mode:04o}): `chmod 600` it"))
}

#[cfg(not(unix))]
fn private(_about: &std::fs::Metadata) -> Result<(), String> {
    Ok(())
}

/// Text that is wiped from memory and not printed.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes over a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn text(&self) -> &str {
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
    fn what_is_written_reads_back() {
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
    fn errors_name_what_is_wrong_and_never_the_secret() {
        let secret = BASE64.encode([7; 32]);
        assert_eq!(refused("alg = \"ed25519\""), "key (without id): `id` is missing");
        assert_eq!(refused("id = \"k\""), "key k: `secret` is missing");
        assert!(refused("id = \"a b\"\nsecret = \"x\"").contains("key id \"a b\" is not allowed"));
        assert!(refused("id = \"k\"\nalg = \"md5\"").contains("md5"));
        for text in [
            format!("id = \"k\"\nsecret = \"{secret}"),
            format!("id = \"k\"\nsecret = {secret}"),
            format!("id = \"k\"\nsecret = \"{}!\"", &secret[1..]),
            format!("id = \"k\"\nsecret = \"{secret}\"\npublic = \"x\""),
            format!("id = \"k\"\nsecret = \"{secret}\"\nnot_after = \"soon\""),
            format!("id = \"k\"\nalg = \"ed25519\"\nsecret = \"{}\"", BASE64.encode([7; 31])),
        ] {
            let error = refused(&text);
            assert!(!error.contains("BwcH"), "{error}");
        }
        assert!(refused("id = \"k\"\nsecret = \"Bwc=\"").contains("at least 32"));
    }

    #[test]
    fn a_configuration_limits_the_key_that_it_points_to() {
        let text = Key::generate(Algorithm::HmacSha256, "k").unwrap().to_toml();
        let config = "file = \"k.toml\"\nstate = \"verify\"\ntasks = [\"mail.*\"]\nnot_before = \"2026-01-01T00:00:00Z\"";
        let config: KeyConfig = toml::from_str(config).unwrap();
        let key = config.key(Some(&text)).unwrap();
        assert_eq!(key.state(), KeyState::Verify);
        assert!(key.may("add", "q").is_err() && !key.valid_at(Timestamp::from_micros(0)));
        let other = KeyConfig { id: Some(KeyId::parse("other").unwrap()), ..KeyConfig::default() };
        assert_eq!(
            other.key(Some(&text)).unwrap_err().to_string(),
            "key other: its id is other here and k there"
        );
        let gone: KeyConfig = toml::from_str("id = \"old\"\nstate = \"revoked\"").unwrap();
        assert_eq!(gone.key(None).unwrap().state(), KeyState::Revoked);
    }

    #[test]
    fn key_files_are_private_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machinist.key");
        let made = Key::read_or_create(&path, Algorithm::Ed25519, "own").unwrap();
        let again = Key::read_or_create(&path, Algorithm::Ed25519, "own").unwrap();
        assert_eq!(made.public_base64(), again.public_base64());
        let error = made.write_new(&path).unwrap_err().to_string();
        assert!(error.ends_with("it exists already and is not overwritten"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
            let error = Key::read(&path).unwrap_err().to_string();
            assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
        }
    }
}
