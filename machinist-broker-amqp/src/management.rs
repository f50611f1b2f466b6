//! Questions to the management API, for what AMQP itself has no way to ask.

use std::{net::SocketAddr, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::endpoint::Endpoint;

/// Maximum time of a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of an answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Returns the name of a queue, which every answer has.
pub(crate) fn name(queue: &Value) -> &str {
    queue["name"].as_str().unwrap_or_default()
}

/// Reads these columns of all queues of the vhost. Statistics cost the broker more than the rest.
///
/// # Errors
/// What the API does instead, in words that follow "the management API on port N".
pub(crate) async fn queues(
    endpoint: &Endpoint,
    port: u16,
    columns: &str,
    statistics: bool,
) -> Result<Vec<Value>, String> {
    if endpoint.address.tls() {
        return Err("is asked without TLS only".to_owned());
    }
    match timeout(ANSWER_TIMEOUT, ask(endpoint, port, columns, statistics)).await {
        Ok(answer) => answer.map_err(|error| format!("does not tell ({error})")),
        Err(_) => Err("does not answer".to_owned()),
    }
}

async fn ask(endpoint: &Endpoint, port: u16, columns: &str, statistics: bool) -> Result<Vec<Value>, String> {
    let user = endpoint.address.uri().authority.userinfo;
    let stream = TcpStream::connect(SocketAddr::new(endpoint.peer.ip(), port)).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let vhost: String = endpoint.address.vhost().bytes().map(|byte| format!("%{byte:02X}")).collect();
    let disable = if statistics { "" } else { "&disable_stats=true" };
    let request = Request::get(format!("/api/queues/{vhost}?columns={columns}{disable}"))
        .header(header::HOST, endpoint.address.host())
        .header(
            header::AUTHORIZATION,
            format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", user.username, user.password))),
        )
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    // The connection drives the request, and may end as soon as the answer is there.
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => {
            return Err(
                "this user has no management tag: rabbitmqctl set_user_tags USER management".to_owned()
            );
        }
        status => return Err(format!("it answered {status}")),
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    match serde_json::from_slice(&body.map_err(|error| error.to_string())?.to_bytes()) {
        Ok(Value::Array(queues)) => Ok(queues),
        _ => Err("its answer is no list of queues".to_owned()),
    }
}
