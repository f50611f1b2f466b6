//! What the pages show, and that the API tells the same.

use std::time::Duration;

use machinist::{QueueName, TaskId, record::Record, view::ArgsView, workflow::chain};
use machinist_conformance::eventually;
use machinist_web::{Access, Dashboard};

use crate::support::{ECHO, FAIL, House, SOON, Site};

/// Addresses of pages that every application with the queue `mail` has.
pub(crate) const FIXED: [&str; 9] =
    ["/", "/queues", "/queues/mail", "/tasks", "/failures", "/dead", "/workers", "/periodic", "/send"];

/// Addresses of all pages of an application with this task.
pub(crate) fn all(task: &TaskId) -> Vec<String> {
    let others = ["/nothing".to_owned(), format!("/tasks/{task}"), format!("/workflows/{task}")];
    FIXED.map(str::to_owned).into_iter().chain(others).collect()
}

#[tokio::test]
async fn a_failed_task_is_found_with_its_reason() {
    let house = House::open().await;
    let site = house.local();
    let id = house.failed("the disk is full").await;
    let page = site.get(&format!("/tasks/{id}")).await.is(200);
    let page = page.has(&[
        "FAILURE",
        "the disk is full",
        "Timeline",
        "<svg class=\"bar\"",
        "Why",
        "Retry",
        "&quot;the disk is full&quot;",
    ]);
    assert!(page.text.contains("a key proves"), "{page:?}");
    let json = site.get(&format!("/api/tasks/{id}")).await.is(200).json();
    assert_eq!((json["state"].as_str(), json["kind"].as_str()), (Some("FAILURE"), Some("error")));
    assert_eq!(json["args"], serde_json::json!(["the disk is full"]));
    let found = site
        .until("/api/tasks?state=failure&error=disk%20is&limit=5", |answer| answer.text.contains(id.as_str()))
        .await;
    assert!(found.json()["tasks"].as_array().unwrap().iter().any(|task| task["id"] == id.as_str()));
    site.get("/tasks?state=FAILURE&error=disk").await.is(200).has(&[id.as_str(), "Looked at"]);
    site.get("/tasks?state=FAILURE&error=network").await.is(200).has(&["No task was found."]);
    site.until("/failures", |answer| answer.text.contains("the disk is full")).await;
    let group = site.get("/api/failures").await.json()[0]["fingerprint"].as_str().unwrap().to_owned();
    site.get(&format!("/tasks?group={group}&since=1h")).await.is(200).has(&[id.as_str()]);
    site.get(&format!("/dead?group={group}")).await.is(200).has(&[id.as_str(), "Replay the selected"]);
}

#[tokio::test]
async fn the_first_page_says_what_is_wrong_and_names_queues_and_workers() {
    let house = House::open().await;
    let site = house.local();
    house.failed("no").await;
    let page = site
        .until("/", |answer| {
            answer.text.contains("dead letters wait") && answer.text.contains("failed within")
        })
        .await;
    let page = page.has(&["What is wrong now", "1 live workers", "href=\"./queues/mail\""]);
    assert!(page.text.len() < 100_000);
    let overview = site.get("/api/overview").await.is(200).json();
    assert_eq!(overview["workers"][0]["name"], "one");
    assert_eq!(overview["queues"][0]["queue"], "mail");
    assert!(overview["troubles"].as_array().is_some_and(|troubles| !troubles.is_empty()));
}

#[tokio::test]
async fn a_result_and_a_queue_and_a_worker_are_shown() {
    let house = House::open().await;
    let site = house.local();
    let sent = house.app.client().send(ECHO.call("12345678901234567890".to_owned())).await.unwrap();
    sent.wait(SOON).await.unwrap();
    site.get(&format!("/tasks/{}", sent.id())).await.is(200).has(&["SUCCESS", "12345678901234567890"]);
    site.get("/queues/mail").await.is(200).has(&["Consumers", "Pause", "Look at the first messages"]);
    site.get("/queues/mail?peek=1").await.is(200).has(&["First messages"]);
    site.until("/workers/one", |answer| answer.text.contains("Drain and stop")).await.has(&["mail", "echo"]);
    assert_eq!(site.get("/api/queues/mail").await.is(200).json()["queue"], "mail");
    assert_eq!(site.get("/api/workers/one").await.is(200).json()["name"], "one");
    assert_eq!(
        site.get(&format!("/api/tasks/{}/log", sent.id())).await.is(200).json()["lines"],
        serde_json::json!([])
    );
    assert_eq!(site.get(&format!("/api/tasks/{}/why", sent.id())).await.is(200).json()["reason"], "ended");
}

#[tokio::test]
async fn the_last_24_hours_are_charts_with_marks_and_a_table() {
    let house = House::open().await;
    house.failed("no").await;
    house.app.client().mark("shop <1.2>").await.unwrap();
    // A dashboard reads the history once a minute, so each look is at another one.
    let look = async |path: &str| {
        house.app.flush_events().await;
        house.local().get(path).await.is(200)
    };
    for path in ["/", "/queues/mail"] {
        let found = eventually(SOON, async || look(path).await.text.contains("role=\"img\"")).await;
        assert!(found, "{path}: {:?}", look(path).await);
        let page = look(path).await.has(&[
            "The last 24 hours",
            "Messages per minute",
            "Messages that wait",
            "Age of the oldest message",
            "Wait of 95 % of the messages",
            "The same as a table, by hour",
            "<title>shop &lt;1.2&gt;</title>",
        ]);
        assert_eq!(page.text.matches("role=\"img\" aria-label=\"").count(), 4, "{path}");
        assert!(page.text.len() < 100_000, "{path}: {} bytes", page.text.len());
    }
    let counted = async || {
        let history = look("/api/history?queue=mail&since=24h").await.json();
        let points = history["points"].as_array().unwrap();
        points
            .iter()
            .flat_map(|point| point["tasks"].as_array().unwrap())
            .any(|task| task["failure"]["count"] == 1)
    };
    assert!(eventually(SOON, counted).await, "{:?}", look("/api/history").await);
    let other = look("/api/history?task=other").await.json();
    assert_eq!(other["points"], serde_json::json!([]));
    assert!(other["marks"].as_array().unwrap().iter().any(|mark| mark["text"] == "shop <1.2>"), "{other}");
    let quiet =
        Dashboard::new(house.app.clone(), Access::local()).queues([QueueName::parse("quiet").unwrap()]);
    let page = Site::new(quiet.router()).get("/queues/quiet").await.is(200);
    assert!(page.text.contains("Nothing is recorded.") && !page.text.contains("role=\"img\""), "{page:?}");
}

#[tokio::test]
async fn a_workflow_is_drawn_with_links_to_its_tasks() {
    let house = House::open().await;
    let site = house.local();
    let steps = chain(ECHO.call("the disk is full".to_owned())).then(FAIL.with(()));
    let sent = house.app.client().send(steps).await.unwrap();
    let path = format!("/workflows/{}", sent.workflow_id().unwrap());
    let page = site.until(&path, |answer| answer.text.contains("✕ FAILURE")).await;
    let page = page.has(&["<svg class=\"graph\"", "✓ SUCCESS", "the disk is full", "Steps"]);
    let view = site.get(&format!("/api{path}")).await.is(200).json();
    for step in view["steps"].as_array().unwrap() {
        let link = format!("href=\"../tasks/{}\"", step["id"].as_str().unwrap());
        assert_eq!(page.text.matches(&link).count(), 2, "in the graph and in the table: {link}: {page:?}");
    }
    let rest =
        site.get(&format!("{path}?from=1")).await.is(200).has(&["First steps", "<svg class=\"graph\""]);
    assert_eq!(rest.text.matches("<th scope=\"row\">").count(), 1, "{rest:?}");
}

#[tokio::test]
async fn an_application_redacts_arguments_before_anybody_sees_them() {
    let house = House::open().await;
    let id = house.failed("card 4111 is refused").await;
    let redact = |record: &Record, args: ArgsView| {
        assert_eq!(record.name.as_deref(), Some("fail"));
        ArgsView::shown(vec!["card ****".into()], args.named_args)
    };
    let dashboard = || Dashboard::new(house.app.clone(), Access::local()).redact_args(redact);
    let site = Site::new(dashboard().router());
    let page = site.get(&format!("/tasks/{id}")).await.is(200).has(&["&quot;card ****&quot;"]);
    assert!(!page.text.contains("&quot;card 4111"), "{page:?}");
    let path = format!("/api/tasks/{id}");
    assert_eq!(site.get(&path).await.is(200).json()["args"], serde_json::json!(["card ****"]));
    // What the setting hides stays hidden, whatever the application would show.
    let hidden =
        Site::new(dashboard().hide_args(["fail".to_owned()]).router()).get(&path).await.is(200).json();
    assert!(
        hidden["args"].is_null() && hidden["args_hidden"].as_str().unwrap().contains("hide_args"),
        "{hidden}"
    );
}

#[tokio::test]
async fn what_does_not_exist_is_404_with_a_sentence() {
    let house = House::open().await;
    let site = house.local();
    let unknown = TaskId::fresh();
    for page in [
        format!("/tasks/{unknown}"),
        "/queues/none".into(),
        "/workers/none".into(),
        "/nothing".into(),
        format!("/workflows/{unknown}"),
    ] {
        site.get(&page).await.is(404).has(&["<html", "Remedy"]);
        let api = site.get(&format!("/api{page}")).await.is(404);
        assert!(api.json()["error"].as_str().is_some_and(|error| !error.is_empty()), "{page}");
    }
    site.get("/tasks/%20").await.is(404).has(&["<html"]);
    site.get("/api/periodic/none").await.is(404);
}

#[tokio::test]
async fn a_wrong_filter_names_the_problem() {
    let house = House::open().await;
    let site = house.local();
    for (query, problem) in [
        ("state=LOST", "there is no state"),
        ("since=soon", "since=soon"),
        ("after=x", "is no cursor"),
        ("limit=0", "limit=0 is no number"),
        ("label=x", "KEY=VALUE"),
    ] {
        let api = site.get(&format!("/api/tasks?{query}")).await.is(400).json();
        assert!(api["error"].as_str().unwrap().contains(problem), "{api}");
        site.get(&format!("/tasks?{query}")).await.is(200).has(&["class=\"problem\"", "<form"]);
    }
    site.get("/api/history?since=soon").await.is(400).has(&["since=soon"]);
    site.get("/api/dead?reason=wrong").await.is(400).has(&["is no reason of a dead letter"]);
}

#[tokio::test]
async fn every_answer_has_the_strict_headers_and_no_page_has_inline_code() {
    let house = House::open().await;
    let site = house.local();
    let id = house.failed("no").await;
    for page in all(&id).into_iter().chain([
        "/style.css".into(),
        "/script.js".into(),
        "/api/queues".into(),
        "/login".into(),
    ]) {
        let answer = site.get(&page).await;
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{page}: {policy}"
        );
        assert!(
            !policy.contains("unsafe") && !policy.contains('*') && !policy.contains("data:"),
            "{page}: {policy}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{page}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{page}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{page}");
        if answer.text.contains("<html") {
            assert!(answer.header("cache-control").contains("no-store"), "{page}");
            assert!(!answer.text.contains("style=") && !answer.text.contains("<style"), "{page}");
            assert_eq!(answer.text.matches("<script").count(), 1, "{page}");
            assert!(!answer.text.contains(" onclick") && !answer.text.contains("javascript:"), "{page}");
        }
    }
}

#[tokio::test]
async fn the_stream_sends_the_live_part_and_its_number_is_bounded() {
    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    let house = House::open().await;
    let site = house.local();
    let open = async |site: &Site| {
        let request = crate::support::request("GET", "/api/events", &[]).body(Body::empty()).unwrap();
        site.router.clone().oneshot(request).await.unwrap()
    };
    let mut streams = Vec::new();
    for _ in 0..200 {
        let stream = open(&site).await;
        assert_eq!(stream.status(), 200);
        assert_eq!(stream.headers()["x-accel-buffering"], "no");
        streams.push(stream);
    }
    let refused = open(&site).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let mut first = streams.pop().unwrap();
    let frame = tokio::time::timeout(Duration::from_secs(60), first.frame()).await.unwrap().unwrap().unwrap();
    let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
    assert!(
        text.contains("event: overview") && text.contains("id: ") && text.contains("What is wrong now"),
        "{text}"
    );
    drop(first);
    assert_eq!(open(&site).await.status(), 200, "a stream that is closed makes room");
}
