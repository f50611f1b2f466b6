//! Logging in and out.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension,
    extract::{ConnectInfo, OriginalUri, State},
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{LOCATION, RETRY_AFTER, SET_COOKIE},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use maud::{Markup, html};

use super::layout::{Frame, error_page};
use crate::{
    access::{LoginError, MAX_AGE, SESSION_COOKIE},
    link,
    site::Site,
    visit::{QueryFields, root_of},
    web_error::WebError,
};

/// Request of somebody who is not logged in yet.
#[derive(Debug)]
pub(crate) struct Stranger {
    site: Arc<Site>,
    root: String,
}

impl Stranger {
    fn new(site: Arc<Site>, uri: &Uri, original: Option<&OriginalUri>) -> Self {
        Self { root: root_of(uri, original), site }
    }

    fn frame(&self) -> Frame<'_> {
        let name = self.site.options.name.as_deref();
        Frame { root: &self.root, name, actor: None, here: "login", query: None }
    }

    fn page(&self, status: StatusCode, back: &str, problem: Option<&str>) -> Response {
        (status, self.frame().page("Log in", &form(&self.root, back, problem))).into_response()
    }
}

fn form(root: &str, back: &str, problem: Option<&str>) -> Markup {
    html! {
        @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
        form.login method="post" action={ (root) "login" } {
            input type="hidden" name="back" value=(link::back(back));
            label { "Name" input name="name" autocomplete="username" required; }
            label { "Password" input type="password" name="password" autocomplete="current-password" required; }
            button { "Log in" }
        }
    }
}

/// Answers with the form.
pub(crate) async fn login(
    State(site): State<Arc<Site>>,
    original: Option<Extension<OriginalUri>>,
    uri: Uri,
) -> Response {
    let stranger = Stranger::new(site, &uri, original.as_ref().map(|Extension(original)| original));
    let query = QueryFields::parse(uri.query().unwrap_or_default().as_bytes());
    stranger.page(StatusCode::OK, query.text("back"), None)
}

/// Checks the name and the password of the form, and begins a session.
pub(crate) async fn log_in(
    State(site): State<Arc<Site>>,
    original: Option<Extension<OriginalUri>>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let stranger = Stranger::new(site, &uri, original.as_ref().map(|Extension(original)| original));
    let fields = QueryFields::parse(&body);
    let from = peer.map(|Extension(ConnectInfo(peer))| peer.ip());
    let (name, back) = (fields.text("name"), fields.text("back"));
    // A password may begin with a blank.
    let password = fields.all("password").pop().unwrap_or_default();
    let site = &stranger.site;
    let outcome = site.access.log_in(&site.app, name, &password, from).await;
    let from = from.map_or_else(|| "unknown".to_owned(), |from| from.to_string());
    match outcome {
        Ok(id) => {
            tracing::info!(target: "machinist::audit", user = name, from, action = "log in", "action");
            begun(&stranger.root, back, &id, is_https(&headers))
        }
        Err(LoginError::Wrong) => {
            tracing::warn!(target: "machinist::audit", user = name, from, action = "log in", refused = "wrong", "action");
            stranger.page(StatusCode::UNAUTHORIZED, back, Some("Name or password is wrong."))
        }
        Err(LoginError::Wait(wait)) => {
            let problem = format!("Too many wrong passwords. Try again in {} s.", wait.as_secs() + 1);
            let mut page = stranger.page(StatusCode::TOO_MANY_REQUESTS, back, Some(&problem));
            page.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            page
        }
        Err(LoginError::Web(error)) => error_page(&stranger.frame(), &error),
    }
}

/// Returns `true` if a proxy says that the browser uses HTTPS. Somebody who lies about it only harms the own cookie.
fn is_https(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"))
}

fn begun(root: &str, back: &str, id: &str, is_https: bool) -> Response {
    let secure = if is_https { "; Secure" } else { "" };
    let age = MAX_AGE.as_secs();
    let cookie = format!("{SESSION_COOKIE}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}");
    with_cookie(&format!("{root}{}", link::back(back)), &cookie)
}

fn with_cookie(location: &str, cookie: &str) -> Response {
    let values = (HeaderValue::from_str(location), HeaderValue::from_str(cookie));
    let (Ok(location), Ok(cookie)) = values else { return StatusCode::BAD_REQUEST.into_response() };
    (StatusCode::SEE_OTHER, [(LOCATION, location), (SET_COOKIE, cookie)]).into_response()
}

/// Ends the session.
pub(crate) async fn log_out(
    State(site): State<Arc<Site>>,
    original: Option<Extension<OriginalUri>>,
    parts: Parts,
) -> Response {
    let stranger = Stranger::new(site, &parts.uri, original.as_ref().map(|Extension(original)| original));
    let ended: Result<(), WebError> = stranger.site.access.log_out(&stranger.site.app, &parts).await;
    match ended {
        Ok(()) => {
            let cookie = format!("{SESSION_COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
            with_cookie(&format!("{}login", stranger.root), &cookie)
        }
        Err(error) => error_page(&stranger.frame(), &error),
    }
}
