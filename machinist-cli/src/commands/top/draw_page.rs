//! Drawing of the pages that are no lists: overview, details of one entry, keys.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Paragraph, Sparkline, Wrap},
};

use super::{
    filter::FilterKey,
    listing::{ListEntry, Listing, Mood, Trend},
    paint::Paint,
    question::TopSource,
    state::TopState,
    views::TopView,
};
use crate::visible;

/// Width of the labels before texts.
const LABEL: usize = 12;
/// Width of the label and the newest number before a trend.
const TREND_LABEL: u16 = 24;

/// Draws sums, trends of numbers, and what is wrong now.
pub(super) fn draw_overview(frame: &mut Frame<'_>, area: Rect, state: &TopState, paint: Paint) {
    let listings: Vec<(TopSource, Option<&Listing>)> = TopView::Overview
        .sources()
        .iter()
        .map(|source| (*source, state.known.get(source).and_then(|known| known.listing())))
        .collect();
    let sums: Vec<Line<'_>> = listings.iter().map(|(source, listing)| sums_line(*source, *listing)).collect();
    let trends: Vec<&Trend> =
        listings.iter().filter_map(|(_, listing)| *listing).flat_map(|listing| &listing.trends).collect();
    let height = |lines: usize| Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX));
    let rows = [height(sums.len() + 1), height(trends.len()), Constraint::Fill(1)];
    let [sums_area, trends_area, wrong_area] = Layout::vertical(rows).areas(area);
    frame.render_widget(Paragraph::new(sums), sums_area);
    let lines = Layout::vertical(trends.iter().map(|_| Constraint::Length(1))).split(trends_area);
    for (trend, line) in trends.iter().zip(lines.iter()) {
        draw_trend(frame, *line, trend);
    }
    let is_complete = listings.iter().all(|(_, listing)| listing.is_some());
    let wrong = listings.iter().filter_map(|(_, listing)| *listing).flat_map(|listing| &listing.wrong);
    let wrong: Vec<&String> = wrong.collect();
    let heading = match (wrong.len(), is_complete) {
        (0, false) => "asking …".to_owned(),
        (0, true) => "nothing is wrong".to_owned(),
        (count, _) => format!("wrong now: {count}"),
    };
    let mut text = vec![Line::default(), Line::styled(heading, Paint::heading())];
    let room = usize::from(wrong_area.height.saturating_sub(2));
    let fits = if wrong.len() > room { room.saturating_sub(1) } else { wrong.len() };
    let sentence =
        |text: &&String| Line::styled(format!("  - {}", visible::one_line(text)), paint.mood(Mood::Warning));
    text.extend(wrong.iter().take(fits).map(sentence));
    if fits < wrong.len() {
        text.push(Line::raw(format!("  - and {} more", wrong.len() - fits)));
    }
    frame.render_widget(Paragraph::new(text), wrong_area);
}

fn sums_line<'a>(source: TopSource, listing: Option<&Listing>) -> Line<'a> {
    let mut text = vec![Span::styled(format!("{:<LABEL$}", source.as_str()), Paint::heading())];
    match listing {
        None => text.push(Span::raw("…")),
        Some(listing) => {
            let sum = |(label, value): &(&str, String)| Span::raw(format!("{label} {value}   "));
            text.extend(listing.sums.iter().map(sum));
        }
    }
    Line::from(text)
}

/// Draws numbers over time in one line, with the newest one in digits.
fn draw_trend(frame: &mut Frame<'_>, area: Rect, trend: &Trend) {
    let [label, line] =
        Layout::horizontal([Constraint::Length(TREND_LABEL), Constraint::Fill(1)]).areas(area);
    let newest = trend.values.last().copied().unwrap_or(0);
    frame.render_widget(Line::raw(format!("{:<LABEL$}{newest:>9}", trend.label)), label);
    let skipped = trend.values.len().saturating_sub(usize::from(line.width));
    frame.render_widget(Sparkline::default().data(trend.values.iter().skip(skipped).copied()), line);
}

/// Draws all that is known about an entry.
pub(super) fn draw_details(
    frame: &mut Frame<'_>,
    area: Rect,
    state: &TopState,
    entry: &ListEntry,
    from: u16,
) {
    let mut lines = vec![Line::styled(visible::one_line(&entry.id), Paint::heading())];
    if !state.is_listed(&entry.id) {
        lines.push(Line::raw("it is no longer in the list; this was seen last"));
    }
    lines.push(Line::default());
    let columns = state.view.columns().iter().zip(&entry.cells).skip(1);
    lines.extend(columns.map(|(column, cell)| labelled(column.head, &cell.text)));
    lines.extend(entry.details.iter().map(|(label, text)| labelled(label, text)));
    let known = state.known.get(&TopSource::Reason);
    let reason = state.reason_question().and_then(|question| known?.answer_to(&question));
    if let Some(listing) = reason {
        lines.push(Line::default());
        lines.extend(listing.sums.iter().map(|(label, text)| labelled(label, text)));
    }
    let page = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(page.scroll((from, 0)), area);
}

fn labelled<'a>(label: &str, text: &str) -> Line<'a> {
    Line::raw(format!("{label:<LABEL$}{}", visible::one_line(text)))
}

/// Draws the keys.
pub(super) fn draw_help(frame: &mut Frame<'_>, area: Rect, state: &TopState) {
    let mut lines = vec![Line::styled("Keys", Paint::heading())];
    let keys = [
        ("1-5, Tab", "overview, queues, workers, tasks, failures; Shift-Tab goes back"),
        ("up, down", "selects a line; PgUp, PgDn, Home and End go far"),
        ("Enter", "shows all that is known about it; Esc goes back"),
        ("s, r", "sorts by the next column, reverses the order"),
        ("/", "types a filter; Esc in a list removes it"),
        ("q, Ctrl-C", "ends"),
    ];
    lines.extend(keys.map(|(key, text)| labelled(key, text)));
    lines.push(Line::default());
    lines.push(Line::styled("Capital letters act on the selected line, after a question", Paint::heading()));
    for view in TopView::ALL {
        let actions: Vec<_> = view.actions().iter().map(|(key, what)| format!("{key} {what}")).collect();
        if !actions.is_empty() {
            lines.push(labelled(view.title(), &actions.join(", ")));
        }
    }
    lines.push(Line::default());
    let known: Vec<_> = FilterKey::ALL.map(|key| format!("{}=", key.as_str())).to_vec();
    lines.push(labelled("filter", &format!("{}; * ends a name: name=mail.*", known.join(" "))));
    lines.push(labelled("tasks", "those that run, unless the filter has a state="));
    lines.push(labelled("here", &visible::one_line(&state.title)));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}
