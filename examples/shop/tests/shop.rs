//! Tests of the shop: requests, tasks, retries, and a worker that dies. None of them needs a server or waits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use machinist::{LazyApp, prelude::*};
use machinist_example_shop::{
    routes,
    tasks::{self, CHARGE, Charges, Order, REPORT, SEND_MAIL, TOTAL},
};
use machinist_test::{ArrowStep, Side, TestApp, assert_enqueued, refute_enqueued, run_one};
use tower::ServiceExt;

async fn shop() -> (TestApp, Charges) {
    let charges = Charges::default();
    let shared = Arc::clone(&charges);
    (TestApp::new(move |worker| tasks::with_tasks(worker, Arc::clone(&shared))).await, charges)
}

async fn ask(app: &TestApp, request: Request<String>) -> (StatusCode, String) {
    let answer = routes(LazyApp::from(app.app().clone())).oneshot(request.map(Body::from)).await.unwrap();
    let status = answer.status();
    let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn post(body: &str) -> Request<String> {
    Request::post("/orders").header("content-type", "application/json").body(body.into()).unwrap()
}

fn get(id: &str) -> Request<String> {
    Request::get(format!("/orders/{id}")).body(String::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_order_becomes_a_task_and_its_total_is_shown() {
    let (app, _) = shop().await;
    let (status, id) = ask(&app, post(r#"{"email": "ada@example.org", "cents": [5, 7]}"#)).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_enqueued!(app, name = "total", queue = "orders", count = 1);
    assert_eq!(ask(&app, get(&id)).await.1, r#"{"results":null,"state":"PENDING"}"#);
    assert!(app.drain().await[0].is_success());
    assert_eq!(ask(&app, get(&id)).await.1, r#"{"results":[12],"state":"SUCCESS"}"#);
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_none_sends_nothing() {
    let (app, _) = shop().await;
    assert_eq!(ask(&app, post("{}")).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    refute_enqueued!(app);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_order_is_not_found() {
    let (app, _) = shop().await;
    assert_eq!(ask(&app, get("01a1fd8a-b773-7480-bf6b-858cf2a99832")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_total_is_a_sum() {
    let order = Order { email: "ada@example.org".into(), cents: vec![5, 7] };
    assert_eq!(run_one(TOTAL, tasks::total, order, TaskContext::builder().build()).await.unwrap(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_refused_card_is_not_tried_again() {
    let (app, _) = shop().await;
    app.send(CHARGE.call(0)).await;
    let runs = app.drain_scheduled().await;
    assert!(runs.len() == 1 && runs[0].is_failure());
}

#[tokio::test(start_paused = true)]
async fn a_busy_bank_is_asked_again_half_a_minute_later() {
    let (app, _) = shop().await;
    app.send(CHARGE.call(1)).await;
    assert!(app.drain().await[0].is_retry());
    assert_enqueued!(app, name = "charge", due = Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_charge_whose_worker_dies_is_made_once() {
    let (app, charges) = shop().await;
    app.send(CHARGE.call(500)).await;
    app.crash_at(ArrowStep::Record, Side::Before);
    assert!(app.drain().await.is_empty());
    assert!(app.drain().await[0].is_success());
    assert_eq!(charges.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_mail_is_tried_again_by_another_server() {
    let (app, _) = shop().await;
    let sent = app.send(SEND_MAIL.call("ada@example.org")).await;
    let runs = app.drain_scheduled().await;
    assert!(runs[0].is_retry() && runs[1].is_success());
    assert_eq!(sent.wait(Duration::ZERO).await.unwrap(), "sent to ada@example.org");
}

#[tokio::test(start_paused = true)]
async fn a_mail_without_address_fails_at_once() {
    let (app, _) = shop().await;
    let sent = app.send(SEND_MAIL.call("ada")).await;
    app.drain_scheduled().await;
    assert!(sent.wait(Duration::ZERO).await.unwrap_err().to_string().contains("ada is no address"));
}

#[tokio::test(start_paused = true)]
async fn a_report_can_be_ordered_for_next_month() {
    const MONTH: Duration = Duration::from_secs(30 * 86_400);
    let (app, _) = shop().await;
    app.send(REPORT.call(4).countdown(MONTH)).await;
    assert_enqueued!(app, name = "report", due = MONTH);
    assert!(app.travel(MONTH).await[0].is_success());
}
