//! The views: their columns, the terms of a filter that mean something there, and what a capital letter does.

use super::{filter::FilterKey, question::TopSource};

/// A page of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TopView {
    Overview,
    Queues,
    Workers,
    Tasks,
    Failures,
}

/// Column of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) head: &'static str,
    /// Least width, in cells of the terminal.
    pub(super) width: u16,
    /// Columns of a higher rank go first where the screen is narrow. Those of rank 0 always stay.
    pub(super) rank: u8,
    /// `true` if it takes the width that is left.
    pub(super) grows: bool,
    /// `true` if larger values come first when it is sorted.
    pub(super) largest_first: bool,
}

const fn text(head: &'static str, width: u16, rank: u8) -> Column {
    Column { head, width, rank, grows: false, largest_first: false }
}

const fn growing(head: &'static str, width: u16, rank: u8) -> Column {
    Column { grows: true, ..text(head, width, rank) }
}

const fn number(head: &'static str, width: u16, rank: u8) -> Column {
    Column { largest_first: true, ..text(head, width, rank) }
}

const QUEUES: [Column; 11] = [
    growing("queue", 14, 0),
    text("state", 12, 0),
    number("ready", 7, 0),
    number("delayed", 7, 2),
    number("unacked", 7, 2),
    number("dead", 6, 0),
    number("cons", 5, 1),
    number("in/s", 7, 1),
    number("out/s", 7, 1),
    number("oldest", 8, 1),
    number("empty in", 9, 3),
];

const WORKERS: [Column; 9] = [
    growing("worker", 16, 0),
    text("state", 9, 0),
    text("health", 7, 0),
    number("runs", 7, 0),
    number("ended", 8, 1),
    number("failed", 7, 1),
    number("memory", 8, 2),
    growing("queues", 14, 1),
    text("host", 16, 3),
];

const TASKS: [Column; 7] = [
    text("id", 36, 0),
    text("state", 8, 0),
    growing("name", 12, 0),
    text("since", 9, 0),
    text("queue", 14, 2),
    text("worker", 20, 3),
    growing("error", 20, 1),
];

const FAILURES: [Column; 8] = [
    text("group", 12, 0),
    growing("task", 12, 0),
    text("kind", 9, 0),
    number("1h", 6, 0),
    number("24h", 7, 0),
    number("7d", 7, 2),
    text("last", 9, 1),
    growing("error", 14, 0),
];

impl TopView {
    pub(super) const ALL: [Self; 5] =
        [Self::Overview, Self::Queues, Self::Workers, Self::Tasks, Self::Failures];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Queues => "Queues",
            Self::Workers => "Workers",
            Self::Tasks => "Tasks",
            Self::Failures => "Failures",
        }
    }

    pub(super) const fn columns(self) -> &'static [Column] {
        match self {
            Self::Overview => &[],
            Self::Queues => &QUEUES,
            Self::Workers => &WORKERS,
            Self::Tasks => &TASKS,
            Self::Failures => &FAILURES,
        }
    }

    /// Returns the source of the list; the overview has none.
    pub(super) const fn source(self) -> Option<TopSource> {
        match self {
            Self::Overview => None,
            Self::Queues => Some(TopSource::Queues),
            Self::Workers => Some(TopSource::Workers),
            Self::Tasks => Some(TopSource::Tasks),
            Self::Failures => Some(TopSource::Failures),
        }
    }

    /// Returns all sources that the view shows.
    pub(super) const fn sources(self) -> &'static [TopSource] {
        match self {
            Self::Overview => &[TopSource::Queues, TopSource::Workers, TopSource::History],
            Self::Queues => &[TopSource::Queues],
            Self::Workers => &[TopSource::Workers],
            Self::Tasks => &[TopSource::Tasks],
            Self::Failures => &[TopSource::Failures],
        }
    }

    /// Returns the position of the column by which the list is sorted at first: tasks and failures have the newest first.
    pub(super) const fn first_sort(self) -> usize {
        match self {
            Self::Tasks => 3,
            Self::Failures => 6,
            _ => 0,
        }
    }

    /// Returns the keys of a filter that mean something here.
    pub(super) const fn filter_keys(self) -> &'static [FilterKey] {
        match self {
            Self::Overview => &[],
            Self::Queues => &[FilterKey::Queue],
            Self::Workers => &[FilterKey::Name, FilterKey::Queue, FilterKey::Worker],
            Self::Tasks => &FilterKey::ALL,
            Self::Failures => &[FilterKey::Name, FilterKey::Error],
        }
    }

    /// Returns the capital letters that act here, and what they do.
    pub(super) const fn actions(self) -> &'static [(char, &'static str)] {
        match self {
            Self::Overview => &[],
            Self::Queues => &[('P', "pause"), ('R', "resume")],
            Self::Workers => &[('P', "pause"), ('R', "resume"), ('D', "drain")],
            Self::Tasks => &[('X', "revoke"), ('R', "retry")],
            Self::Failures => &[('R', "retry all"), ('S', "silence 1h")],
        }
    }

    /// Returns the view that is so many further.
    pub(super) fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|view| *view == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}
