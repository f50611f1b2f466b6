//! The frame of every page: head, navigation, notices, and pages of errors.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use machinist::{TaskId, visible};
use maud::{DOCTYPE, Markup, html};

use crate::{
    access::{Actor, IdentityProof},
    link,
    visit::{QueryFields, Visit},
    web_error::WebError,
};

/// Pages of the navigation, with their titles.
const NAVIGATION: [(&str, &str); 8] = [
    ("", "Overview"),
    ("queues", "Queues"),
    ("tasks", "Tasks"),
    ("failures", "Failures"),
    ("dead", "Dead letters"),
    ("workers", "Workers"),
    ("periodic", "Periodic"),
    ("send", "Send a task"),
];

/// Notices about actions that are done, by the word in the address. An address cannot make up another text.
const NOTICES: [(&str, &str); 11] = [
    ("retry", "It was sent again."),
    ("revoke", "It was revoked: it does not start, or was asked to end."),
    ("replay", "The dead letters were replayed."),
    ("purge", "The dead letters were purged."),
    ("pause", "It is paused."),
    ("resume", "It is resumed."),
    ("drain", "The worker takes no more tasks, and ends when its runs have ended."),
    ("trigger", "An extra tick was sent."),
    ("send", "It was sent."),
    ("silence", "The group is silenced: it is left out of the list, and counted all the same."),
    ("unsilence", "The group is listed again."),
];

/// Content of the frame of a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// Way to the first page.
    pub(crate) root: &'a str,
    /// Name of the installation.
    pub(crate) name: Option<&'a str>,
    /// `None` before somebody has logged in.
    pub(crate) actor: Option<&'a Actor>,
    /// Address of the page, from the first page.
    pub(crate) here: &'a str,
    pub(crate) query: Option<&'a QueryFields>,
}

impl<'a> Frame<'a> {
    pub(crate) fn of(visit: &'a Visit) -> Self {
        Self {
            root: &visit.root,
            name: visit.site.options.name.as_deref(),
            actor: Some(&visit.actor),
            here: &visit.here,
            query: Some(&visit.query),
        }
    }

    /// Returns a page with this content.
    pub(crate) fn page(&self, title: &str, content: &Markup) -> Markup {
        let installation = self.name.unwrap_or("machinist");
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · " (visible::one_line(installation)) }
                    link rel="icon" type="image/svg+xml" href={ (self.root) "icon.svg" };
                    link rel="stylesheet" href={ (self.root) "style.css" };
                    script src={ (self.root) "script.js" } defer {}
                }
                body {
                    a.skip href="#content" { "Skip to the content" }
                    header {
                        a.name href=(self.root) { (visible::one_line(installation)) }
                        @if self.actor.is_some() { (self.navigation()) }
                        @if let Some(actor) = self.actor { (self.person(actor)) }
                    }
                    main #content { (self.notice()) h1 { (title) } (content) }
                }
            }
        }
    }

    fn navigation(&self) -> Markup {
        let first = self.here.split(['/', '?']).next().unwrap_or_default();
        html! {
            nav aria-label="Pages" {
                @for (page, title) in NAVIGATION {
                    @let current = (page == first).then_some("page");
                    a href={ (self.root) (page) } aria-current=[current] { (title) }
                }
            }
        }
    }

    fn person(&self, actor: &Actor) -> Markup {
        html! {
            div.person {
                span { (visible::one_line(actor.user.name())) }
                @if actor.read_only { span.mark { "read-only" } }
                @if actor.proof == IdentityProof::Session {
                    form method="post" action={ (self.root) "logout" } { button { "Log out" } }
                }
            }
        }
    }

    fn notice(&self) -> Markup {
        let text = |name: &str| self.query.and_then(|query| query.get(name));
        let done = text("done").and_then(|done| NOTICES.iter().find(|(word, _)| *word == done));
        let sent = text("sent").and_then(|id| TaskId::parse(id).ok());
        html! {
            @if let Some((_, sentence)) = done {
                p.notice role="status" {
                    (sentence)
                    @if let Some(id) = sent {
                        " " a href={ (self.root) (link::task(id.as_str())) } { "Show the task " (visible::one_line(id.as_str())) }
                    }
                }
            }
        }
    }
}

/// Answers with a page.
pub(crate) fn answer_page(visit: &Visit, title: &str, content: Result<Markup, WebError>) -> Response {
    let frame = Frame::of(visit);
    match content {
        Ok(content) => frame.page(title, &content).into_response(),
        Err(error) => error_page(&frame, &error),
    }
}

/// Answers with the page of an error.
pub(crate) fn error_page(frame: &Frame<'_>, error: &WebError) -> Response {
    let title = match error.status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::FORBIDDEN => "Not permitted",
        StatusCode::UNAUTHORIZED => "Not logged in",
        StatusCode::SERVICE_UNAVAILABLE => "No answer",
        StatusCode::CONFLICT => "Not possible",
        _ => "Not understood",
    };
    let content = html! {
        p.problem role="alert" { (visible::lines(&sentence(&error.text))) }
        @if let Some(remedy) = &error.remedy { p { "Remedy: " (visible::lines(remedy)) "." } }
        @if !frame.here.starts_with("api/") && !frame.here.is_empty() {
            p { a href={ (frame.root) (link::back(frame.here)) } { "Back" } }
        }
    };
    (error.status, frame.page(title, &content)).into_response()
}

/// Returns a text with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}{}", characters.as_str(), if text.ends_with('.') { "" } else { "." })
}
