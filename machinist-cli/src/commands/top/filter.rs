//! Filter of `machinist top`, in the language of an address: `state=FAILURE name=mail.* error=timeout`.
//!
//! One filter holds for all views. A view says which of its terms mean nothing there, so that no list seems shorter than it
//! is. Pure.

use std::collections::BTreeMap;

use machinist::nearest;

use crate::args::task_state;

/// Subject of a term of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FilterKey {
    /// State of a task.
    State,
    /// Name of a task; a `*` at the end stands for any end.
    Name,
    /// Name of a queue; a `*` at the end stands for any end.
    Queue,
    /// Name of a worker; a `*` at the end stands for any end.
    Worker,
    /// Part of an error.
    Error,
}

impl FilterKey {
    pub(super) const ALL: [Self; 5] = [Self::State, Self::Name, Self::Queue, Self::Worker, Self::Error];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Name => "name",
            Self::Queue => "queue",
            Self::Worker => "worker",
            Self::Error => "error",
        }
    }
}

/// Properties of an entry that a filter can ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facets(Vec<(FilterKey, String)>);

impl Facets {
    /// Adds values of one key. A value that ends with `*` stands for all that begin so.
    #[must_use]
    pub(super) fn with<T: Into<String>>(
        mut self,
        key: FilterKey,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        self.0.extend(values.into_iter().map(|value| (key, value.into())));
        self
    }

    fn fit(&self, key: FilterKey, wanted: &str) -> bool {
        let fits = |value: &str| match key {
            FilterKey::Error => value.contains(wanted),
            FilterKey::State => value == wanted,
            _ => names_meet(value, wanted),
        };
        self.0.iter().any(|(own, value)| *own == key && fits(value))
    }
}

/// Returns `true` if there is a name that both stand for. A `*` at the end stands for any end.
fn names_meet(one: &str, other: &str) -> bool {
    match (one.strip_suffix('*'), other.strip_suffix('*')) {
        (None, None) => one == other,
        (Some(begin), None) => other.starts_with(begin),
        (None, Some(begin)) => one.starts_with(begin),
        (Some(one), Some(other)) => one.starts_with(other) || other.starts_with(one),
    }
}

/// Filter of the lists: entries fit if they fit each term that their view knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ListFilter {
    terms: BTreeMap<FilterKey, String>,
}

impl ListFilter {
    /// Reads a filter. Terms are separated by blanks or `&`; a value with blanks is between double quotes. The address of a
    /// list, or its query from the `?` on, is read as browsers write it.
    ///
    /// # Errors
    /// The mistake, and the remedy.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut terms = BTreeMap::new();
        let pairs = match query_of(text) {
            Some(query) => pairs_of_query(query),
            None => split(text)?.iter().map(|term| pair(term)).collect::<Result<_, _>>()?,
        };
        for (name, value) in &pairs {
            let key = FilterKey::ALL.into_iter().find(|key| key.as_str() == name);
            let key = key.ok_or_else(|| unknown_key(name))?;
            if value.is_empty() {
                return Err(format!("{name}= has no value; leave it out to see all"));
            }
            let value = match key {
                FilterKey::State => task_state(value)?.as_str().to_owned(),
                _ => value.clone(),
            };
            if terms.insert(key, value).is_some() {
                return Err(format!("{name}= is there twice; write it once"));
            }
        }
        Ok(Self { terms })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Returns the value of a term.
    pub(super) fn get(&self, key: FilterKey) -> Option<&str> {
        self.terms.get(&key).map(String::as_str)
    }

    /// Returns `true` if an entry fits each term of these keys.
    pub(super) fn fits(&self, facets: &Facets, keys: &[FilterKey]) -> bool {
        self.terms.iter().filter(|(key, _)| keys.contains(key)).all(|(key, value)| facets.fit(*key, value))
    }

    /// Returns the keys of the terms that mean nothing where only these do.
    pub(super) fn left_out(&self, keys: &[FilterKey]) -> Vec<&'static str> {
        self.terms.keys().filter(|key| !keys.contains(key)).map(|key| key.as_str()).collect()
    }
}

fn unknown_key(name: &str) -> String {
    let known = FilterKey::ALL.map(FilterKey::as_str);
    match nearest(name, known) {
        Some(meant) => format!("there is no key {name:?}; did you mean {meant}=?"),
        None => format!("there is no key {name:?}; write {}", known.join("=, ") + "="),
    }
}

/// Returns the query of an address: of a whole one, or of one that was copied from its `?` on.
fn query_of(text: &str) -> Option<&str> {
    let text = text.trim();
    let (before, query) = text.split_once('?')?;
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    (before.is_empty() || before.contains("://")).then_some(query)
}

/// Returns the names and values of a query. Fields of a form that were left empty ask for nothing.
fn pairs_of_query(query: &str) -> Vec<(String, String)> {
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.into(), value.into())).collect()
}

fn pair(term: &str) -> Result<(String, String), String> {
    let (name, value) =
        term.split_once('=').ok_or_else(|| format!("{term:?} has no key; write one like name={term}"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Splits a text into terms, without their quotes.
fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut terms, mut term, mut quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            _ if !quoted && (c.is_whitespace() || c == '&') => terms.push(std::mem::take(&mut term)),
            _ => term.push(c),
        }
    }
    if quoted {
        return Err("a quotation mark is open; write one like error=\"connection refused\"".to_owned());
    }
    terms.push(term);
    terms.retain(|term| !term.is_empty());
    Ok(terms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Facets {
        Facets::default()
            .with(FilterKey::State, ["FAILURE"])
            .with(FilterKey::Name, ["mail.send"])
            .with(FilterKey::Queue, ["mail"])
            .with(FilterKey::Error, ["connection refused", "timeout after 30 s"])
    }

    fn fits(text: &str) -> bool {
        ListFilter::parse(text).unwrap().fits(&task(), &FilterKey::ALL)
    }

    #[test]
    fn an_entry_fits_if_it_fits_each_term() {
        for text in [
            "",
            "state=failure",
            "state=FAILURE name=mail.* queue=mail error=timeout",
            "state=FAILURE&name=mail.send",
            "error=\"connection refused\"",
            "name=*",
        ] {
            assert!(fits(text), "{text}");
        }
        for text in ["state=SUCCESS", "name=mail", "name=mail.* queue=video", "worker=w1", "error=\"n r x\""]
        {
            assert!(!fits(text), "{text}");
        }
    }

    #[test]
    fn an_address_is_read_as_browsers_write_it() {
        for text in [
            "http://127.0.0.1:8080/tasks?state=FAILURE&name=mail.%2A&error=connection+refused",
            "?state=failure&name=&error=timeout%20after",
        ] {
            assert!(fits(text), "{text}");
        }
        assert!(!fits("?error=connection%20lost"));
        let literal = ListFilter::parse("queue=mail+gpu error=\"50%25\"").unwrap();
        assert_eq!(literal.get(FilterKey::Queue), Some("mail+gpu"));
        assert_eq!(literal.get(FilterKey::Error), Some("50%25"));
        assert!(ListFilter::parse("?colour=red").unwrap_err().contains("there is no key \"colour\""));
    }

    #[test]
    fn a_worker_of_a_pattern_fits_the_queues_of_the_pattern() {
        let worker = Facets::default().with(FilterKey::Queue, ["tenant-*", "default"]);
        let fits = |text: &str| ListFilter::parse(text).unwrap().fits(&worker, &FilterKey::ALL);
        assert!(
            fits("queue=tenant-1") && fits("queue=ten*") && fits("queue=tenant-a*") && fits("queue=default")
        );
        assert!(!fits("queue=mail") && !fits("queue=other*"));
    }

    #[test]
    fn a_bad_filter_says_what_is_wrong_and_what_to_write() {
        for (text, words) in [
            ("mail", "\"mail\" has no key; write one like name=mail"),
            ("stat=FAILURE", "did you mean state=?"),
            ("colour=red", "write state=, name=, queue=, worker=, error="),
            ("state=BROKEN", "write pending, received, started, retry, success or failure"),
            ("queue=", "queue= has no value"),
            ("queue=a queue=b", "queue= is there twice"),
            ("error=\"open", "a quotation mark is open"),
        ] {
            let error = ListFilter::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn terms_that_mean_nothing_in_a_view_are_named() {
        let filter = ListFilter::parse("state=FAILURE queue=mail").unwrap();
        assert_eq!(filter.left_out(&[FilterKey::Queue]), ["state"]);
        assert!(filter.fits(&Facets::default().with(FilterKey::Queue, ["mail"]), &[FilterKey::Queue]));
        assert_eq!(filter.get(FilterKey::Queue), Some("mail"));
    }
}
