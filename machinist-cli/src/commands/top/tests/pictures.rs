//! Tests of the pictures: sizes, colours, hostile names, and what a person reads.

use crossterm::event::KeyCode;
use ratatui::{Terminal, backend::TestBackend};

use super::{Person, at_queues, picture, task};
use crate::commands::top::{
    draw::draw,
    filter::ListFilter,
    listing::{Listing, Trend},
    paint::Paint,
    question::TopQuestion,
    state::TopEvent,
};

#[test]
fn hostile_names_are_visible_on_every_page() {
    let hostile = "a\u{1b}[2Jb\u{202e}c\nd\u{7}";
    let mut person = Person::new();
    person.state.title = hostile.to_owned();
    let bad = task(hostile, hostile, hostile);
    let listing = Listing {
        entries: vec![bad],
        sums: vec![("all", hostile.to_owned())],
        wrong: vec![hostile.to_owned()],
        notes: vec![hostile.to_owned()],
        ..Listing::default()
    };
    let questions = [
        TopQuestion::Queues,
        TopQuestion::Workers,
        TopQuestion::History,
        TopQuestion::Tasks(ListFilter::default()),
        TopQuestion::Failures,
    ];
    for question in questions {
        person.gets(question, Ok(listing.clone()));
    }
    let mut pages = Vec::new();
    for view in ["1", "2", "3", "4", "5"] {
        person.types(view);
        pages.push(person.sees(300, 100));
        person.press(KeyCode::Enter);
        pages.push(person.sees(300, 100));
        person.press(KeyCode::Esc);
        person.types("R");
        pages.push(person.sees(300, 100));
        person.types("n");
    }
    person.types("/name=");
    person.types(hostile);
    pages.push(person.sees(300, 100));
    person.event(TopEvent::Acted(Err(hostile.to_owned())));
    pages.push(person.sees(300, 100));
    for page in pages {
        assert!(page.contains("a\\u{1b}[2Jb"), "{page}");
        assert!(!page.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{page}");
    }
}

#[test]
fn no_size_of_the_screen_is_too_small_and_large_ones_show_more() {
    let listed: Vec<(String, u32)> = (0..1000).map(|number| (format!("queue-{number:04}"), number)).collect();
    let listed: Vec<(&str, u32)> = listed.iter().map(|(name, ready)| (name.as_str(), *ready)).collect();
    let mut person = at_queues(&listed);
    person.press(KeyCode::End);
    for (width, height) in [(80, 24), (300, 100), (20, 5), (1, 1)] {
        for view in ["1", "2", "3", "4", "5", "?"] {
            person.types(view);
            person.sees(width, height);
        }
        person.press(KeyCode::Esc);
    }
    person.types("2");
    let (small, large) = (person.sees(80, 24), person.sees(300, 100));
    assert!(small.contains("queue-0999") && large.contains("queue-0999"), "{small}");
    assert!(!small.contains("UNACKED") && large.contains("UNACKED"), "{small}");
    let rows = |page: &str| page.matches("queue-").count();
    assert!(rows(&large) > rows(&small));
}

#[test]
fn without_colours_the_picture_says_the_same() {
    let mut person = at_queues(&[("mail", 1)]);
    person.gets(TopQuestion::Queues, Err("away".to_owned()));
    let plain = picture(&person.state, 80, 24, false);
    assert_eq!(plain, picture(&person.state, 80, 24, true));
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| draw(frame, &person.state, Paint { coloured: false })).unwrap();
    let buffer = terminal.backend().buffer();
    let reset = ratatui::style::Color::Reset;
    assert!(buffer.content().iter().all(|cell| cell.fg == reset && cell.bg == reset));
}

#[test]
fn the_overview_at_80_by_24() {
    let mut person = Person::new();
    person.waits(0);
    let sums = |sums: &[(&'static str, &str)]| {
        sums.iter().map(|(label, value)| (*label, (*value).to_owned())).collect()
    };
    let wrong = |text: &str| vec![text.to_owned()];
    person.gets(
        TopQuestion::Queues,
        Ok(Listing {
            sums: sums(&[("all", "3"), ("ready", "1234")]),
            wrong: wrong("queue mail has 12 messages and no worker"),
            ..Listing::default()
        }),
    );
    person.gets(
        TopQuestion::Workers,
        Ok(Listing { sums: sums(&[("running", "3 of 16")]), ..Listing::default() }),
    );
    let trends = vec![Trend { label: "succeeded", values: vec![0, 8, 4] }];
    let history = Listing { sums: sums(&[("failed/s", "0.1")]), trends, ..Listing::default() };
    person.gets(TopQuestion::History, Ok(history));
    let expected = "\
machinist top  shop  sqlite://machinist.db                          08:00:00 UTC
[1 Overview]  2 Queues   3 Workers   4 Tasks   5 Failures

queues      all 3   ready 1234
workers     running 3 of 16
history     failed/s 0.1

succeeded           4    █▄

wrong now: 1
  - queue mail has 12 messages and no worker












Tab or 1-5 view  ? help  q quit";
    assert_eq!(person.sees(80, 24), expected);
}

#[test]
fn a_list_at_80_by_24() {
    let person = at_queues(&[("mail", 12), ("video", 0)]);
    let expected = "\
machinist top  shop  sqlite://machinist.db                          08:00:00 UTC
 1 Overview  [2 Queues]  3 Workers   4 Tasks   5 Failures

2 listed, by queue
";
    let seen = person.sees(80, 24);
    assert!(seen.starts_with(expected), "{seen}");
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines[4].starts_with("QUEUE*") && lines[5].starts_with("mail"), "{seen}");
    assert!(lines[23].starts_with("Enter details  / filter  s sort  P pause  R resume"), "{seen}");
}
