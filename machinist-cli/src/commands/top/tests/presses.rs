//! Tests of the state: what each key changes, and what is asked and when.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Person, at_queues, queues, task};
use crate::commands::top::{
    action::TopAction,
    filter::ListFilter,
    listing::Listing,
    question::TopQuestion,
    state::{TopEvent, TopMode, TopStep},
    views::TopView,
};

#[test]
fn each_view_asks_its_sources_alone_and_the_overview_is_the_first() {
    let mut person = Person::new();
    assert_eq!(person.waits(0), [TopQuestion::Queues, TopQuestion::Workers, TopQuestion::History]);
    person.press(KeyCode::Tab);
    assert_eq!(person.state.view, TopView::Queues);
    assert_eq!(person.waits(1), [], "the queues are asked already");
    person.types("4");
    assert_eq!(person.waits(1), [TopQuestion::Tasks(ListFilter::default())]);
    person.types("5");
    assert_eq!(person.waits(1), [TopQuestion::Failures]);
    person.press(KeyCode::Tab);
    assert_eq!(person.state.view, TopView::Overview);
    person.press(KeyCode::BackTab);
    assert_eq!(person.state.view, TopView::Failures);
}

#[test]
fn the_selection_holds_to_a_name_and_not_to_a_position() {
    let mut person = at_queues(&[("a", 0), ("c", 0), ("d", 0)]);
    person.types("j");
    assert_eq!(person.selected(), "c");
    person.gets(TopQuestion::Queues, Ok(queues(&[("a", 0), ("b", 0), ("c", 0), ("d", 0)])));
    assert_eq!(person.selected(), "c");
    person.gets(TopQuestion::Queues, Ok(queues(&[("a", 0), ("d", 0)])));
    assert_eq!(person.selected(), "d", "it is gone, and the next one is in its place");
    person.press(KeyCode::End);
    person.types("k");
    assert_eq!(person.selected(), "a");
}

#[test]
fn a_small_letter_sorts_and_another_reverses() {
    let mut person = at_queues(&[("a", 3), ("b", 20), ("c", 0)]);
    let order =
        |person: &Person| person.state.shown().iter().map(|entry| entry.id.clone()).collect::<String>();
    assert_eq!(order(&person), "abc");
    person.types("ss");
    assert_eq!(order(&person), "bac", "the longest queue is the first");
    person.types("r");
    assert_eq!(order(&person), "cab");
    for view in TopView::ALL.into_iter().skip(1) {
        let head = view.columns()[view.first_sort()].head;
        assert!(["queue", "worker", "since", "last"].contains(&head), "{head}");
    }
}

#[test]
fn an_action_asks_with_the_name_and_only_a_yes_acts() {
    let mut person = at_queues(&[("mail", 1), ("video", 1)]);
    assert_eq!(person.types("P"), TopStep::Draw);
    assert!(person.sees(80, 24).contains("pause queue mail for all workers?"));
    assert_eq!(person.types("n"), TopStep::Draw);
    assert!(person.sees(80, 24).contains("nothing was changed"));
    person.types("P");
    // The list changes while the question is open.
    person.gets(TopQuestion::Queues, Ok(queues(&[("video", 1)])));
    assert_eq!(person.types("y"), TopStep::Act(TopAction::PauseQueue("mail".to_owned())));
    person.types("R");
    assert!(person.sees(80, 24).contains("wait: pause queue mail"), "one action at a time");
    person.event(TopEvent::Acted(Ok("paused: queue mail".to_owned())));
    assert!(person.sees(80, 24).contains("paused: queue mail"));
    assert_eq!(person.waits(0), [TopQuestion::Queues], "what has changed is asked at once");
}

#[test]
fn a_pasted_text_presses_no_key() {
    let mut person = at_queues(&[("mail", 1)]);
    person.event(TopEvent::Pasted("Py".to_owned()));
    assert_eq!((&person.state.mode, &person.state.acting), (&TopMode::List, &None));
    person.types("/");
    person.event(TopEvent::Pasted("queue=mail".to_owned()));
    person.press(KeyCode::Enter);
    assert!(person.sees(80, 24).contains("filter: queue=mail"));
    person.types("P");
    let ctrl_y = KeyEvent::new(KeyCode::Char('y'), KeyModifiers::CONTROL);
    assert_eq!(person.event(TopEvent::Key(ctrl_y)), TopStep::Draw, "only the letter alone is a yes");
}

#[test]
fn without_a_key_a_capital_letter_says_why_it_does_nothing() {
    let mut person = at_queues(&[("mail", 1)]);
    person.state.refusal = Some("there is no key here".to_owned());
    assert_eq!(person.types("Py"), TopStep::Draw);
    assert_eq!(person.state.mode, TopMode::List);
    assert!(person.sees(80, 24).contains("there is no key here"));
}

#[test]
fn a_capital_letter_of_another_view_does_nothing() {
    let mut person = at_queues(&[("mail", 1)]);
    person.types("X");
    assert_eq!(person.state.mode, TopMode::List);
    assert!(person.sees(80, 24).contains("X does nothing here"));
    let mut empty = at_queues(&[]);
    empty.types("P");
    assert!(empty.sees(80, 24).contains("there is nothing to act on"));
}

#[test]
fn a_bad_filter_says_what_is_wrong_and_the_old_one_stays() {
    let mut person = at_queues(&[("mail", 1), ("video", 1)]);
    person.types("/queue=mail");
    person.press(KeyCode::Enter);
    assert!(!person.sees(80, 24).contains("video"));
    person.types("/ stat=FAILURE");
    person.press(KeyCode::Enter);
    let seen = person.sees(80, 24);
    assert!(seen.contains("did you mean state=?") && seen.contains("stat=FAILURE_"), "{seen}");
    assert!(!seen.contains("video"), "the old filter holds");
    person.press(KeyCode::Esc);
    assert!(person.sees(80, 24).contains("filter: queue=mail"));
    person.press(KeyCode::Esc);
    assert!(person.sees(80, 24).contains("video"));
}

#[test]
fn a_filter_is_part_of_the_question_for_tasks_and_says_where_it_means_nothing() {
    let mut person = Person::new();
    person.types("4");
    person.waits(0);
    person.gets(TopQuestion::Tasks(ListFilter::default()), Ok(Listing::default()));
    person.types("/state=failure");
    person.press(KeyCode::Enter);
    let filter = ListFilter::parse("state=FAILURE").unwrap();
    assert_eq!(person.waits(0), [TopQuestion::Tasks(filter)]);
    person.types("2");
    assert!(person.sees(80, 24).contains("(means nothing here: state)"));
}

#[test]
fn a_source_that_is_away_is_named_and_its_values_stay() {
    let mut person = at_queues(&[("mail", 7)]);
    assert_eq!(person.waits(2), [TopQuestion::Queues]);
    person.seconds += 9;
    person.gets(TopQuestion::Queues, Err("the broker is unavailable".to_owned()));
    let seen = person.sees(80, 24);
    assert!(seen.contains("queues: no answer: the broker is unavailable; the values are 11 s old"), "{seen}");
    assert!(seen.contains("mail"), "{seen}");
    assert_eq!(person.waits(2), [TopQuestion::Queues]);
    person.gets(TopQuestion::Queues, Ok(queues(&[("mail", 8)])));
    assert!(!person.sees(80, 24).contains("no answer"), "it comes back");
}

#[test]
fn details_show_all_of_one_entry_and_why_it_stands_still() {
    let mut person = Person::new();
    person.types("4");
    person.waits(0);
    let tasks = Listing { entries: vec![task("t-1", "mail.send", "timeout")], ..Listing::default() };
    person.gets(TopQuestion::Tasks(ListFilter::default()), Ok(tasks));
    person.press(KeyCode::Enter);
    let id = machinist::TaskId::parse("t-1").unwrap();
    assert_eq!(person.waits(1), [TopQuestion::Reason(id.clone())]);
    let why = Listing { sums: vec![("why", "ended (act)".to_owned())], ..Listing::default() };
    person.gets(TopQuestion::Reason(id), Ok(why));
    let seen = person.sees(80, 24);
    for words in ["t-1", "mail.send", "the network is away", "ended (act)"] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    person.gets(TopQuestion::Tasks(ListFilter::default()), Ok(Listing::default()));
    assert!(person.sees(80, 24).contains("it is no longer in the list"));
    person.types("R");
    assert!(person.sees(80, 24).contains("retry task t-1 (mail.send)?"), "it acts on what it shows");
}

#[test]
fn it_ends_by_a_key_or_a_signal_and_waits_for_an_action_once() {
    assert_eq!(Person::new().types("q"), TopStep::End);
    assert_eq!(Person::new().event(TopEvent::Stop), TopStep::End);
    let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    let mut person = at_queues(&[("mail", 1)]);
    person.types("/x");
    assert_eq!(person.event(TopEvent::Key(ctrl_c)), TopStep::End);
    let mut person = at_queues(&[("mail", 1)]);
    person.types("Py");
    assert_eq!(person.types("q"), TopStep::Draw);
    assert!(person.sees(80, 24).contains("it ends when this is done: pause queue mail"));
    assert_eq!(person.event(TopEvent::Acted(Ok(String::new()))), TopStep::End);
    let mut person = at_queues(&[("mail", 1)]);
    person.types("Pyq");
    assert_eq!(person.types("q"), TopStep::End, "a second time ends it now");
}
