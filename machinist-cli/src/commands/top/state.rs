//! The state of the screen, and its changes by events: a pure machine. It reads no clock, no server and no terminal.

use std::collections::BTreeMap;

use crossterm::event::{KeyEvent, KeyEventKind};
use machinist::{QueueName, TaskId, clock::Timestamp};

use super::{
    action::TopAction,
    filter::ListFilter,
    listing::{ListEntry, Listing},
    question::{KnownSource, TopQuestion, TopSource},
    views::TopView,
};

/// Something that happened.
#[derive(Debug, Clone)]
pub(super) enum TopEvent {
    Key(KeyEvent),
    /// Text that was pasted: it never presses a key.
    Pasted(String),
    /// Answer of a source.
    Answered(TopQuestion, Result<Listing, String>),
    /// Part of an action that is done.
    Progress(String),
    /// End of an action.
    Acted(Result<String, String>),
    /// Only the time has changed, or the size of the screen.
    Tick,
    /// Signal that ends the program.
    Stop,
}

/// Consequence of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TopStep {
    Draw,
    Act(TopAction),
    End,
}

/// Meaning of the keys.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum TopMode {
    List,
    /// A filter is being typed; the text, and what is wrong with it.
    Filter(String, Option<String>),
    /// An action waits for its answer.
    Ask(TopAction),
    /// One entry as it was seen last, from this line on.
    Details(Box<ListEntry>, u16),
    Help,
}

/// ListPlace of the person in a list.
#[derive(Debug, Clone, Default)]
pub(super) struct ListPlace {
    /// Id of the selected entry: it stays selected when others come and go.
    pub(super) selected: Option<String>,
    /// Position at which it was seen last, for when it is gone.
    pub(super) position: usize,
    /// Column by which the list is sorted.
    pub(super) sort: usize,
    pub(super) reversed: bool,
}

impl ListPlace {
    fn first(view: TopView) -> Self {
        Self { sort: view.first_sort(), ..Self::default() }
    }
}

/// Line at the bottom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopMessage {
    pub(super) text: String,
    pub(super) is_error: bool,
}

/// All that the screen shows.
#[derive(Debug, Clone)]
pub(super) struct TopState {
    /// Namespace and servers.
    pub(super) title: String,
    /// Reason that nothing is done here; `None` if actions can be signed.
    pub(super) refusal: Option<String>,
    pub(super) now: Timestamp,
    pub(super) view: TopView,
    pub(super) mode: TopMode,
    pub(super) filter: ListFilter,
    /// Filter as it was typed.
    pub(super) filter_text: String,
    pub(super) known: BTreeMap<TopSource, KnownSource>,
    pub(super) message: Option<TopMessage>,
    /// Action that is under way.
    pub(super) acting: Option<TopAction>,
    /// The program ends after that action.
    pub(super) ends: bool,
    places: BTreeMap<TopView, ListPlace>,
}

impl TopState {
    pub(super) fn new(title: String, refusal: Option<String>, now: Timestamp) -> Self {
        Self {
            title,
            refusal,
            now,
            view: TopView::Overview,
            mode: TopMode::List,
            filter: ListFilter::default(),
            filter_text: String::new(),
            known: BTreeMap::new(),
            message: None,
            acting: None,
            ends: false,
            places: BTreeMap::new(),
        }
    }

    /// Returns where the person is in the list of this view.
    pub(super) fn place(&self) -> ListPlace {
        self.places.get(&self.view).cloned().unwrap_or_else(|| ListPlace::first(self.view))
    }

    /// Returns the place in the list of this view, to change it.
    pub(super) fn place_mut(&mut self) -> &mut ListPlace {
        self.places.entry(self.view).or_insert_with(|| ListPlace::first(self.view))
    }

    /// Returns what is known from the source of this view.
    pub(super) fn listing(&self) -> Option<&Listing> {
        self.known.get(&self.view.source()?)?.listing()
    }

    /// Returns the entries of this view that fit the filter, in the order of the list.
    pub(super) fn shown(&self) -> Vec<&ListEntry> {
        let keys = self.view.filter_keys();
        let entries = self.listing().into_iter().flat_map(|listing| &listing.entries);
        let mut shown: Vec<_> = entries.filter(|entry| self.filter.fits(&entry.facets, keys)).collect();
        let ListPlace { sort, reversed, .. } = self.place();
        let largest_first = self.view.columns().get(sort).is_some_and(|column| column.largest_first);
        shown.sort_by(|a, b| {
            let order = match (a.cells.get(sort), b.cells.get(sort)) {
                (Some(a), Some(b)) => a.compare(b),
                _ => std::cmp::Ordering::Equal,
            };
            let order = if largest_first != reversed { order.reverse() } else { order };
            order.then_with(|| a.id.cmp(&b.id))
        });
        shown
    }

    /// Returns the position of the selected entry. If it is gone, the one at its place is selected.
    pub(super) fn selected(&self, shown: &[&ListEntry]) -> Option<usize> {
        let place = self.place();
        let same = |entry: &&ListEntry| Some(&entry.id) == place.selected.as_ref();
        let found = shown.iter().position(same);
        found.or_else(|| Some(place.position.min(shown.len().checked_sub(1)?)))
    }

    /// Returns the selected entry.
    pub(super) fn entry(&self) -> Option<ListEntry> {
        let shown = self.shown();
        self.selected(&shown).map(|at| shown[at].clone())
    }

    /// Keeps the shown entry as it is now, while it is in the list.
    fn keep_details(&mut self) {
        let TopMode::Details(entry, _) = &self.mode else { return };
        let id = &entry.id;
        let newer = self.listing().and_then(|listing| listing.entries.iter().find(|entry| entry.id == *id));
        if let (Some(newer), TopMode::Details(entry, _)) = (newer.cloned(), &mut self.mode) {
            **entry = newer;
        }
    }

    /// Returns `true` if an entry is in the list.
    pub(super) fn is_listed(&self, id: &str) -> bool {
        self.listing().is_some_and(|listing| listing.entries.iter().any(|entry| entry.id == id))
    }

    /// Returns the questions to ask now, and remembers that they are asked.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<TopQuestion> {
        let mut wanted: Vec<_> =
            self.view.sources().iter().filter_map(|source| self.question_to(*source)).collect();
        wanted.extend(self.reason_question());
        wanted.retain(|question| self.known.entry(question.source()).or_default().ask(question, now));
        wanted
    }

    fn question_to(&self, source: TopSource) -> Option<TopQuestion> {
        Some(match source {
            TopSource::Queues => TopQuestion::Queues,
            TopSource::Workers => TopQuestion::Workers,
            TopSource::Tasks => TopQuestion::Tasks(self.filter.clone()),
            TopSource::Failures => TopQuestion::Failures,
            TopSource::History => TopQuestion::History,
            TopSource::Reason => return None,
        })
    }

    /// Returns the question why the shown task or queue stands still.
    pub(super) fn reason_question(&self) -> Option<TopQuestion> {
        let TopMode::Details(entry, _) = &self.mode else { return None };
        match self.view {
            TopView::Tasks => TaskId::parse(&entry.id).ok().map(TopQuestion::Reason),
            TopView::Queues => QueueName::parse(&entry.id).ok().map(TopQuestion::QueueReason),
            _ => None,
        }
    }

    /// Changes the state by an event, and returns what follows.
    pub(super) fn update(&mut self, event: TopEvent, now: Timestamp) -> TopStep {
        self.now = now;
        match event {
            TopEvent::Key(key) if key.kind != KeyEventKind::Release => return self.press(key),
            TopEvent::Key(_) | TopEvent::Tick => {}
            TopEvent::Pasted(text) => self.paste(&text),
            TopEvent::Answered(question, answer) => {
                self.known.entry(question.source()).or_default().take(question, answer, now);
                self.keep_details();
            }
            TopEvent::Progress(text) => self.message = Some(TopMessage { text, is_error: false }),
            TopEvent::Acted(result) => return self.acted(result),
            TopEvent::Stop => return TopStep::End,
        }
        TopStep::Draw
    }

    fn acted(&mut self, result: Result<String, String>) -> TopStep {
        self.acting = None;
        // What has changed is shown at once.
        self.known.values_mut().for_each(KnownSource::wake);
        let is_error = result.is_err();
        let text = result.unwrap_or_else(|error| error);
        self.message = Some(TopMessage { text, is_error });
        if self.ends { TopStep::End } else { TopStep::Draw }
    }
}
