//! Checks of every request: the author, the origin in our own pages; and the headers of every answer.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, OriginalUri, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, LOCATION, REFERRER_POLICY, WWW_AUTHENTICATE,
            X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
        request::Parts,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    access::{Actor, IdentityProof, origin},
    link,
    pages::{Frame, error_page},
    site::Site,
    visit::root_of,
    web_error::WebError,
};

/// Only our own files, no script and no style in a page, no frame around it, forms to ourselves alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// Paths that need no log-in.
const PUBLIC: [&str; 4] = ["/style.css", "/icon.svg", "/script.js", "/login"];

/// Passes a request on, or refuses it, and adds the headers.
pub(crate) async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let mut answer = match admit(&site, &parts).await {
        Ok(Some(actor)) => {
            parts.extensions.insert(actor);
            next.run(Request::from_parts(parts, body)).await
        }
        Ok(None) => next.run(Request::from_parts(parts, body)).await,
        Err(refused) => *refused,
    };
    add_headers(answer.headers_mut());
    answer
}

/// Decides whether a request is passed on, and names its author; `None` for a path that needs none.
async fn admit(site: &Site, parts: &Parts) -> Result<Option<Actor>, Box<Response>> {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).or_else(|| parts.uri.host());
    if !site.access.allows_host(host) {
        let error = WebError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this dashboard is for this computer alone, and was asked by another name",
        );
        let error = error.remedy("open it as localhost, or configure authentication");
        return Err(Box::new(refuse(site, parts, error)));
    }
    let from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let known = site
        .access
        .identify(&site.app, parts, from)
        .await
        .map_err(|error| Box::new(refuse(site, parts, error)))?;
    let is_token = known.as_ref().is_some_and(|(_, proof)| *proof == IdentityProof::Token);
    if !is_safe(&parts.method) && !is_token {
        origin::check(&parts.headers).map_err(|reason| {
            let error = WebError::forbidden(format!("the request was refused: {reason}"));
            Box::new(refuse(site, parts, error.remedy("use the buttons of the dashboard, or a bearer token")))
        })?;
    }
    match known {
        _ if PUBLIC.contains(&parts.uri.path()) => Ok(None),
        Some((user, proof)) => Ok(Some(Actor { user, proof, from, read_only: site.options.read_only })),
        None => Err(Box::new(ask_to_log_in(site, parts))),
    }
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Answers somebody who is not logged in: a browser is led to the form, a program gets the reason.
fn ask_to_log_in(site: &Site, parts: &Parts) -> Response {
    let root = root_of(&parts.uri, parts.extensions.get::<OriginalUri>());
    if site.access.has_passwords() && is_safe(&parts.method) && !is_api(parts) {
        let here = parts.uri.path_and_query().map_or("", |here| here.as_str()).trim_start_matches('/');
        let form = link::list("login", &[("back", link::back(here))]);
        if let Ok(location) = HeaderValue::from_str(&format!("{root}{form}")) {
            return (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response();
        }
    }
    let error = WebError::new(StatusCode::UNAUTHORIZED, "nobody is logged in");
    let mut answer = refuse(site, parts, error.remedy("log in, or send a bearer token"));
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

fn is_api(parts: &Parts) -> bool {
    parts.uri.path().starts_with("/api/")
}

/// Answers with an error, as JSON for the API and as a page otherwise.
fn refuse(site: &Site, parts: &Parts, error: WebError) -> Response {
    if is_api(parts) {
        return error.into_response();
    }
    let root = root_of(&parts.uri, parts.extensions.get::<OriginalUri>());
    let name = site.options.name.as_deref();
    error_page(&Frame { root: &root, name, actor: None, here: "", query: None }, &error)
}

fn add_headers(headers: &mut HeaderMap) {
    let set = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in set {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert_with(|| HeaderValue::from_static("no-store"));
}
