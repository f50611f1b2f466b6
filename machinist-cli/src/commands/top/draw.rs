//! Drawing of the screen. Pure: the same state is the same picture.
//!
//! Every text from elsewhere goes through [`visible`], and no state is shown by its colour alone.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use super::{
    draw_list::draw_list,
    draw_page::{draw_details, draw_help, draw_overview},
    listing::Mood,
    paint::Paint,
    state::{TopMode, TopState},
    views::TopView,
};
use crate::visible;

/// Maximum number of lines about sources that do not answer.
const MAX_COMPLAINTS: usize = 3;
/// Maximum height of a question or a message.
const MAX_MESSAGE: u16 = 4;

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, state: &TopState, paint: Paint) {
    let complaints = complaints(state);
    let below = u16::try_from(complaints.len()).unwrap_or(0);
    let message = message_line(state, paint);
    let message_height = height(&message, frame.area().width);
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(below),
        Constraint::Length(message_height),
        Constraint::Length(1),
    ]);
    let [title, tabs, filter, body, trouble, bottom, keys] = rows.areas(frame.area());
    draw_title(frame, title, state);
    frame.render_widget(Line::from(tabs_line(state)), tabs);
    frame.render_widget(filter_line(state), filter);
    match &state.mode {
        TopMode::Help => draw_help(frame, body, state),
        TopMode::Details(entry, from) => draw_details(frame, body, state, entry, *from),
        _ if state.view == TopView::Overview => draw_overview(frame, body, state, paint),
        _ => draw_list(frame, body, state, paint),
    }
    let lines: Vec<Line<'_>> =
        complaints.into_iter().map(|text| Line::styled(text, paint.mood(Mood::Bad))).collect();
    frame.render_widget(Paragraph::new(lines), trouble);
    frame.render_widget(Paragraph::new(message).wrap(Wrap { trim: true }), bottom);
    frame.render_widget(Line::raw(key_line(state)), keys);
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, state: &TopState) {
    let clock = clock(state);
    let width = u16::try_from(clock.len()).unwrap_or(0);
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(width)]).spacing(1).areas(area);
    let title = format!("machinist top  {}", visible::one_line(&state.title));
    frame.render_widget(Line::styled(title, Paint::heading()), left);
    frame.render_widget(Line::raw(clock), right);
}

/// Returns the time of the backend, which all ages refer to.
fn clock(state: &TopState) -> String {
    let text = state.now.to_string();
    let time = text.split_once('T').map_or(text.as_str(), |(_, time)| time);
    format!("{} UTC", time.get(..8).unwrap_or(time))
}

/// Returns the names of the views; the one that is shown is in brackets.
fn tabs_line(state: &TopState) -> Vec<Span<'static>> {
    let tab = |(number, view): (usize, TopView)| {
        let text = format!("{} {}", number + 1, view.title());
        if view == state.view {
            Span::styled(format!("[{text}] "), Paint::heading())
        } else {
            Span::raw(format!(" {text}  "))
        }
    };
    TopView::ALL.into_iter().enumerate().map(tab).collect()
}

fn filter_line(state: &TopState) -> Line<'static> {
    if let TopMode::Filter(text, _) = &state.mode {
        return Line::raw(format!("/{}_", visible::one_line(text)));
    }
    if state.filter.is_empty() {
        return Line::default();
    }
    let mut text = format!("filter: {}", visible::one_line(&state.filter_text));
    let left_out = state.filter.left_out(state.view.filter_keys());
    if !left_out.is_empty() {
        text.push_str(&format!("   (means nothing here: {})", left_out.join(", ")));
    }
    Line::raw(text)
}

/// Returns what is wrong with the sources of the view.
fn complaints(state: &TopState) -> Vec<String> {
    let reason = state.reason_question().map(|question| question.source());
    let sources = state.view.sources().iter().copied().chain(reason);
    let complaint = |source| state.known.get(&source)?.complaint(source, state.now);
    sources.filter_map(complaint).map(|text| visible::one_line(&text)).take(MAX_COMPLAINTS).collect()
}

/// Returns the height of a text that is wrapped at this width.
fn height(text: &Line<'_>, width: u16) -> u16 {
    let lines = text.width().div_ceil(usize::from(width.max(1)));
    // Words that do not fit leave blanks behind.
    let lines = if lines > 1 { lines + 1 } else { 1 };
    u16::try_from(lines).unwrap_or(MAX_MESSAGE).min(MAX_MESSAGE)
}

fn message_line(state: &TopState, paint: Paint) -> Line<'static> {
    match &state.mode {
        TopMode::Ask(action) => {
            let question = visible::one_line(&action.words());
            return Line::styled(format!("y for yes, any other key for no: {question}?"), Paint::heading());
        }
        TopMode::Filter(_, Some(problem)) => {
            return Line::styled(visible::one_line(problem), paint.mood(Mood::Bad));
        }
        _ => {}
    }
    match (&state.message, &state.acting) {
        (Some(message), _) => {
            let mood = if message.is_error { Mood::Bad } else { Mood::Plain };
            Line::styled(visible::one_line(&message.text), paint.mood(mood))
        }
        (None, Some(action)) => Line::raw(format!("… {}", visible::one_line(&action.words()))),
        (None, None) => Line::default(),
    }
}

fn key_line(state: &TopState) -> String {
    match &state.mode {
        TopMode::Filter(..) => {
            "Enter applies  Esc leaves  Ctrl-U clears; keys: state= name= queue= worker= error=".to_owned()
        }
        TopMode::Ask(_) => String::new(),
        TopMode::Help => "any key closes this".to_owned(),
        TopMode::Details(..) => format!("Esc closes  up/down scroll{}  ? help  q quit", actions(state)),
        TopMode::List if state.view == TopView::Overview => "Tab or 1-5 view  ? help  q quit".to_owned(),
        TopMode::List => {
            format!("Enter details  / filter  s sort{}  Tab view  ? help  q quit", actions(state))
        }
    }
}

fn actions(state: &TopState) -> String {
    state.view.actions().iter().map(|(key, what)| format!("  {key} {what}")).collect()
}
