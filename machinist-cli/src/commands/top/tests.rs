//! A person in front of a screen, for the tests of the state and of the pictures.

mod panic;
mod pictures;
mod presses;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use machinist::clock::Timestamp;
use ratatui::{Terminal, backend::TestBackend};

use super::{
    draw::draw,
    filter::{Facets, FilterKey},
    listing::{ListCell, ListEntry, Listing, Mood},
    paint::Paint,
    question::TopQuestion,
    state::{TopEvent, TopState, TopStep},
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_800_000_000_000_000 + seconds * 1_000_000)
}

/// A screen, and the person in front of it.
struct Person {
    state: TopState,
    seconds: i64,
}

impl Person {
    fn new() -> Self {
        Self { state: TopState::new("shop  sqlite://machinist.db".to_owned(), None, at(0)), seconds: 0 }
    }

    fn event(&mut self, event: TopEvent) -> TopStep {
        self.state.update(event, at(self.seconds))
    }

    fn press(&mut self, code: KeyCode) -> TopStep {
        self.event(TopEvent::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    /// Types each character, and returns what follows from the last one.
    fn types(&mut self, text: &str) -> TopStep {
        let steps: Vec<_> = text.chars().map(|c| self.press(KeyCode::Char(c))).collect();
        steps.last().cloned().unwrap_or(TopStep::Draw)
    }

    /// Lets time pass, and returns the questions that are due then.
    fn waits(&mut self, seconds: i64) -> Vec<TopQuestion> {
        self.seconds += seconds;
        self.event(TopEvent::Tick);
        self.state.due(at(self.seconds))
    }

    fn gets(&mut self, question: TopQuestion, answer: Result<Listing, String>) {
        self.event(TopEvent::Answered(question, answer));
    }

    fn sees(&self, width: u16, height: u16) -> String {
        picture(&self.state, width, height, false)
    }

    fn selected(&self) -> String {
        self.state.entry().map(|entry| entry.id).unwrap_or_default()
    }
}

fn picture(state: &TopState, width: u16, height: u16, coloured: bool) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, Paint { coloured })).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect::<Vec<_>>().join("\n")
}

fn queue(name: &str, ready: u32) -> ListEntry {
    let mut cells = vec![ListCell::text(name), ListCell::text(if ready > 0 { "works" } else { "empty" })];
    cells.push(ListCell::number(ready.to_string(), f64::from(ready)));
    cells.resize(11, ListCell::unknown());
    ListEntry {
        id: name.to_owned(),
        cells,
        facets: Facets::default().with(FilterKey::Queue, [name]),
        mood: Mood::Good,
        ..ListEntry::default()
    }
}

fn queues(queues: &[(&str, u32)]) -> Listing {
    let entries = queues.iter().map(|(name, ready)| queue(name, *ready)).collect();
    Listing { entries, ..Listing::default() }
}

fn task(id: &str, name: &str, error: &str) -> ListEntry {
    let texts = [id, "FAILURE", name, "12s", "mail", "w1", error];
    ListEntry {
        id: id.to_owned(),
        about: name.to_owned(),
        cells: texts.map(ListCell::text).to_vec(),
        facets: Facets::default().with(FilterKey::State, ["FAILURE"]).with(FilterKey::Name, [name]),
        details: vec![("caused by", "the network is away".to_owned())],
        mood: Mood::Bad,
        ..ListEntry::default()
    }
}

fn at_queues(listed: &[(&str, u32)]) -> Person {
    let mut person = Person::new();
    person.types("2");
    person.waits(0);
    person.gets(TopQuestion::Queues, Ok(queues(listed)));
    person
}
