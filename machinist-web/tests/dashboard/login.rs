//! Sessions of people: they begin with a password, are shared by replicas, and end everywhere at once.

use std::{path::Path, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use machinist::{
    App,
    backend::{Commit, Expiry},
    id::{RecordId, RecordKind},
};
use machinist_web::{Access, Dashboard, end_sessions, hash_password};
use sha2::{Digest, Sha256};

use crate::support::{Answer, House, Site, request};

fn write_users(file: &Path, password: &str) {
    let hash = hash_password(password).unwrap();
    std::fs::write(file, format!("ada:operator:{hash}\nbob:viewer:{hash}\n")).unwrap();
}

fn replica(app: &App, file: &Path) -> Site {
    Site::new(Dashboard::new(app.clone(), Access::new().password_file(file).unwrap()).router())
}

async fn log_in(site: &Site, name: &str, password: &str, back: &str) -> Answer {
    site.press("/login", &format!("name={name}&password={password}&back={back}")).await
}

/// Returns the cookie that an answer sets.
fn cookie(answer: &Answer) -> String {
    let set = answer.header("set-cookie");
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Path=/"), "{set}");
    set.split(';').next().unwrap().to_owned()
}

async fn with_cookie(site: &Site, method: &str, path: &str, cookie: &str) -> Answer {
    let headers = [("cookie", cookie), ("sec-fetch-site", "same-origin")];
    site.ask(request(method, path, &headers).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_session_is_shared_by_replicas_and_ends_everywhere() {
    let house = House::open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    write_users(file.path(), "sesame");
    let (one, two) = (replica(&house.app, file.path()), replica(&house.app, file.path()));
    one.get("/tasks?state=FAILURE").await.is(303).header("location").contains("login?back=tasks");
    one.get("/api/queues").await.is(401);
    let refused = log_in(&one, "ada", "wrong", "").await.is(401);
    assert!(refused.header("set-cookie").is_empty());
    log_in(&one, "nobody", "sesame", "").await.is(401);
    let begun = log_in(&one, "ada", "sesame", "tasks%3Fstate%3DFAILURE").await.is(303);
    assert_eq!(begun.header("location"), "./tasks?state=FAILURE");
    let session = cookie(&begun);
    for site in [&one, &two] {
        with_cookie(site, "GET", "/tasks", &session).await.is(200).has(&["ada", "Log out"]);
    }
    let other = cookie(&log_in(&two, "ada", "sesame", "").await.is(303));
    // Cookies are never exempt from the check of the origin.
    let elsewhere = [("cookie", session.as_str()), ("sec-fetch-site", "cross-site")];
    one.ask(request("POST", "/logout", &elsewhere).body(Body::empty()).unwrap()).await.is(403);
    with_cookie(&two, "POST", "/logout", &session).await.is(303);
    with_cookie(&one, "GET", "/tasks", &session).await.is(303);
    with_cookie(&one, "GET", "/tasks", &other).await.is(200);
    end_sessions(&house.app, "ada").await.unwrap();
    with_cookie(&one, "GET", "/tasks", &other).await.is(303);
    let again = cookie(&log_in(&one, "ada", "sesame", "").await.is(303));
    with_cookie(&two, "GET", "/tasks", &again).await.is(200);
}

#[tokio::test]
async fn a_new_password_ends_the_sessions_and_counts_without_a_restart() {
    let house = House::open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    write_users(file.path(), "sesame");
    let site = replica(&house.app, file.path());
    let session = cookie(&log_in(&site, "ada", "sesame", "").await.is(303));
    with_cookie(&site, "GET", "/tasks", &session).await.is(200);
    write_users(file.path(), "other");
    let ended = machinist_conformance::eventually(crate::support::SOON, async || {
        with_cookie(&site, "GET", "/tasks", &session).await.status == 303
    });
    assert!(ended.await);
    log_in(&site, "ada", "other", "").await.is(303);
    std::fs::remove_file(file.path()).unwrap();
    let closed = machinist_conformance::eventually(crate::support::SOON, async || {
        with_cookie(&site, "GET", "/tasks", &session).await.status == 503
    });
    assert!(closed.await, "without the file nobody is let in");
}

#[tokio::test]
async fn who_can_write_to_the_backend_cannot_make_a_session() {
    let house = House::open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    write_users(file.path(), "sesame");
    let site = replica(&house.app, file.path());
    let id = "ab".repeat(32);
    let digest: String = Sha256::digest(id.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut commit = Commit::new(RecordId::new(RecordKind::Login, &digest));
    let at = house.app.clock().now().as_micros();
    let forged = format!("{{\"user\": \"ada\", \"at\": {at}, \"proof\": \"{}\"}}", "00".repeat(32));
    commit.facts = vec![("login".into(), Bytes::from(forged))];
    commit.expiry = Expiry::After(std::time::Duration::from_secs(60));
    house.app.backend().commit(vec![Arc::new(commit)]).await.remove(0).unwrap();
    let answer = with_cookie(&site, "GET", "/tasks", &format!("machinist_session={id}")).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    for cookie in ["machinist_session=", "machinist_session=x", "other=1", "machinist_session=../../x"] {
        with_cookie(&site, "GET", "/tasks", cookie).await.is(303);
    }
}

#[tokio::test]
async fn after_some_wrong_passwords_a_name_has_to_wait() {
    let house = House::open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    write_users(file.path(), "sesame");
    let site = replica(&house.app, file.path());
    for _ in 0..5 {
        log_in(&site, "ada", "wrong", "").await.is(401);
    }
    let waits = log_in(&site, "ada", "sesame", "").await.is(429);
    assert!(waits.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds <= 61));
    log_in(&site, "bob", "sesame", "").await.is(303);
}

#[tokio::test]
async fn after_the_log_in_a_browser_stays_here() {
    let house = House::open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    write_users(file.path(), "sesame");
    let site = replica(&house.app, file.path());
    for back in [
        "https://evil.example",
        "//evil.example",
        "%2F%2Fevil.example",
        "javascript:alert(1)",
        "../x",
        "%5Cevil",
        "tasks%0d%0aX:1",
    ] {
        let begun = log_in(&site, "ada", "sesame", back).await.is(303);
        assert_eq!(begun.header("location"), "./", "{back}");
    }
}
