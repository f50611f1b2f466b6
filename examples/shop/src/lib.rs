//! A web service that sends tasks and shows their results.

pub mod tasks;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use machinist::{LazyApp, LazySendError, TaskId};

use tasks::{Order, TOTAL};

/// Routes of the service.
pub fn routes(app: LazyApp) -> Router {
    Router::new().route("/orders", post(order)).route("/orders/{id}", get(shown)).with_state(app)
}

async fn order(
    State(app): State<LazyApp>,
    Json(order): Json<Order>,
) -> Result<(StatusCode, String), StatusCode> {
    let sent = app.send(TOTAL.call(order)).await.map_err(|error| match error {
        LazySendError::NotConnected(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    })?;
    Ok((StatusCode::ACCEPTED, sent.id().to_string()))
}

async fn shown(
    State(app): State<LazyApp>,
    Path(id): Path<String>,
) -> Result<Json<serde_json::Value>, StatusCode> {
    let id = TaskId::parse(&id).map_err(|_| StatusCode::NOT_FOUND)?;
    let app = app.app().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let record = app.client().result(id).record().await.map_err(|_| StatusCode::NOT_FOUND)?;
    let results =
        record.results.map(|results| results.0.into_iter().map(|arg| arg.value).collect::<Vec<_>>());
    Ok(Json(serde_json::json!({ "state": record.state, "results": results })))
}
