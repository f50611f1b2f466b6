//! Dead letters: a list with a filter, and what can be done with those that are selected. The form carries ids, so what
//! fails while somebody reads is never among them.

use std::{collections::BTreeSet, sync::Arc};

use axum::{extract::State, response::Response};
use machinist::{DeadFilter, DeadLetter, TaskName, settings::parse_duration, visible};
use maud::{Markup, html};

use super::{
    fields::{cell, field, grouped, queue_link, task_link, time},
    layout::answer_page,
};
use crate::{
    Right, actions, link,
    site::{Site, look},
    visit::{NOTICE, Visit},
    web_error::WebError,
};

/// Number of letters on one page.
const PAGE_SIZE: usize = 100;
/// Maximum number of failed tasks of a group whose letters are looked for.
const MAX_OF_GROUP: usize = 10_000;
/// Criteria of the list, with their labels.
const CRITERIA: [(&str, &str); 4] =
    [("queue", "Queue"), ("name", "Task"), ("reason", "Reason"), ("older_than", "Older than, as 1h")];

/// Answers with the list of dead letters.
pub(crate) async fn dead(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let content = content(&site, &visit).await;
    answer_page(&visit, "Dead letters", content)
}

/// Dead letters that fit an address.
pub(crate) struct FoundLetters {
    pub(crate) letters: Vec<DeadLetter>,
    /// `true` if there are more.
    pub(crate) has_more: bool,
}

/// Returns the letters that an address asks for, the oldest first.
///
/// # Errors
/// A criterion cannot be read, or the backend does not answer.
pub(crate) async fn find(site: &Site, visit: &Visit) -> Result<FoundLetters, WebError> {
    let limit = visit.limit(PAGE_SIZE, actions::MAX_LETTERS)?;
    let filter = filter(site, visit)?;
    let client = site.client();
    let mut letters = match visit.query.get("group") {
        None => look("the dead letters", client.dead_letters(&filter, limit + 1)).await?,
        Some(group) => {
            let failed = look("the failures", client.failed_tasks(group, None, MAX_OF_GROUP)).await?;
            let tasks: BTreeSet<_> =
                failed.into_iter().flat_map(|found| found.records).map(|record| record.id).collect();
            let mut letters = look("the dead letters", client.dead_letters(&filter, usize::MAX)).await?;
            letters.retain(|letter| letter.task.as_ref().is_some_and(|task| tasks.contains(task)));
            letters
        }
    };
    let has_more = letters.len() > limit;
    letters.truncate(limit);
    letters.retain(|letter| visit.sight().letter(letter));
    Ok(FoundLetters { letters, has_more })
}

fn filter(site: &Site, visit: &Visit) -> Result<DeadFilter, WebError> {
    let query = &visit.query;
    let reason = query.get("reason").map(str::to_owned);
    if let Some(reason) =
        reason.as_deref().filter(|reason| !DeadLetter::reasons().any(|known| known == *reason))
    {
        let known: Vec<&str> = DeadLetter::reasons().collect();
        return Err(WebError::wrong(format!("{reason:?} is no reason of a dead letter"))
            .remedy(format!("write one of {}", known.join(", "))));
    }
    let name = |text| TaskName::parse(text).map_err(|error| WebError::wrong(format!("name: {error}")));
    let until = |text| match parse_duration(text) {
        Ok(age) => Ok(site.app.clock().now().minus(age)),
        Err(problem) => Err(WebError::wrong(format!("older_than={text}: {problem}"))),
    };
    Ok(DeadFilter {
        queue: query.get("queue").map(actions::queue_name).transpose()?,
        reason,
        name: query.get("name").map(name).transpose()?,
        until: query.get("older_than").map(until).transpose()?,
        ..DeadFilter::default()
    })
}

async fn content(site: &Site, visit: &Visit) -> Result<Markup, WebError> {
    let FoundLetters { letters, has_more } = find(site, visit).await?;
    let may_change = visit.actor.may(Right::Replay) || visit.actor.may(Right::Purge);
    let group = visit.query.get("group");
    Ok(html! {
        form.filter role="search" {
            @for (name, label) in CRITERIA { (field(visit, name, label)) }
            @if let Some(group) = group { input type="hidden" name="group" value=(group); }
            button { "Filter" }
        }
        @if let Some(group) = group { p.hint { "Only letters of the failures " (cell(group)) "." } }
        @if letters.is_empty() { p.good { span aria-hidden="true" { "✓ " } "There is no such dead letter." } }
        @else {
            @if may_change { (selection(visit, &letters, has_more)) }
            @else { (table(visit, &letters, false)) (bounds(letters.len(), has_more)) }
        }
    })
}

/// The list as a form, with the buttons of those who may press them.
fn selection(visit: &Visit, letters: &[DeadLetter], has_more: bool) -> Markup {
    html! {
        form #letters method="post" action={ (visit.root) "api/dead/replay" } {
            input type="hidden" name="back" value=(visit.here);
            (table(visit, letters, true))
            (bounds(letters.len(), has_more))
            p.hint { "A replay or a purge changes the selected ones, and nothing that fails later." }
            div.actions {
                a href={ (visit.root) (select_all(visit)) } { "Select all of these" }
                @if visit.actor.may(Right::Replay) { button { "Replay the selected" } }
                @if visit.actor.may(Right::Purge) {
                    button.danger formaction={ (visit.root) "api/dead/purge" } { "Purge the selected" }
                }
            }
        }
    }
}

fn bounds(shown: usize, has_more: bool) -> Markup {
    html! { p.hint { "The oldest " (grouped(shown as u64)) " are shown" @if has_more { ", and there are more" } "." } }
}

/// Returns the address of the same list with all letters selected.
fn select_all(visit: &Visit) -> String {
    let mut filter = visit.query.without(&NOTICE);
    filter.push(("select", "all"));
    link::list("dead", &filter)
}

fn table(visit: &Visit, letters: &[DeadLetter], may_change: bool) -> Markup {
    let selected = visit.query.get("select").is_some();
    html! {
        div.wide { table {
            thead { tr {
                @if may_change { th scope="col" { span.unseen { "Selected" } } }
                th scope="col" { "Letter" } th scope="col" { "Queue" } th scope="col" { "Task" }
                th scope="col" { "Reason" } th scope="col" { "Since" } th scope="col" { "Error" }
            } }
            tbody { @for letter in letters {
                @let at = letter.at.to_string();
                @let known = letter.task.as_ref().filter(|_| letter.reason != "unverified");
                tr {
                    @if may_change {
                        td { input type="checkbox" name="ids" value=(letter.dead_id) checked[selected] aria-label={ "Letter " (letter.dead_id) }; }
                    }
                    td.id { @match known {
                        Some(task) => (task_link(visit, task.as_str())),
                        None => (visible::one_line(&letter.dead_id)),
                    } }
                    td { (queue_link(&visit.root, letter.queue.as_str())) }
                    td { (cell(letter.name.as_ref().map_or("–", |name| name.as_str()))) }
                    td { (cell(&letter.reason)) }
                    td { (time(Some(&at))) }
                    td { (cell(letter.error.message())) }
                }
            } }
        } }
    }
}
