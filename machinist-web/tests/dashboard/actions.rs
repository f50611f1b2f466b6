//! Actions of the pages and of programs, end to end.

use axum::body::Body;
use machinist::{DeadFilter, TaskId};
use machinist_web::UserRole;

use crate::support::{House, SOON, request};

#[tokio::test]
async fn a_button_returns_to_the_same_filter_and_says_what_is_done() {
    let house = House::open().await;
    let site = house.local();
    let id = house.failed("no").await;
    let path = format!("/api/tasks/{id}/retry");
    let done = site.press(&path, "back=tasks%3Fstate%3DFAILURE%26error%3Dno").await.is(303);
    let location = done.header("location").to_owned();
    assert!(location.starts_with("../../../tasks?state=FAILURE&error=no&done=retry&sent="), "{location}");
    let page = site.get(location.trim_start_matches("../../..")).await.is(200);
    let page = page.has(&["It was sent again.", "Show the task"]);
    assert!(!page.text.contains("value=\"retry\""), "the notice is not part of the filter: {}", page.text);
    let again = location.rsplit('=').next().unwrap();
    let record = house.app.result(TaskId::parse(again).unwrap()).record().await.unwrap();
    assert_eq!(record.retry_of.as_ref(), Some(&id));
    let refused = site.press("/api/tasks/nothing/retry", "back=tasks").await.is(404);
    assert!(refused.text.contains("href=\"../../../tasks\""), "{refused:?}");
}

#[tokio::test]
async fn two_people_who_do_the_same_do_it_once() {
    let house = House::open().await;
    let site = house.local();
    let id = house.failed("no").await;
    let path = format!("/api/tasks/{id}/retry");
    let press = || async {
        let headers = [("sec-fetch-site", "same-origin")];
        site.ask(request("POST", &path, &headers).body(Body::empty()).unwrap()).await.is(200).json()
    };
    let (one, two) = tokio::join!(press(), press());
    assert_eq!(one["id"], two["id"]);
}

#[tokio::test]
async fn selected_dead_letters_are_replayed_and_purged_and_no_others() {
    let house = House::open().await;
    let site = house.local();
    for number in 0..3 {
        house.failed(&format!("no {number}")).await;
    }
    let listed = async || house.app.client().dead_letters(&DeadFilter::default(), 10).await.unwrap();
    let ids: Vec<String> = listed().await.into_iter().map(|letter| letter.dead_id).collect();
    assert_eq!(ids.len(), 3);
    site.get("/dead?select=all").await.is(200).has(&["checked", ids[0].as_str()]);
    let form = format!("back=dead%3Fqueue%3Dmail&ids={}", ids[0]);
    let done = site.press("/api/dead/purge", &form).await.is(303);
    assert_eq!(done.header("location"), "../../dead?queue=mail&done=purge");
    let left: Vec<String> = listed().await.into_iter().map(|letter| letter.dead_id).collect();
    assert_eq!(left, ids[1..]);
    let headers = [("sec-fetch-site", "same-origin")];
    let body = serde_json::json!({ "ids": [ids[1], ids[0]] }).to_string();
    let replayed = site
        .ask(request("POST", "/api/dead/replay", &headers).body(Body::from(body)).unwrap())
        .await
        .is(200)
        .json();
    assert_eq!(replayed[0]["outcome"]["done"], "replayed");
    assert_eq!(replayed[1]["outcome"]["done"], "missing");
    site.press("/api/dead/replay", "back=dead").await.is(400).has(&["No dead letter was selected"]);
    for body in ["", "{}", "{\"ids\": []}", "{\"all\": true}"] {
        let answer =
            site.ask(request("POST", "/api/dead/purge", &headers).body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.status, 400, "an empty selection is never everything: {answer:?}");
    }
}

#[tokio::test]
async fn a_queue_and_a_worker_are_paused_and_resumed() {
    let house = House::open().await;
    let site = house.local();
    site.until("/workers", |answer| answer.text.contains("1 live workers")).await;
    site.press("/api/queues/mail/pause", "back=queues%2Fmail").await.is(303);
    site.get("/queues/mail").await.is(200).has(&["‖ paused", "Resume"]);
    site.press("/api/queues/mail/resume", "back=queues%2Fmail").await.is(303);
    site.get("/queues/mail").await.is(200).has(&["✓ open", "Pause"]);
    let paused = site.press("/api/workers/one/pause", "back=workers%2Fone").await.is(303);
    assert_eq!(paused.header("location"), "../../../workers/one?done=pause");
    site.until("/workers/one", |answer| answer.text.contains("asleep")).await;
    site.press("/api/workers/one/resume", "back=workers%2Fone").await.is(303);
    site.press("/api/workers/on/pause", "back=workers").await.is(404).has(&["did you mean one?"]);
}

#[tokio::test]
async fn a_program_sends_and_revokes_a_task() {
    let house = House::open().await;
    let site = house.with_tokens(|dashboard| dashboard);
    let post = async |path: &str, body: &str| {
        let headers = [("authorization", "Bearer admin-admin-admin")];
        site.ask(request("POST", path, &headers).body(Body::from(body.to_owned())).unwrap()).await
    };
    let sent =
        post("/api/tasks", r#"{"name": "echo", "args": ["hello"], "queue": "mail"}"#).await.is(200).json();
    let id = TaskId::parse(sent["id"].as_str().unwrap()).unwrap();
    let record = house.app.result(id.clone()).wait_record(SOON).await.unwrap();
    assert_eq!(record.results.unwrap().0[0].value, "hello");
    let revoked = post(&format!("/api/tasks/{id}/revoke"), "").await.is(200).json();
    assert_eq!(revoked["revoked"], "already");
    for body in
        ["", "[]", r#"{"name": ""}"#, r#"{"name": "echo", "else": 1}"#, r#"{"name": "echo", "queue": " "}"#]
    {
        post("/api/tasks", body).await.is(400);
    }
    assert_eq!(UserRole::Admin.as_str(), "admin");
}

#[tokio::test]
async fn a_group_of_failures_is_silenced_and_listed_again() {
    let house = House::open().await;
    let site = house.local();
    house.failed("the disk is full").await;
    let listed = site.until("/api/failures", |answer| answer.text.contains("fingerprint")).await.json();
    let group = listed[0]["fingerprint"].as_str().unwrap().to_owned();
    assert!(listed[0]["silenced_until"].is_null(), "{listed}");
    site.get("/failures").await.is(200).has(&["the disk is full", "Silence for a week"]);
    let done = site.press(&format!("/api/failures/{group}/silence"), "back=failures&for=1d").await.is(303);
    assert_eq!(done.header("location"), "../../../failures?done=silence");
    let page = site
        .get("/failures?done=silence")
        .await
        .is(200)
        .has(&["The group is silenced", "Show 1 silenced groups"]);
    assert!(!page.text.contains("the disk is full"), "{page:?}");
    site.get("/failures?all=1").await.is(200).has(&["the disk is full", "silenced until", "List it again"]);
    site.get(&format!("/tasks?group={group}")).await.is(200).has(&["silenced until", "List it again"]);
    assert!(site.get("/api/failures").await.json()[0]["silenced_until"].is_string());
    site.press(&format!("/api/failures/{group}/unsilence"), "back=failures").await.is(303);
    site.get("/failures").await.is(200).has(&["the disk is full", "Silence for a week"]);
    site.get(&format!("/tasks?group={group}")).await.is(200).has(&["name=\"for\"", "30 days"]);
    let post = async |path: &str, body: &'static str| {
        let headers = [("sec-fetch-site", "same-origin")];
        site.ask(request("POST", path, &headers).body(Body::from(body)).unwrap()).await
    };
    let path = format!("/api/failures/{group}/silence");
    let told = post(&path, r#"{"for": "1h"}"#).await.is(200).json();
    assert!(told["fingerprint"] == group.as_str() && told["silenced_until"].is_string(), "{told}");
    post(&path, "").await.is(200);
    post(&path, r#"{"for": "soon"}"#).await.is(400).has(&["for=soon"]);
    post(&path, r#"{"until": "1h"}"#).await.is(400);
    post("/api/failures/nothing/silence", "").await.is(404).has(&["no listed failure has the fingerprint"]);
}

#[tokio::test]
async fn a_form_sends_a_task_with_the_types_that_its_worker_tells() {
    let house = House::open().await;
    let site = house.local();
    let form = site.until("/send?task=echo", |answer| answer.status == 200).await;
    form.has(&[
        "action=\"./api/tasks\"",
        "argument 1 (string)",
        "name=\"name\" value=\"echo\"",
        "name=\"queue\" value=\"mail\"",
    ]);
    site.get("/send").await.is(200).has(&[
        "href=\"./send?task=echo\"",
        "href=\"./send?task=fail\"",
        "✓ enabled",
    ]);
    site.get("/send?name=cho").await.is(200).has(&["1 tasks that live workers know"]);
    let registered = site.get("/api/registered").await.is(200).json();
    let echo = registered.as_array().unwrap().iter().find(|task| task["name"] == "echo").unwrap();
    assert_eq!(echo["args"][0]["type"], "string");
    let form = "back=send%3Ftask%3Decho&name=echo&arg=12&queue=mail";
    let done = site.press("/api/tasks", form).await.is(303);
    let location = done.header("location");
    assert!(location.starts_with("../send?task=echo&done=send&sent="), "{location}");
    let id = TaskId::parse(location.rsplit('=').next().unwrap()).unwrap();
    let record = house.app.result(id).wait_record(SOON).await.unwrap();
    assert_eq!(record.results.unwrap().0[0].value, "12", "a text, though it looks like a number");
    let refused = site.press("/api/tasks", "back=send&name=unknown&arg=1").await.is(404);
    refused.has(&["No live worker knows the task", "href=\"../send\""]);
    let refused = site.press("/api/tasks", "back=send&name=echo&queue=mail").await.is(400);
    refused.has(&["takes 1 arguments, and the form has 0"]);
    let foreign = [("sec-fetch-site", "cross-site"), ("content-type", "application/x-www-form-urlencoded")];
    site.ask(request("POST", "/api/tasks", &foreign).body(Body::from(form)).unwrap()).await.is(403);
}
