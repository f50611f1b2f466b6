//! The list of queues, and one queue: its numbers, why it stands still, its last 24 hours, its first messages.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::Response,
};
use machinist::{QueueName, QueuePeek, Why, view::QueueView, visible};
use maud::{Markup, html};

use super::{
    chart::day,
    fields::{button, cell, grouped, late, number, rate, seconds, state, task_link, time},
    layout::answer_page,
    overview::queue_table,
};
use crate::{
    Right, actions, link,
    sight::Sight,
    site::{Site, glance, look},
    visit::Visit,
    web_error::WebError,
};

/// Number of queues on one page.
const PAGE_SIZE: usize = 200;
/// Number of messages that a look shows.
const PEEKED: u16 = 20;

/// Answers with the list of queues.
pub(crate) async fn queues(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let seen = site.queues(visit.sight()).await;
    let after = visit.query.text("after");
    let wanted = visit.query.text("name").to_lowercase();
    let all = seen.value.as_deref().map(Vec::as_slice).unwrap_or_default();
    let fitting = || all.iter().filter(|queue| queue.queue.contains(&wanted));
    let page: Vec<&QueueView> =
        fitting().filter(|queue| queue.queue.as_str() > after).take(PAGE_SIZE + 1).collect();
    let next = page.get(PAGE_SIZE - 1).filter(|_| page.len() > PAGE_SIZE).map(|last| last.queue.clone());
    let page = &page[..page.len().min(PAGE_SIZE)];
    let content = html! {
        form.filter role="search" {
            (super::fields::field(&visit, "name", "Name contains"))
            button { "Search" }
        }
        (late(&seen))
        p { (grouped(fitting().count() as u64)) " queues." }
        @if !page.is_empty() { (queue_table(page, &visit.root)) }
        @if let Some(next) = next {
            p { a href={ (visit.root) (link::list("queues", &[("name", visit.query.text("name")), ("after", &next)])) } { "Next page" } }
        }
    };
    answer_page(&visit, "Queues", Ok(content))
}

/// Answers with the page of one queue.
pub(crate) async fn queue(State(site): State<Arc<Site>>, Path(name): Path<String>, visit: Visit) -> Response {
    let content = Box::pin(one(&site, &visit, &name)).await;
    answer_page(&visit, &format!("Queue {}", cell(&name)), content)
}

async fn one(site: &Site, visit: &Visit, name: &str) -> Result<Markup, WebError> {
    let queue = actions::queue_name(name)?;
    let details = details(site, visit.sight(), &queue).await?;
    let client = site.client();
    let why = glance("the reason that it stands still", client.why_queue(&queue));
    let (why, history) = tokio::join!(why, site.day());
    let wants_peek = visit.query.get("peek").is_some();
    let peek = match wants_peek {
        true => Some(look("the messages", client.peek_queue(&queue, PEEKED)).await.map(|mut peek| {
            peek.records.retain(|record| visit.sight().record(record));
            peek
        })),
        false => None,
    };
    let action = |verb: &str| format!("queues/{}/{verb}", link::segment(name));
    Ok(html! {
        @if details.paused { (button(visit, Right::Control, &action("resume"), "Resume")) }
        @else { (button(visit, Right::Control, &action("pause"), "Pause")) }
        (numbers(visit, &details))
        section { h2 { "Why it stands still, or not" } (reason(&why)) }
        (day(&history, Some(queue.as_str()), visit.sight()))
        section {
            h2 { "First messages" }
            @match &peek {
                Some(Ok(peek)) => (peeked(visit, peek)),
                Some(Err(error)) => p.late { (visible::one_line(&error.text)) "." },
                None => form { input type="hidden" name="peek" value="1"; button { "Look at the first messages" } },
            }
        }
    })
}

/// Returns the numbers of one queue.
///
/// # Errors
/// There is no such queue that is seen, or the servers do not answer.
pub(crate) async fn details(site: &Site, sight: &Sight, queue: &QueueName) -> Result<QueueView, WebError> {
    let client = site.client();
    let found = look("the queue", client.queue_details(std::slice::from_ref(queue))).await?.pop();
    let found = found.map(|details| QueueView::from(&details));
    let exists =
        |view: &QueueView| view.ready.is_some() || view.dead.is_some() || site.options.queues.contains(queue);
    found
        .filter(|view| sight.queue(queue.as_str()) && exists(view))
        .ok_or_else(|| actions::unknown_queue(queue))
}

fn numbers(visit: &Visit, queue: &QueueView) -> Markup {
    let dead = link::list("dead", &[("queue", &queue.queue)]);
    html! {
        dl {
            dt { "Ready" } dd { (number(queue.ready)) }
            dt { "Delayed" } dd { (number(queue.delayed)) }
            dt { "Unacknowledged" } dd { (number(queue.unacked)) }
            dt { "Dead letters" } dd { a href={ (visit.root) (dead) } { (number(queue.dead)) } }
            dt { "Consumers" } dd { (number(queue.consumers)) }
            dt { "In" } dd { (rate(queue.in_rate)) " per second" }
            dt { "Out" } dd { (rate(queue.out_rate)) " per second" }
            dt { "Oldest message" } dd { (seconds(queue.oldest_age)) }
            dt { "Empty in" } dd { (seconds(queue.empty_in)) }
            dt { "State" } dd { @if queue.paused { "‖ paused: no worker takes tasks from it" } @else { "✓ open" } }
        }
        p {
            a href={ (visit.root) (link::list("tasks", &[("queue", &queue.queue)])) } { "Tasks of this queue" }
        }
    }
}

/// The answer to why.
pub(super) fn reason(why: &Result<Why, WebError>) -> Markup {
    html! {
        @match why {
            Ok(why) => {
                p { (visible::one_line(&why.sentence)) }
                p.hint { (visible::one_line(&why.advice)) }
            },
            Err(error) => p.late { (visible::one_line(&error.text)) "." },
        }
    }
}

fn peeked(visit: &Visit, peek: &QueuePeek) -> Markup {
    html! {
        @if peek.records.is_empty() { p.hint { "No message that names a task waits in it." } } @else {
            div.wide { table {
                thead { tr { th scope="col" { "Task" } th scope="col" { "State" } th scope="col" { "Name" } th scope="col" { "Sent" } } }
                tbody { @for record in &peek.records {
                    @let sent = record.sent_at.map(|at| at.to_string());
                    tr {
                        td { (task_link(visit, record.id.as_str())) }
                        td { (state(record.state)) }
                        td { (cell(record.name.as_deref().unwrap_or("–"))) }
                        td { (time(sent.as_deref())) }
                    }
                } }
            } }
        }
        @if peek.unnamed > 0 { p.hint { (grouped(peek.unnamed)) " messages name no task." } }
    }
}
