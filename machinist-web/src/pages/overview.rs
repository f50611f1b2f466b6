//! The first page: what is wrong now, the queues, the workers, the last 24 hours. The script replaces its live part when
//! something is new.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use machinist::{WorkerInfo, record::PresenceState, view::QueueView, visible};
use maud::{Markup, html};

use super::{
    chart::day,
    fields::{grouped, late, number, queue_link, rate, seconds},
    layout::Frame,
};
use crate::{overview::Overview, panel::PanelView, site::Site, visit::Visit};

/// Number of queues on the first page: those with the most messages.
const MAX_QUEUES: usize = 50;

/// Answers with the first page.
pub(crate) async fn overview(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let (overview, history) = tokio::join!(site.overview(visit.sight()), site.day());
    let content = html! {
        div #live data-live={ (visit.root) "api/events" } data-root=(visit.root) { (live_part(&overview, &visit.root)) }
        p.new hidden { button #show-new type="button" { "Show new values" } }
        (day(&history, None, visit.sight()))
    };
    Frame::of(&visit).page("Overview", &content).into_response()
}

/// Returns the part of the page that changes.
pub(crate) fn live_part(overview: &Overview, root: &str) -> Markup {
    html! {
        section aria-labelledby="now" {
            h2 #now { "What is wrong now" }
            (troubles(overview, root))
        }
        section aria-labelledby="queues" { h2 #queues { "Queues" } (queues(&overview.queues, root)) }
        section aria-labelledby="workers" { h2 #workers { "Workers" } (workers(&overview.workers, root)) }
    }
}

fn troubles(overview: &Overview, root: &str) -> Markup {
    let troubles = overview.troubles();
    html! {
        @if troubles.is_empty() {
            p.good { span aria-hidden="true" { "✓ " } "Nothing is wrong." }
        } @else {
            ul.troubles {
                @for trouble in &troubles {
                    li {
                        span aria-hidden="true" { "! " }
                        @if trouble.link.is_empty() { (trouble.text) } @else { a href={ (root) (trouble.link) } { (trouble.text) } }
                    }
                }
            }
        }
    }
}

fn queues(seen: &PanelView<Vec<QueueView>>, root: &str) -> Markup {
    let all = seen.value.as_deref().map(Vec::as_slice).unwrap_or_default();
    let mut busiest: Vec<&QueueView> = all.iter().collect();
    busiest.sort_by_key(|queue| std::cmp::Reverse(queue.ready.unwrap_or(0) + queue.unacked.unwrap_or(0)));
    busiest.truncate(MAX_QUEUES);
    html! {
        (late(seen))
        @if busiest.is_empty() { p.hint { "No queue is known yet." } } @else { (queue_table(&busiest, root)) }
        @if all.len() > MAX_QUEUES {
            p { a href={ (root) "queues" } { "All " (grouped(all.len() as u64)) " queues" } }
        }
    }
}

/// Returns the table of queues.
pub(super) fn queue_table(queues: &[&QueueView], root: &str) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th scope="col" { "Queue" } th scope="col" { "Ready" } th scope="col" { "Delayed" } th scope="col" { "Unacked" }
                th scope="col" { "Dead" } th scope="col" { "Consumers" } th scope="col" { "In/s" } th scope="col" { "Out/s" }
                th scope="col" { "Oldest" } th scope="col" { "Empty in" } th scope="col" { "State" }
            } }
            tbody { @for queue in queues { tr {
                th scope="row" { (queue_link(root, &queue.queue)) }
                td.n { (number(queue.ready)) } td.n { (number(queue.delayed)) } td.n { (number(queue.unacked)) }
                td.n { (number(queue.dead)) } td.n { (number(queue.consumers)) }
                td.n { (rate(queue.in_rate)) } td.n { (rate(queue.out_rate)) }
                td.n { (seconds(queue.oldest_age)) } td.n { (seconds(queue.empty_in)) }
                td { (queue_state(queue)) }
            } } }
        } }
    }
}

fn queue_state(queue: &QueueView) -> &'static str {
    match queue {
        QueueView { paused: true, .. } => "‖ paused",
        QueueView { ready: None, .. } => "– not declared",
        QueueView { consumers: Some(0), .. } => "! no consumer",
        _ => "✓ open",
    }
}

fn workers(seen: &PanelView<Vec<WorkerInfo>>, root: &str) -> Markup {
    let all = seen.value.as_deref().map(Vec::as_slice).unwrap_or_default();
    let of = |state: PresenceState| all.iter().filter(|worker| worker.state == state).count();
    let (running, slots) = all.iter().fold((0_u64, 0_u64), |(running, slots), worker| {
        (running + u64::from(worker.running), slots + u64::from(worker.concurrency))
    });
    let states =
        [PresenceState::Awake, PresenceState::Starting, PresenceState::Asleep, PresenceState::Draining];
    html! {
        (late(seen))
        @if all.is_empty() { p.hint { "No worker is live." } } @else {
            p {
                a href={ (root) "workers" } { (grouped(all.len() as u64)) " live workers" } ": "
                @for state in states { @if of(state) > 0 { (grouped(of(state) as u64)) " " (state.as_str()) ", " } }
                (grouped(running)) " of " (grouped(slots)) " slots run a task."
            }
            @let one = &all[0];
            @if all.len() == 1 { p.hint { (visible::one_line(&one.name)) } }
        }
    }
}
