//! Answers of the sources as text: lists of entries, sums and notes. Drawing and deciding need no other form.

use std::cmp::Ordering;

use super::filter::Facets;

/// Look of an entry, in addition to its words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Plain,
    Good,
    Warning,
    Bad,
}

/// Text in a column, with the number by which it is sorted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ListCell {
    pub(super) text: String,
    /// `None` sorts by text.
    pub(super) number: Option<f64>,
}

impl ListCell {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: None }
    }

    pub(super) fn number(text: impl Into<String>, number: f64) -> Self {
        Self { text: text.into(), number: Some(number) }
    }

    /// Returns the cell of a value that is not known.
    pub(super) fn unknown() -> Self {
        Self::number("-", f64::NEG_INFINITY)
    }

    pub(super) fn compare(&self, other: &Self) -> Ordering {
        match (self.number, other.number) {
            (Some(one), Some(two)) => one.total_cmp(&two),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => self.text.cmp(&other.text),
        }
    }
}

/// One line of a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ListEntry {
    /// Id or name: the selection and all actions hold to it, never to a position.
    pub(super) id: String,
    /// Words of a question, in addition to the id.
    pub(super) about: String,
    /// Session of a worker: another process of the same name is another one.
    pub(super) session: String,
    /// One for each column of the view.
    pub(super) cells: Vec<ListCell>,
    pub(super) facets: Facets,
    pub(super) details: Vec<(&'static str, String)>,
    pub(super) mood: Mood,
}

/// Numbers of the last minutes, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trend {
    pub(super) label: &'static str,
    pub(super) values: Vec<u64>,
}

/// Answer of a source.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Listing {
    pub(super) entries: Vec<ListEntry>,
    /// Labels and values for the overview.
    pub(super) sums: Vec<(&'static str, String)>,
    /// Sentences about what is wrong.
    pub(super) wrong: Vec<String>,
    /// Sentences about what the list leaves out.
    pub(super) notes: Vec<String>,
    pub(super) trends: Vec<Trend>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value_and_unknown_ones_are_the_smallest() {
        let mut cells = [ListCell::number("10", 10.0), ListCell::unknown(), ListCell::number("9", 9.0)];
        cells.sort_by(ListCell::compare);
        assert_eq!(cells.map(|cell| cell.text), ["-", "9", "10"]);
        assert_eq!(ListCell::text("a").compare(&ListCell::text("b")), Ordering::Less);
    }
}
