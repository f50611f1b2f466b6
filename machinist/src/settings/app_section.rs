//! `[app]`: the part of machinist.toml that belongs to the application, read as any serde type.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{Settings, SettingsError, section::TomlText, table::APP};

/// Text of the file that holds the section.
#[derive(Clone)]
pub(super) struct AppSection {
    path: PathBuf,
    text: Zeroizing<String>,
}

impl AppSection {
    pub(super) fn new(path: &Path, text: &str) -> Self {
        Self { path: path.to_owned(), text: Zeroizing::new(text.to_owned()) }
    }
}

impl fmt::Debug for AppSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppSection")
    }
}

impl Settings {
    /// Reads the section `[app]` of machinist.toml, which belongs to the application: its own keys and sections below it,
    /// such as `[app.payment]`. Without the section, an empty one is read. No flag and no variable changes it.
    ///
    /// # Errors
    /// [`SettingsError`] with the line and the column of what does not fit. It repeats no value.
    ///
    /// # Examples
    /// ```
    /// use machinist::settings::{Overrides, Settings};
    /// use std::path::Path;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct AppSettings {
    ///     sender: String,
    ///     #[serde(default)]
    ///     dry_run: bool,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let file = "[app]\nsender = 'no-reply@example.org'";
    /// let settings = Settings::resolve(Overrides::default(), &|_| None, Some((Path::new("machinist.toml"), file)))?;
    /// let app: AppSettings = settings.app_section()?;
    /// assert_eq!(app.sender, "no-reply@example.org");
    /// # Ok(())
    /// # }
    /// ```
    pub fn app_section<T: DeserializeOwned>(&self) -> Result<T, SettingsError> {
        /// A file of which only the section is read.
        #[derive(Deserialize)]
        #[serde(bound = "T: DeserializeOwned")]
        struct File<T> {
            app: T,
        }
        let without = |problem: String| SettingsError::new(super::FILE, format!("[{APP}]: {problem}"));
        let Some(AppSection { path, text }) = &self.app else {
            return toml::from_str(&format!("[{APP}]"))
                .map(|File { app }| app)
                .map_err(|error| without(expectation(error.message())));
        };
        toml::from_str(text).map(|File { app }| app).map_err(|error| {
            let problem = format!("[{APP}]: {}", expectation(error.message()));
            match error.span() {
                Some(span) => TomlText { path, text }.error(span, problem),
                None => SettingsError::new(path.display(), problem),
            }
        })
    }
}

/// Returns a message of serde without the value that was found: it may be a secret.
fn expectation(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    match first.split_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => format!("expected {expected}"),
        _ => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Overrides;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Own {
        #[serde(default)]
        dry_run: bool,
        payment: Option<Payment>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Payment {
        limit: u32,
    }

    fn settings(file: &str) -> Result<Settings, SettingsError> {
        Settings::resolve(Overrides::default(), &|_| None, Some((Path::new("machinist.toml"), file)))
    }

    fn own(file: &str) -> Result<Own, String> {
        settings(file).unwrap().app_section().map_err(|error| error.to_string())
    }

    #[test]
    fn an_application_has_a_section_and_sections_below_it() {
        let read = own("namespace = \"shop\"\n[app]\ndry_run = true\n[app.payment]\nlimit = 7\n").unwrap();
        assert_eq!(read, Own { dry_run: true, payment: Some(Payment { limit: 7 }) });
        assert_eq!(own("namespace = \"shop\"").unwrap(), Own { dry_run: false, payment: None });
        let other = settings("[application]\nx = 1").unwrap_err().to_string();
        assert!(
            other.contains("unknown key \"application\"; the keys here are") && other.contains(", app"),
            "{other}"
        );
    }

    #[test]
    fn what_does_not_fit_is_reported_with_its_line_and_without_its_value() {
        let error = own("namespace = \"shop\"\n[app.payment]\nlimit = \"geheim\"").unwrap_err();
        assert_eq!(error, "machinist.toml:3:9: [app]: expected u32");
        assert!(own("[app]\nother = 1").unwrap_err().contains("2:1: [app]: unknown field `other`"));
        let missing = settings("").unwrap().app_section::<Payment>().unwrap_err();
        assert!(missing.to_string().contains("[app]: missing field `limit`"), "{missing}");
        assert!(settings("app = 1").unwrap_err().to_string().contains("app: expected a table"));
    }

    #[test]
    fn settings_print_no_value_of_the_application() {
        assert!(!format!("{:?}", settings("[app]\nkey = \"geheim\"").unwrap()).contains("geheim"));
    }
}
