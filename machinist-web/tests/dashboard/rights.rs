//! Each route and method of the description, for each role, read-only or not: a missing right is 403.

use axum::{body::Body, http::StatusCode};
use machinist::DeadFilter;
use machinist_web::{Access, Dashboard, Right, User, UserRole};
use serde_json::Value;

use crate::support::{House, Site, request};

/// Operations of the description: method, path, right.
fn operations(document: &Value) -> Vec<(String, String, Option<String>)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(move |(method, operation)| {
            let right = operation["x-right"].as_str().map(str::to_owned);
            (method.to_uppercase(), path.clone(), right)
        })
    });
    operations.collect()
}

/// Fills the parameters of a path with something that does not exist.
fn filled(path: &str) -> String {
    let part = |part: &str| if part.starts_with('{') { "nothing".to_owned() } else { part.to_owned() };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

async fn asked(site: &Site, token: Option<&str>, method: &str, path: &str) -> StatusCode {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    let request = request(method, path, &headers).body(Body::from("{\"ids\": [\"nothing\"]}")).unwrap();
    if path == "/api/events" && token.is_some() {
        use tower::ServiceExt as _;
        // It does not end by itself.
        return site.router.clone().oneshot(request).await.unwrap().status();
    }
    site.ask(request).await.status
}

fn has(role: UserRole, right: &str) -> bool {
    Right::ALL.into_iter().any(|known| known.as_str() == right && role.has(known))
}

#[tokio::test]
async fn a_missing_right_is_403_on_every_route() {
    let house = House::open().await;
    let tokens = [
        (UserRole::Viewer, "viewer-viewer-viewer"),
        (UserRole::Operator, "operator-operator"),
        (UserRole::Admin, "admin-admin-admin"),
    ];
    for read_only in [false, true] {
        let site = house.with_tokens(|dashboard| if read_only { dashboard.read_only() } else { dashboard });
        let bearer = [("authorization", "Bearer admin-admin-admin")];
        let document =
            site.ask(request("GET", "/api/openapi.json", &bearer).body(Body::empty()).unwrap()).await.json();
        let operations = operations(&document);
        assert!(operations.iter().filter(|(_, _, right)| right.is_some()).count() >= 13, "{operations:?}");
        for (method, path, right) in operations {
            for (role, token) in tokens {
                let status = asked(&site, Some(token), &method, &filled(&path)).await;
                let may = right.as_ref().is_none_or(|right| !read_only && has(role, right));
                assert_eq!(
                    status == StatusCode::FORBIDDEN,
                    !may,
                    "{role} {method} {path}, read-only: {read_only}: {status}"
                );
                assert_ne!(status, StatusCode::UNAUTHORIZED, "{role} {method} {path}");
            }
            let refused = asked(&site, Some("wrong-wrong-wrong"), &method, &filled(&path)).await;
            assert!(!refused.is_success() && refused != StatusCode::NOT_FOUND, "{method} {path}: {refused}");
            let stranger = asked(&site, None, &method, &filled(&path)).await;
            assert!(
                !stranger.is_success() && stranger != StatusCode::NOT_FOUND,
                "{method} {path}: {stranger}"
            );
        }
    }
}

#[tokio::test]
async fn a_stranger_sees_no_page() {
    let house = House::open().await;
    let site = house.with_tokens(|dashboard| dashboard);
    let id = house.failed("secret reason").await;
    for page in crate::pages::all(&id) {
        let answer = site.get(&page).await.is(401);
        assert!(
            !answer.text.contains("secret reason") && !answer.text.contains("mail"),
            "{page}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn buttons_are_shown_to_those_who_may_press_them() {
    let house = House::open().await;
    let id = house.failed("no").await;
    let page = async |site: &Site, path: String| site.get(&path).await.is(200).text;
    let viewer = |_: &axum::http::request::Parts| Some(User::new("v", UserRole::Viewer));
    let access = Access::new().authenticator(viewer);
    let site = Site::new(Dashboard::new(house.app.clone(), access).router());
    let single = |_: &axum::http::request::Parts| Some(User::with_rights("p", [Right::Purge]));
    let purger = Site::new(Dashboard::new(house.app.clone(), Access::new().authenticator(single)).router());
    for path in crate::pages::all(&id) {
        assert!(!site.get(&path).await.text.contains("method=\"post\""), "{path}");
    }
    assert!(page(&site, format!("/tasks/{id}")).await.contains("no"));
    let form = site.until("/send?task=echo", |answer| answer.status == 200).await;
    assert!(!form.text.contains("method=\"post\""), "{form:?}");
    site.press("/api/tasks", "name=echo&arg=1&queue=mail")
        .await
        .is(403)
        .has(&["does not have the right send"]);
    let dead = page(&purger, "/dead".to_owned()).await;
    assert!(dead.contains("Purge the selected") && !dead.contains("Replay the selected"), "{dead}");
}

#[tokio::test]
async fn who_sees_one_queue_finds_nothing_of_another_and_changes_nothing_there() {
    let house = House::open().await;
    let id = house.failed("the secret text").await;
    let whole = house.local();
    whole.until("/api/workers", |answer| answer.text.contains("\"one\"")).await;
    let listed = whole.until("/api/failures", |answer| answer.text.contains("secret")).await.json();
    let group = listed[0]["fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(listed[0]["queues"], serde_json::json!(["mail"]));
    let letters = async || house.app.client().dead_letters(&DeadFilter::default(), 10).await.unwrap();
    let letter = letters().await[0].dead_id.clone();
    let site = |user: User| {
        let access = Access::new().authenticator(move |_: &axum::http::request::Parts| Some(user.clone()));
        Site::new(Dashboard::new(house.app.clone(), access).router())
    };
    let stranger = site(User::new("s", UserRole::Admin).only_queues(["other", "mail-*"]));
    let others = site(User::new("o", UserRole::Admin).only_tasks(["echo", "fail.*"]));
    let more = [
        format!("/tasks?group={group}"),
        format!("/dead?group={group}"),
        format!("/api/tasks/{id}"),
        format!("/api/tasks/{id}/log"),
        format!("/api/tasks/{id}/why"),
        format!("/api/workflows/{id}"),
        format!("/api/workflows/{id}/members/s0"),
    ];
    let fixed = [
        "/tasks?state=FAILURE",
        "/queues/mail?peek=1",
        "/workers/one",
        "/send?task=fail",
        "/api/overview",
        "/api/queues",
        "/api/queues/mail",
        "/api/tasks",
        "/api/failures",
        "/api/history?since=24h",
        "/api/dead",
        "/api/registered",
        "/api/workers",
        "/api/workers/one",
        "/api/periodic",
    ];
    let all: Vec<String> =
        crate::pages::all(&id).into_iter().chain(more).chain(fixed.map(str::to_owned)).collect();
    for path in &all {
        for site in [&stranger, &others] {
            let answer = site.get(path).await;
            assert!(!answer.text.contains("secret"), "{path}: {answer:?}");
            assert!(path.contains(id.as_str()) || !answer.text.contains(id.as_str()), "{path}: {answer:?}");
        }
        // What was asked for is repeated where it is not found.
        if !path.contains("mail") && !path.contains("one") {
            let answer = stranger.get(path).await;
            assert!(!answer.text.contains("mail") && !answer.text.contains("\"one\""), "{path}: {answer:?}");
        }
    }
    for path in ["/queues/mail", "/api/queues/mail", "/workers/one"] {
        stranger.get(path).await.is(404);
    }
    let presses = [
        (format!("/api/tasks/{id}/retry"), ""),
        (format!("/api/tasks/{id}/revoke"), ""),
        (format!("/api/failures/{group}/silence"), ""),
        ("/api/workers/one/pause".to_owned(), ""),
        ("/api/tasks".to_owned(), "name=fail&arg=1&queue=mail"),
    ];
    for (path, form) in presses {
        for site in [&stranger, &others] {
            let answer = site.press(&path, form).await;
            assert!(matches!(answer.status.as_u16(), 403 | 404), "{path}: {answer:?}");
        }
    }
    stranger.press("/api/queues/mail/pause", "").await.is(404);
    let call = Body::from(r#"{"name": "echo", "args": ["x"], "queue": "mail"}"#);
    let headers = [("sec-fetch-site", "same-origin")];
    stranger.ask(request("POST", "/api/tasks", &headers).body(call).unwrap()).await.is(403);
    stranger.press("/api/dead/purge", &format!("ids={letter}")).await;
    assert_eq!(letters().await.len(), 1, "the letter is still there");
    assert_eq!(house.app.result(id.clone()).record().await.unwrap().retried_as, None);
    whole.get("/queues/mail").await.is(200).has(&["✓ open"]);
    whole.get("/api/failures").await.has(&["\"silenced_until\":null"]);
    // Who sees the queue and the task sees and changes them, and not the worker that runs other tasks too.
    let own = site(User::new("w", UserRole::Admin).only_queues(["ma*"]).only_tasks(["fail"]));
    own.get(&format!("/tasks/{id}")).await.is(200).has(&["the secret text", "Retry"]);
    own.until("/dead", |answer| answer.text.contains(id.as_str())).await;
    own.get("/send").await.is(200).has(&["1 tasks that live workers know"]);
    own.get("/workers/one").await.is(200);
    own.press("/api/workers/one/pause", "").await.is(403);
    own.press(&format!("/api/tasks/{id}/retry"), "").await.is(303);
}

#[tokio::test]
async fn only_our_own_pages_change_something() {
    let house = House::open().await;
    let id = house.failed("no").await;
    let retry = format!("/api/tasks/{id}/retry");
    let site = house.local();
    for headers in [
        &[][..],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example")],
        &[("authorization", "Bearer x"), ("sec-fetch-site", "cross-site")],
    ] {
        let answer = site.ask(request("POST", &retry, headers).body(Body::empty()).unwrap()).await.is(403);
        assert!(answer.json()["error"].as_str().unwrap().contains("was refused"), "{answer:?}");
    }
    let foreign = [("host", "evil.example"), ("sec-fetch-site", "same-origin")];
    site.ask(request("POST", &retry, &foreign).body(Body::empty()).unwrap()).await.is(421);
    site.ask(request("GET", "/", &[("host", "evil.example")]).body(Body::empty()).unwrap()).await.is(421);
    let same = [("origin", "http://localhost:8780")];
    let done = site.ask(request("POST", &retry, &same).body(Body::empty()).unwrap()).await.is(200).json();
    assert_eq!(done["retry_of"], id.as_str());
    // A bearer token is exempt: no browser sends one by itself.
    let site = house.with_tokens(|dashboard| dashboard);
    let token = [("authorization", "Bearer operator-operator"), ("host", "jobs.example")];
    site.ask(request("POST", &retry, &token).body(Body::empty()).unwrap()).await.is(200);
}

#[tokio::test]
async fn a_header_of_a_proxy_counts_from_its_address_alone() {
    use axum::extract::ConnectInfo;
    use std::net::SocketAddr;
    let house = House::open().await;
    let access = Access::new()
        .proxy("X-Forwarded-User", vec!["10.0.0.1".parse().unwrap()], UserRole::Operator)
        .unwrap();
    let site = Site::new(Dashboard::new(house.app.clone(), access).router());
    let ask = async |peer: Option<&str>, headers: &[(&str, &str)]| {
        let mut request = request("GET", "/", headers).body(Body::empty()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(format!("{peer}:9").parse().unwrap()));
        }
        site.ask(request).await
    };
    let named = [("x-forwarded-user", "ada")];
    ask(Some("10.0.0.1"), &named).await.is(200).has(&["ada"]);
    ask(Some("10.0.0.2"), &named).await.is(401);
    ask(None, &named).await.is(401);
    ask(Some("10.0.0.1"), &[]).await.is(401);
    ask(Some("10.0.0.1"), &[("x-forwarded-user", "ada"), ("x-forwarded-user", "root")]).await.is(401);
    assert!(Access::new().proxy("X-Forwarded-User", Vec::new(), UserRole::Viewer).is_err());
    assert!(Access::new().proxy("no header", vec!["10.0.0.1".parse().unwrap()], UserRole::Viewer).is_err());
}
