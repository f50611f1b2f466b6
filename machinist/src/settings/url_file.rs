//! Files that hold the URL of a server. Every user of a host can read a password among the flags of a process.

use std::{io, path::Path};

use machinist_core::sign::read_secret_file;

/// Maximum size of a file, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Reads a file that holds a URL, or several in lines. They are returned with commas between them. A file that other users can
/// change is refused.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let text = read_secret_file(path, MAX_FILE_BYTES)?;
    let urls: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok(urls.join(","))
}

#[cfg(test)]
mod tests {
    use std::{error::Error, ffi::OsString, path::PathBuf};

    use super::*;
    use crate::settings::{Overrides, Settings, SettingsError};

    fn resolve(flags: Overrides, env: &[(&str, &Path)], file: &str) -> Result<Settings, SettingsError> {
        let env = |name: &str| {
            let found = env.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Settings::resolve(flags, &env, Some((Path::new("conf/machinist.toml"), file)))
    }

    fn folder() -> (tempfile::TempDir, impl Fn(&str, &str) -> PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let write = move |name: &str, text: &str| {
            let path = path.join(name);
            std::fs::write(&path, text).unwrap();
            set_mode(&path, 0o600);
            path
        };
        (dir, write)
    }

    fn set_mode(path: &Path, mode: u32) {
        #[cfg(unix)]
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        #[cfg(not(unix))]
        let _ = (path, mode);
    }

    #[test]
    fn a_file_holds_the_url_of_a_server_in_every_layer() {
        let (_dir, write) = folder();
        let nodes = write("nodes", "amqp://u:geheim@a/v\n\n  amqp://u:geheim@b/v \n");
        let cache = write("cache", "redis://:geheim@cache/0\n");
        let flags = || Overrides { broker_file: Some(nodes.clone()), ..Overrides::default() };
        let file = format!("backend_file = {:?}\nbroker = \"amqp://other\"", cache.display().to_string());
        let settings = resolve(flags(), &[("MACHINIST_BROKER", Path::new("amqp://third"))], &file).unwrap();
        let shown = |setting: &crate::settings::Setting<crate::url::ServerUrl>| {
            format!("{} ({})", setting.value, setting.origin)
        };
        assert_eq!(shown(&settings.broker), "amqp://u:***@a/v,amqp://u:***@b/v (flag --broker-file)");
        assert_eq!(shown(&settings.backend), "redis://:***@cache/0 (conf/machinist.toml:1)");
        assert_eq!(settings.backend.value.expose(), "redis://:geheim@cache/0");
        let settings = resolve(Overrides::default(), &[("MACHINIST_BACKEND_FILE", &cache)], "").unwrap();
        assert_eq!(shown(&settings.backend), "redis://:***@cache/0 (MACHINIST_BACKEND_FILE)");
        // The URL itself, in an earlier layer.
        let url = Overrides { backend: Some("redis://h".to_owned()), ..Overrides::default() };
        let settings = resolve(url, &[("MACHINIST_BACKEND_FILE", &cache)], "").unwrap();
        assert_eq!(shown(&settings.backend), "redis://h (flag --backend)");
    }

    #[test]
    fn what_does_not_fit_names_the_place_and_no_password() {
        let (dir, write) = folder();
        let error = |path: &Path, broker: Option<&str>| {
            let (broker_file, broker) = (Some(path.to_owned()), broker.map(str::to_owned));
            let error =
                resolve(Overrides { broker_file, broker, ..Overrides::default() }, &[], "").unwrap_err();
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            format!("{error}{source}")
        };
        let url = write("url", "amqp://u:geheim@h");
        assert_eq!(
            error(&url, Some("amqp://h")),
            "flag --broker-file: flag --broker sets the broker too; leave one of them out"
        );
        assert!(error(dir.path(), None).ends_with("it is not a file"));
        assert!(error(&dir.path().join("none"), None).contains("flag --broker-file: cannot read"));
        assert!(error(&write("large", &"x".repeat(100_000)), None).contains("larger than 65536 bytes"));
        #[cfg(unix)]
        {
            let open = write("open", "amqp://u:geheim@h");
            set_mode(&open, 0o622);
            let error = error(&open, None);
            assert!(error.contains("mode 0622") && error.contains("chmod 600"), "{error}");
        }
        for text in ["geheim", "kafka://u:geheim@h", ""] {
            let error = error(&write("wrong", text), None);
            assert!(error.contains("--broker-file") && error.contains("amqp://"), "{error}");
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
