//! Hostile texts stay texts: in names, arguments, errors, and in every parameter of every page.

use axum::{body::Body, http::header::CONTENT_TYPE};

use crate::{
    pages,
    support::{ECHO, House, SOON, request},
};

/// Texts that would be code if they were not encoded, each with the part that must not appear.
const CORPUS: [(&str, &str); 8] = [
    ("<script>alert(1)</script>", "<script>alert"),
    ("<img src=x onerror=alert(2)>", "<img src=x"),
    ("\"><svg onload=alert(3)>", "<svg onload"),
    ("' autofocus onfocus=alert(4) x='", "value='"),
    ("\" autofocus onfocus=\"alert(5)", "\" autofocus onfocus="),
    ("</title><script>alert(6)</script>", "</title><script>"),
    ("javascript:alert(7)", "href=\"javascript:"),
    ("</pre></body><iframe src=//x>", "<iframe"),
];
/// Parameters that pages read, and one that none reads.
const PARAMETERS: [&str; 18] = [
    "name",
    "queue",
    "state",
    "task",
    "error",
    "worker",
    "label",
    "since",
    "after",
    "from",
    "limit",
    "id",
    "group",
    "reason",
    "older_than",
    "done",
    "sent",
    "other",
];

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn a_hostile_query_is_text_on_every_page() {
    let house = House::open().await;
    let site = house.local();
    let id = house.failed("no").await;
    for page in pages::all(&id).into_iter().chain(["/login".to_owned()]) {
        for (text, code) in CORPUS {
            let query: Vec<_> = PARAMETERS.iter().map(|name| format!("{name}={}", encoded(text))).collect();
            let answer = site.get(&format!("{page}?{}&back={}", query.join("&"), encoded(text))).await;
            assert!(answer.text.contains("<html"), "{page} {text}: {answer:?}");
            assert!(!answer.text.contains(code), "{page} {text}: {}", answer.text);
            // One parameter alone gets further than all together, of which the first is refused.
            for name in PARAMETERS {
                let answer = site.get(&format!("{page}?{name}={}", encoded(text))).await;
                assert!(!answer.text.contains(code), "{page} {name} {text}: {}", answer.text);
            }
        }
    }
}

#[tokio::test]
async fn hostile_paths_are_text() {
    let house = House::open().await;
    let site = house.local();
    for (text, code) in CORPUS {
        for page in ["tasks", "queues", "workers", "workflows", "nothing"] {
            let answer = site.get(&format!("/{page}/{}", encoded(text))).await;
            assert!(
                answer.text.contains("<html") && !answer.text.contains(code),
                "{page} {text}: {}",
                answer.text
            );
        }
    }
}

#[tokio::test]
async fn hostile_arguments_results_and_errors_are_text() {
    let house = House::with_worker("w<b>\"x").await;
    let site = house.local();
    let mut ids = Vec::new();
    for (text, _) in CORPUS {
        ids.push(house.failed(text).await);
        let sent = house.app.client().send(ECHO.call(text.to_owned())).await.unwrap();
        sent.wait(SOON).await.unwrap();
        ids.push(sent.id().clone());
    }
    site.until("/failures", |answer| answer.text.contains("alert")).await;
    for id in &ids {
        for page in pages::all(id) {
            let answer = site.get(&page).await;
            for (_, code) in CORPUS {
                assert!(!answer.text.contains(code), "{page} {code}: {}", answer.text);
            }
            assert!(!answer.text.contains("w<b>"), "{page}: {}", answer.text);
        }
    }
    let page = site.get(&format!("/tasks/{}", ids[0])).await;
    assert!(page.text.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{}", page.text);
}

#[tokio::test]
async fn json_is_never_a_page() {
    let house = House::open().await;
    let site = house.local();
    let id = house.failed("<script>alert(1)</script>").await;
    for path in [
        format!("/api/tasks/{id}"),
        format!("/api/tasks/{}", encoded("<script>")),
        "/api/%3Cscript%3E".to_owned(),
    ] {
        let answer = site.get(&path).await;
        assert!(answer.headers[CONTENT_TYPE].to_str().unwrap().starts_with("application/json"), "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused() {
    let house = House::open().await;
    let site = house.local();
    let body = format!("back=tasks&ids={}", "x".repeat(10 << 20));
    for path in ["/api/dead/replay", "/login"] {
        let headers =
            [("sec-fetch-site", "same-origin"), ("content-type", "application/x-www-form-urlencoded")];
        let answer = site.ask(request("POST", path, &headers).body(Body::from(body.clone())).unwrap()).await;
        assert_eq!(answer.status, 413, "{path}");
    }
}
