//! The table of all routes. The router is made from it, so that no route is outside, and the description of the API is
//! compared with it.

use std::sync::Arc;

use axum::{
    Router,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::IntoResponse,
    routing::{MethodRouter, get, post},
};

use crate::{Right, api, pages, site::Site};

/// A path, its method, and the right that it needs.
pub(crate) struct Route {
    pub(crate) path: &'static str,
    /// Right of a route that changes something; `None` for one that reads.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare it with the description of the API"))]
    pub(crate) right: Option<Right>,
    handler: fn() -> MethodRouter<Arc<Site>>,
}

/// Returns the route of a page.
const fn page(path: &'static str, handler: fn() -> MethodRouter<Arc<Site>>) -> Route {
    Route { path, right: None, handler }
}

/// Returns the route of an action.
const fn action(path: &'static str, right: Right, handler: fn() -> MethodRouter<Arc<Site>>) -> Route {
    Route { path, right: Some(right), handler }
}

/// Every route.
pub(crate) static ROUTES: [Route; 52] = [
    page("/", || get(pages::overview)),
    page("/queues", || get(pages::queues)),
    page("/queues/{name}", || get(pages::queue)),
    page("/tasks", || get(pages::tasks)),
    page("/tasks/{id}", || get(pages::task)),
    page("/failures", || get(pages::failures)),
    page("/workflows/{root}", || get(pages::workflow)),
    page("/dead", || get(pages::dead)),
    page("/workers", || get(pages::workers)),
    page("/workers/{name}", || get(pages::worker)),
    page("/periodic", || get(pages::periodic)),
    page("/send", || get(pages::send)),
    page("/login", || get(pages::login).post(pages::log_in)),
    page("/logout", || post(pages::log_out)),
    page("/style.css", || get(|| async { asset("text/css; charset=utf-8", STYLE) })),
    page("/icon.svg", || get(|| async { asset("image/svg+xml", ICON) })),
    page("/script.js", || get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) })),
    page("/api/openapi.json", || get(api::openapi)),
    page("/api/overview", || get(api::overview)),
    page("/api/events", || get(api::events)),
    page("/api/queues", || get(api::queues)),
    page("/api/queues/{name}", || get(api::queue)),
    action("/api/queues/{name}/pause", Right::Control, || post(api::pause_queue)),
    action("/api/queues/{name}/resume", Right::Control, || post(api::resume_queue)),
    page("/api/tasks", || get(api::tasks)),
    action("/api/tasks", Right::Send, || post(api::send_task)),
    page("/api/tasks/{id}", || get(api::task)),
    page("/api/tasks/{id}/log", || get(api::task_log)),
    page("/api/tasks/{id}/why", || get(api::task_why)),
    action("/api/tasks/{id}/retry", Right::Retry, || post(api::retry_task)),
    action("/api/tasks/{id}/revoke", Right::Revoke, || post(api::revoke_task)),
    page("/api/failures", || get(api::failures)),
    action("/api/failures/{fingerprint}/silence", Right::Control, || post(api::silence_group)),
    action("/api/failures/{fingerprint}/unsilence", Right::Control, || post(api::unsilence_group)),
    page("/api/history", || get(api::history)),
    page("/api/workflows/{root}", || get(api::workflow)),
    page("/api/workflows/{root}/members/{step}", || get(api::members)),
    page("/api/dead", || get(api::letters)),
    action("/api/dead/replay", Right::Replay, || post(api::replay_letters)),
    action("/api/dead/purge", Right::Purge, || post(api::purge_letters)),
    page("/api/registered", || get(api::registered)),
    page("/api/workers", || get(api::workers)),
    page("/api/workers/{name}", || get(api::worker)),
    action("/api/workers/{name}/pause", Right::Control, || post(api::pause_worker)),
    action("/api/workers/{name}/resume", Right::Control, || post(api::resume_worker)),
    action("/api/workers/{name}/drain", Right::Control, || post(api::drain_worker)),
    page("/api/periodic", || get(api::periodic)),
    page("/api/periodic/{name}", || get(api::periodic_task)),
    action("/api/periodic/{name}/pause", Right::Periodic, || post(api::pause_periodic)),
    action("/api/periodic/{name}/resume", Right::Periodic, || post(api::resume_periodic)),
    action("/api/periodic/{name}/trigger", Right::Periodic, || post(api::trigger_periodic)),
    page("/api/{*rest}", || get(api::unknown).post(api::unknown)),
];

const STYLE: &str = include_str!("assets/style.css");
const ICON: &str = include_str!("assets/icon.svg");
const SCRIPT: &str = include_str!("assets/script.js");

/// Answers with a file of the program, which changes only with its version.
fn asset(kind: &'static str, content: &'static str) -> impl IntoResponse {
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "public, max-age=300")], content)
}

/// Makes the router of all routes.
pub(crate) fn router() -> Router<Arc<Site>> {
    ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    /// Paths of the API with their methods and rights, as the description has them.
    fn described() -> BTreeSet<(String, String, Option<String>)> {
        let document: Value = serde_json::from_str(crate::OPENAPI).unwrap();
        let mut all = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in
                methods.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
            {
                let right = operation["x-right"].as_str().map(str::to_owned);
                all.insert((path.clone(), method.clone(), right));
            }
        }
        all
    }

    #[test]
    fn the_description_of_the_api_has_every_route_with_its_right() {
        let api = ROUTES.iter().filter(|route| route.path.starts_with("/api/") && !route.path.contains('*'));
        let routes: BTreeSet<_> = api
            .map(|route| {
                let method = if route.right.is_some() { "post" } else { "get" };
                (route.path.to_owned(), method.to_owned(), route.right.map(|right| right.to_string()))
            })
            .collect();
        assert_eq!(described(), routes);
    }

    #[test]
    fn the_script_is_small_and_nothing_is_inline() {
        assert!(SCRIPT.len() < 5 * 1024, "{} bytes", SCRIPT.len());
        assert!(!STYLE.contains("http") && !SCRIPT.contains("eval("));
    }
}
