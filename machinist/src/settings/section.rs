//! Tables of `machinist.toml`, with errors that name the line, the column and the expected value.

use std::{ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

use super::{
    Setting, SettingOrigin, SettingsError,
    table::{self, Definition},
    value,
};

/// Old name of the section `[sizes]`, which this version still reads.
pub(super) const OLD_SIZES: &str = "limits";

/// The text of a file, in which a position is found.
#[derive(Clone, Copy)]
pub(super) struct TomlText<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl<'a> TomlText<'a> {
    pub(super) fn folder(&self) -> &'a Path {
        self.path.parent().unwrap_or_else(|| Path::new(""))
    }

    /// Line and column, both counted from 1, the column in characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    pub(super) fn origin(&self, span: Range<usize>) -> SettingOrigin {
        SettingOrigin::File { path: self.path.to_owned(), line: self.position(span.start).0 }
    }

    pub(super) fn error(&self, span: Range<usize>, problem: impl Into<String>) -> SettingsError {
        let (line, column) = self.position(span.start);
        SettingsError::new(format_args!("{}:{line}:{column}", self.path.display()), problem)
    }
}

/// A table of the file, all keys of which are known.
pub(super) struct Section<'a> {
    pub(super) source: TomlText<'a>,
    /// `worker`, `tasks.resize`; empty for the top.
    name: String,
    span: Range<usize>,
    pub(super) table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// The whole document. It may have the old section, which no error proposes.
    pub(super) fn top(source: TomlText<'a>, table: &'a DeTable<'a>) -> Result<Self, SettingsError> {
        let top = Self { source, name: String::new(), span: 0..0, table };
        top.check_keys(&table::top_keys(), Some(OLD_SIZES))?;
        Ok(top)
    }

    /// Refuses keys that are neither known nor the old one.
    fn check_keys(&self, known: &[&str], old: Option<&str>) -> Result<(), SettingsError> {
        for (spanned, _) in self.table.iter() {
            let key: &str = spanned.get_ref();
            if !known.contains(&key) && old != Some(key) {
                let place = if self.name.is_empty() { String::new() } else { format!(" in [{}]", self.name) };
                let problem = format!("unknown key \"{key}\"{place}; {}", proposal(key, known));
                return Err(self.source.error(spanned.span(), problem));
            }
        }
        Ok(())
    }

    /// Reads a value of the table of settings.
    pub(super) fn setting<T>(&self, definition: &Definition<T>) -> Result<Option<Setting<T>>, SettingsError> {
        self.get(definition.key(), |value| (definition.read)(value, self.source.folder()))
    }

    /// Reads a value, without its place.
    pub(super) fn value<T>(
        &self,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        Ok(self.get(key, read)?.map(|setting| setting.value))
    }

    pub(super) fn get<T>(
        &self,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<Option<Setting<T>>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let origin = self.source.origin(value.span());
        match read(value.get_ref()) {
            Ok(value) => Ok(Some(Setting::new(value, origin))),
            Err(problem) => Err(self.source.error(value.span(), format!("{}: {problem}", self.path(key)))),
        }
    }

    /// Returns a table below this one.
    pub(super) fn section(&self, key: &str, known: &[&str]) -> Result<Option<Self>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        self.below(key, value, known, "a table").map(Some)
    }

    /// Returns the tables of a list of them, `[[key]]`.
    pub(super) fn list(&self, key: &str, known: &[&str]) -> Result<Vec<Self>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let expected = format!("tables, each under a line [[{}]]", self.path(key));
        let list = value.get_ref().as_array().ok_or_else(|| self.wrong_type(key, value, &expected))?;
        list.iter().map(|item| self.below(key, item, known, &expected)).collect()
    }

    /// Returns the tables below a table of this one, by name.
    pub(super) fn sections(&self, key: &str, known: &[&str]) -> Result<Vec<(String, Self)>, SettingsError> {
        let names: Vec<&str> = match self.table.get(key).and_then(|v| v.get_ref().as_table()) {
            Some(table) => table.keys().map(|k| k.get_ref().as_ref()).collect(),
            None => Vec::new(),
        };
        let Some(all) = self.section(key, &names)? else { return Ok(Vec::new()) };
        let each = |name: &&str| Ok(all.section(name, known)?.map(|section| ((*name).to_owned(), section)));
        names.iter().filter_map(|name| each(name).transpose()).collect()
    }

    fn below(
        &self,
        key: &str,
        value: &'a toml::Spanned<DeValue<'a>>,
        known: &[&str],
        expected: &str,
    ) -> Result<Self, SettingsError> {
        let table = value.get_ref().as_table().ok_or_else(|| self.wrong_type(key, value, expected))?;
        let section = Self { source: self.source, name: self.path(key), span: value.span(), table };
        section.check_keys(known, None)?;
        Ok(section)
    }

    fn wrong_type(&self, key: &str, value: &toml::Spanned<DeValue<'_>>, expected: &str) -> SettingsError {
        let problem = format!("{}: {}", self.path(key), value::wrong_type(value.get_ref(), expected));
        self.source.error(value.span(), problem)
    }

    pub(super) fn origin(&self) -> SettingOrigin {
        self.source.origin(self.span.clone())
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(super) fn error(&self, problem: &str) -> SettingsError {
        self.source.error(self.span.clone(), format!("[{}] {problem}", self.name))
    }
}

/// Proposes the key that was probably meant, or lists all keys.
fn proposal(key: &str, known: &[&str]) -> String {
    match machinist_core::nearest(key, known.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("the keys here are {}", known.join(", ")),
    }
}
