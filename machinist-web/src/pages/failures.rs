//! Failures by cause: each group with its numbers, each number a link to the tasks.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use machinist::{FailureGroup, FailureGroups};
use maud::{Markup, html};

use super::{
    fields::{button, cell, grouped, late, task_link, time},
    layout::answer_page,
};
use crate::{Right, link, site::Site, visit::Visit};

/// Maximum number of groups on the page.
const MAX_GROUPS: usize = 75;
/// Times for which a group can be silenced, with their labels.
const SILENCES: [(&str, &str); 4] =
    [("1h", "an hour"), ("1d", "a day"), ("7d", "a week"), ("30d", "30 days")];

/// Answers with the groups of failures.
pub(crate) async fn failures(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let seen = site.failures(visit.sight()).await;
    let all = visit.query.get("all").is_some();
    let content = html! {
        (late(&seen))
        @if let Some(failures) = seen.value.as_deref() { (list(&visit, failures, all)) }
    };
    answer_page(&visit, "Failures", Ok(content))
}

fn list(visit: &Visit, failures: &FailureGroups, all: bool) -> Markup {
    let shown: Vec<&FailureGroup> =
        failures.groups.iter().filter(|group| all || group.silenced_until.is_none()).collect();
    let silenced = failures.groups.len() - shown.len();
    html! {
        @if shown.is_empty() { p.good { span aria-hidden="true" { "✓ " } "No failure is listed." } } @else { (table(visit, &shown)) }
        p.hint {
            "Looked at " (grouped(failures.looked_at)) " of " (grouped(failures.listed)) " listed failures of seven days. "
            @if failures.other > 0 { (grouped(failures.other)) " further failures have other causes: too many groups. " }
            @if failures.cut > 0 { (grouped(failures.cut)) " failures are no longer listed: too many tasks have failed. " }
            @if shown.len() > MAX_GROUPS { (grouped((shown.len() - MAX_GROUPS) as u64)) " further groups are in the API. " }
        }
        @if silenced > 0 { p { a href={ (visit.root) "failures?all=1" } { "Show " (grouped(silenced as u64)) " silenced groups" } } }
    }
}

fn table(visit: &Visit, groups: &[&FailureGroup]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th scope="col" { "Task" } th scope="col" { "Kind" } th scope="col" { "Error" }
                th scope="col" { "1 h" } th scope="col" { "24 h" } th scope="col" { "7 d" }
                th scope="col" { "Last seen" } th scope="col" { "Example" } th scope="col" { "Dead letters" }
                th scope="col" { "Silenced" }
            } }
            tbody { @for group in groups.iter().take(MAX_GROUPS) {
                @let seen = group.last_seen.to_string();
                tr {
                    th scope="row" { (cell(&group.task)) }
                    td { (cell(&group.kind)) }
                    td { (cell(&group.error)) }
                    td.n { (count(visit, group, group.last_hour, "1h")) }
                    td.n { (count(visit, group, group.last_day, "1d")) }
                    td.n { (count(visit, group, group.last_week, "7d")) }
                    td { (time(Some(&seen))) }
                    td { (task_link(visit, group.example.as_str())) }
                    td { a href={ (visit.root) (link::list("dead", &[("group", &group.fingerprint)])) } { "Show" } }
                    td {
                        @if group.silenced_until.is_some() { (silence(visit, group)) }
                        @else { "no " (button(visit, Right::Control, &action(group, "silence"), "Silence for a week")) }
                    }
                }
            } }
        } }
    }
}

fn action(group: &FailureGroup, verb: &str) -> String {
    format!("failures/{}/{verb}", link::segment(&group.fingerprint))
}

/// The silence of a group, and what ends it; or a form that silences it for a time.
pub(super) fn silence(visit: &Visit, group: &FailureGroup) -> Markup {
    let until = group.silenced_until.map(|until| until.to_string());
    html! {
        @if until.is_some() {
            "silenced until " (time(until.as_deref())) " "
            (button(visit, Right::Control, &action(group, "unsilence"), "List it again"))
        } @else if visit.actor.may(Right::Control) {
            form.actions method="post" action={ (visit.root) "api/" (action(group, "silence")) } {
                input type="hidden" name="back" value=(visit.here);
                label { "Silence for " select name="for" {
                    @for (value, label) in SILENCES { option value=(value) selected[value == "7d"] { (label) } }
                } }
                button { "Silence" }
            }
        }
    }
}

/// A number, as a link to the tasks that it counts.
fn count(visit: &Visit, group: &FailureGroup, count: u64, since: &str) -> Markup {
    let filter = [("group", group.fingerprint.as_str()), ("since", since)];
    html! {
        @if count == 0 { "0" } @else { a href={ (visit.root) (link::list("tasks", &filter)) } { (grouped(count)) } }
    }
}
