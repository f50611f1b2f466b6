//! Keys: what each one changes. Small letters look, capital letters ask before they act. Pure.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    action::TopAction,
    filter::ListFilter,
    listing::ListEntry,
    state::{TopMessage, TopMode, TopState, TopStep},
    views::TopView,
};

/// Maximum length of a filter, in characters.
const MAX_FILTER: usize = 300;
/// Number of lines that a page key moves by.
const PAGE: u16 = 10;

impl TopState {
    /// Changes the state by a key.
    pub(super) fn press(&mut self, key: KeyEvent) -> TopStep {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return self.end();
        }
        match self.mode.clone() {
            TopMode::Filter(text, _) => self.type_filter(text, key),
            TopMode::Ask(action) => return self.answer(action, key),
            TopMode::Help => self.mode = TopMode::List,
            TopMode::Details(entry, line) => return self.press_in_details(entry, line, key),
            TopMode::List => return self.press_in_list(key),
        }
        TopStep::Draw
    }

    /// Adds a text to the filter that is being typed. Elsewhere it does nothing: its letters are no keys.
    pub(super) fn paste(&mut self, text: &str) {
        if let TopMode::Filter(filter, problem) = &mut self.mode {
            let room = MAX_FILTER.saturating_sub(filter.chars().count());
            filter.extend(text.chars().take(room));
            *problem = None;
        }
    }

    /// Ends the program, after the action that is under way.
    fn end(&mut self) -> TopStep {
        match &self.acting {
            Some(action) if !self.ends => {
                let text = format!("it ends when this is done: {}; q ends it now", action.words());
                self.message = Some(TopMessage { text, is_error: false });
                self.ends = true;
                TopStep::Draw
            }
            _ => TopStep::End,
        }
    }

    fn type_filter(&mut self, mut text: String, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Esc => {
                self.mode = TopMode::List;
                return;
            }
            KeyCode::Enter => {
                self.mode = match ListFilter::parse(&text) {
                    Ok(filter) => {
                        self.filter = filter;
                        self.filter_text = text.trim().to_owned();
                        TopMode::List
                    }
                    Err(problem) => TopMode::Filter(text, Some(problem)),
                };
                return;
            }
            KeyCode::Backspace => {
                text.pop();
            }
            KeyCode::Char('u') if control => text.clear(),
            KeyCode::Char(c) if !control && text.chars().count() < MAX_FILTER => text.push(c),
            _ => {}
        }
        self.mode = TopMode::Filter(text, None);
    }

    fn answer(&mut self, action: TopAction, key: KeyEvent) -> TopStep {
        self.mode = TopMode::List;
        if key.code == KeyCode::Char('y') && key.modifiers.is_empty() {
            self.message = None;
            self.acting = Some(action.clone());
            return TopStep::Act(action);
        }
        self.message = Some(TopMessage { text: "nothing was changed".to_owned(), is_error: false });
        TopStep::Draw
    }

    fn press_in_details(&mut self, entry: Box<ListEntry>, line: u16, key: KeyEvent) -> TopStep {
        let line = match key.code {
            KeyCode::Char('q') => return self.end(),
            KeyCode::Esc | KeyCode::Enter | KeyCode::Left | KeyCode::Char('h') => {
                self.mode = TopMode::List;
                return TopStep::Draw;
            }
            KeyCode::Down | KeyCode::Char('j') => line.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => line.saturating_sub(1),
            KeyCode::PageDown => line.saturating_add(PAGE),
            KeyCode::PageUp => line.saturating_sub(PAGE),
            KeyCode::Home => 0,
            KeyCode::Char(c) if c.is_ascii_uppercase() => return self.ask(c, Some(&*entry)),
            KeyCode::Char('?') => {
                self.mode = TopMode::Help;
                return TopStep::Draw;
            }
            _ => line,
        };
        self.mode = TopMode::Details(entry, line);
        TopStep::Draw
    }

    fn press_in_list(&mut self, key: KeyEvent) -> TopStep {
        let last = isize::try_from(self.shown().len()).unwrap_or(isize::MAX);
        let page = isize::try_from(PAGE).unwrap_or(isize::MAX);
        match key.code {
            KeyCode::Char('q') => return self.end(),
            KeyCode::Char('?') => self.mode = TopMode::Help,
            KeyCode::Char('/') => self.mode = TopMode::Filter(self.filter_text.clone(), None),
            KeyCode::Esc => {
                self.message = None;
                self.filter = ListFilter::default();
                self.filter_text.clear();
            }
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.view = self.view.step(1),
            KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => {
                self.view = self.view.step(TopView::ALL.len() - 1);
            }
            KeyCode::Char(digit @ '1'..='5') => {
                self.view = TopView::ALL[usize::from(digit as u8 - b'1')];
            }
            KeyCode::Down | KeyCode::Char('j') => self.walk(1),
            KeyCode::Up | KeyCode::Char('k') => self.walk(-1),
            KeyCode::PageDown => self.walk(page),
            KeyCode::PageUp => self.walk(-page),
            KeyCode::Home | KeyCode::Char('g') => self.walk(-last),
            KeyCode::End | KeyCode::Char('e') => self.walk(last),
            KeyCode::Char('s') => self.sort(),
            KeyCode::Char('r') => {
                let place = self.place_mut();
                place.reversed = !place.reversed;
            }
            KeyCode::Enter | KeyCode::Char('o') => {
                self.walk(0);
                if let Some(entry) = self.entry() {
                    self.mode = TopMode::Details(Box::new(entry), 0);
                }
            }
            KeyCode::Char(c) if c.is_ascii_uppercase() => return self.ask(c, self.entry().as_ref()),
            _ => {}
        }
        TopStep::Draw
    }

    /// Moves the selection.
    fn walk(&mut self, by: isize) {
        let shown = self.shown();
        let Some(at) = self.selected(&shown) else { return };
        let position = at.saturating_add_signed(by).min(shown.len() - 1);
        let selected = Some(shown[position].id.clone());
        let place = self.place_mut();
        (place.selected, place.position) = (selected, position);
    }

    /// Sorts by the next column.
    fn sort(&mut self) {
        let columns = self.view.columns().len().max(1);
        let place = self.place_mut();
        (place.sort, place.reversed) = ((place.sort + 1) % columns, false);
    }

    /// Asks whether to act on an entry.
    fn ask(&mut self, key: char, entry: Option<&ListEntry>) -> TopStep {
        let problem = |text: String| Some(TopMessage { text, is_error: true });
        if let Some(refusal) = self.refusal.clone() {
            self.message = problem(refusal);
            return TopStep::Draw;
        }
        if let Some(action) = &self.acting {
            self.message = problem(format!("wait: {}", action.words()));
            return TopStep::Draw;
        }
        if !self.view.actions().iter().any(|(known, _)| *known == key) {
            self.message = problem(format!("{key} does nothing here; ? shows the keys"));
            return TopStep::Draw;
        }
        match entry.and_then(|entry| TopAction::of(self.view, key, entry)) {
            Some(action) => {
                self.message = None;
                self.mode = TopMode::Ask(action);
            }
            None => self.message = problem("there is nothing to act on".to_owned()),
        }
        TopStep::Draw
    }
}
