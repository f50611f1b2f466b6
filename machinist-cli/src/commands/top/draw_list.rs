//! Drawing of a list: as many columns as fit, and the page with the selected line.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::Line,
    widgets::{Row, Table},
};

use super::{
    listing::ListEntry,
    paint::Paint,
    state::{ListPlace, TopState},
    views::Column,
};
use crate::visible;

/// Space between two columns.
const GAP: u16 = 1;

/// Draws the list of the view, with a line about it above.
pub(super) fn draw_list(frame: &mut Frame<'_>, area: Rect, state: &TopState, paint: Paint) {
    let [about, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let shown = state.shown();
    frame.render_widget(Line::raw(about_line(state, shown.len())), about);
    let place = state.place();
    let columns = fitting(state.view.columns(), body.width);
    let room = usize::from(body.height.saturating_sub(1)).max(1);
    let selected = state.selected(&shown);
    let first = selected.map_or(0, |at| at / room * room);
    let rows = shown.iter().enumerate().skip(first).take(room).map(|(at, entry)| {
        let style = if Some(at) == selected { Paint::selected() } else { paint.mood(entry.mood) };
        Row::new(cells(entry, &columns)).style(style)
    });
    let head = columns.iter().map(|(at, column, width)| fit(&head(*at, column, &place), *width));
    let widths = columns.iter().map(|(.., width)| Constraint::Length(*width));
    let table = Table::new(rows, widths).column_spacing(GAP).header(Row::new(head).style(Paint::heading()));
    frame.render_widget(table, body);
}

fn about_line(state: &TopState, shown: usize) -> String {
    let Some(listing) = state.listing() else { return "asking …".to_owned() };
    let all = listing.entries.len();
    let mut text = if shown == all { format!("{all} listed") } else { format!("{shown} of {all} listed") };
    let place = state.place();
    if let Some(column) = state.view.columns().get(place.sort) {
        let reversed = if place.reversed { ", reversed" } else { "" };
        text.push_str(&format!(", by {}{reversed}", column.head));
    }
    for note in &listing.notes {
        text.push_str(&format!("; {}", visible::one_line(note)));
    }
    text
}

/// Returns the columns that fit, with their positions and widths. Those of the highest rank go first.
fn fitting(columns: &'static [Column], width: u16) -> Vec<(usize, &'static Column, u16)> {
    let mut fitting: Vec<_> =
        columns.iter().enumerate().map(|(at, column)| (at, column, column.width)).collect();
    let needed =
        |columns: &[(usize, &Column, u16)]| columns.iter().map(|(.., width)| width + GAP).sum::<u16>();
    while needed(&fitting) > width + GAP {
        let last = fitting.iter().enumerate().filter(|(_, (_, column, _))| column.rank > 0);
        let Some((at, _)) = last.max_by_key(|(at, (_, column, _))| (column.rank, *at)) else { break };
        fitting.remove(at);
    }
    let left = (width + GAP).saturating_sub(needed(&fitting));
    let growing = fitting.iter().filter(|(_, column, _)| column.grows).count();
    if let Some(share) = left.checked_div(u16::try_from(growing).unwrap_or(u16::MAX)) {
        fitting.iter_mut().filter(|(_, column, _)| column.grows).for_each(|(.., width)| *width += share);
    }
    fitting
}

fn head(at: usize, column: &Column, place: &ListPlace) -> String {
    let mark = if at == place.sort { "*" } else { "" };
    format!("{}{mark}", column.head.to_uppercase())
}

fn cells(entry: &ListEntry, columns: &[(usize, &Column, u16)]) -> Vec<String> {
    let cell = |(at, _, width): &(usize, &Column, u16)| {
        entry.cells.get(*at).map_or_else(String::new, |cell| fit(&visible::one_line(&cell.text), *width))
    };
    columns.iter().map(cell).collect()
}

/// Returns a text that is not wider than this; an ellipsis says that it was shortened.
fn fit(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if Line::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        short.push(c);
        if Line::raw(short.as_str()).width() >= width {
            short.pop();
            break;
        }
    }
    short + "…"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::top::views::TopView;

    #[test]
    fn columns_of_a_high_rank_go_first_and_the_rest_fills_the_width() {
        for view in TopView::ALL.into_iter().skip(1) {
            let narrow = fitting(view.columns(), 80);
            assert!(narrow.len() < view.columns().len(), "{view:?}");
            assert!(narrow.iter().map(|(.., width)| width + GAP).sum::<u16>() <= 80 + GAP, "{view:?}");
            let first: Vec<_> = view.columns().iter().filter(|column| column.rank == 0).collect();
            assert!(first.iter().all(|column| narrow.iter().any(|(_, kept, _)| kept == column)), "{view:?}");
            assert_eq!(fitting(view.columns(), 300).len(), view.columns().len(), "{view:?}");
        }
    }

    #[test]
    fn a_long_text_is_shortened_by_its_width_on_the_screen() {
        assert_eq!(fit("plain", 5), "plain");
        assert_eq!(fit("plainer", 5), "plai…");
        assert_eq!(fit("日本語の名前", 5), "日本…");
    }
}
