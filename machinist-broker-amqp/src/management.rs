//! Policies that threaten our queues, as the management API tells them: AMQP itself has no way to ask.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use machinist_adapter::diagnose::Finding;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::endpoint::Endpoint;

/// Maximum time of a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of an answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Number of queues that a finding names.
const NAMED_QUEUES: usize = 3;
const SUBJECT: &str = "policies";
/// Column of what all policies together set on a queue.
const DEFINITION: &str = "effective_policy_definition";

/// Keys of a policy that make the broker drop messages or delete queues.
const THREATS: [(&str, &str); 4] = [
    ("expires", "the broker deletes the queue while nobody uses it, with its messages"),
    ("message-ttl", "the broker drops messages that wait"),
    ("max-length", "the broker drops messages or refuses them"),
    ("max-length-bytes", "the broker drops messages or refuses them"),
];

/// Asks for the policies of all queues, and reports those that threaten the queues of a namespace.
pub(crate) async fn policies(
    endpoint: &Endpoint,
    port: u16,
    is_ours: impl Fn(&str, &Value) -> bool,
) -> Finding {
    let by_hand = "look at them yourself: `rabbitmqctl list_policies` and `list_operator_policies`; none of expires, \
                   message-ttl and max-length may match a queue of machinist";
    if endpoint.address.tls() {
        return Finding::warning(SUBJECT, "not seen: the management API is asked without TLS only", by_hand);
    }
    match timeout(ANSWER_TIMEOUT, queues_with_policies(endpoint, port, &is_ours)).await {
        Ok(Ok(queues)) => judge(&queues, is_ours),
        Ok(Err(error)) => {
            let found = format!("not seen: the management API on port {port} does not tell ({error})");
            Finding::warning(SUBJECT, found, by_hand)
        }
        Err(_) => {
            let found = format!("not seen: the management API on port {port} does not answer");
            Finding::warning(SUBJECT, found, by_hand)
        }
    }
}

/// Reads the queues of the vhost with the definitions of their policies.
async fn queues_with_policies(
    endpoint: &Endpoint,
    port: u16,
    is_ours: impl Fn(&str, &Value) -> bool,
) -> Result<Vec<Value>, String> {
    let is_complete = |queues: &[Value]| {
        let mut ours = queues.iter().filter(|queue| is_ours(name(queue), &queue["arguments"]));
        ours.all(|queue| !queue[DEFINITION].is_null())
    };
    // RabbitMQ before 4.0 has the definitions among its statistics only, which cost it more.
    for statistics in [false, true] {
        let queues = queues(endpoint, port, statistics).await?;
        if is_complete(&queues) {
            return Ok(queues);
        }
    }
    Err("it does not show what the policies set; its statistics may be disabled".to_owned())
}

/// Returns the name of a queue, which every answer has.
fn name(queue: &Value) -> &str {
    queue["name"].as_str().unwrap_or_default()
}

/// Reads the queues of the vhost.
async fn queues(endpoint: &Endpoint, port: u16, statistics: bool) -> Result<Vec<Value>, String> {
    let user = endpoint.address.uri().authority.userinfo;
    let stream = TcpStream::connect(SocketAddr::new(endpoint.peer.ip(), port)).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let vhost: String = endpoint.address.vhost().bytes().map(|byte| format!("%{byte:02X}")).collect();
    let columns = format!("name,policy,operator_policy,{DEFINITION},arguments");
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

/// Decides what the policies of these queues mean.
fn judge(queues: &[Value], is_ours: impl Fn(&str, &Value) -> bool) -> Finding {
    let mut threats: BTreeMap<(String, &str, &str), Vec<&str>> = BTreeMap::new();
    let mut ours = 0;
    for queue in queues {
        let name = name(queue);
        if !is_ours(name, &queue["arguments"]) {
            continue;
        }
        ours += 1;
        let policies = [queue["policy"].as_str(), queue["operator_policy"].as_str()];
        let policy =
            policies.into_iter().flatten().filter(|name| !name.is_empty()).collect::<Vec<_>>().join(", ");
        for (key, meaning) in THREATS {
            if !queue[DEFINITION][key].is_null() {
                threats.entry((policy.clone(), key, meaning)).or_default().push(name);
            }
        }
    }
    if threats.is_empty() {
        return Finding::good(SUBJECT, format!("none drops messages of the {ours} queues here"));
    }
    let told = threats.iter().map(|((policy, key, meaning), queues)| {
        let named = queues.iter().take(NAMED_QUEUES).copied().collect::<Vec<_>>().join(", ");
        let more = match queues.len().saturating_sub(NAMED_QUEUES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("policy {policy} sets {key} on {named}{more}: {meaning}")
    });
    let remedy = "exclude the queues of machinist from the pattern of the policy: rabbitmqctl list_policies";
    Finding::error(SUBJECT, told.collect::<Vec<_>>().join("; "), remedy)
}

#[cfg(test)]
mod tests {
    use machinist_adapter::diagnose::Level;
    use serde_json::json;

    use super::*;

    fn queue(name: &str, policy: &str, definition: &Value) -> Value {
        json!({"name": name, "policy": policy, "operator_policy": null, "arguments": {},
               "effective_policy_definition": definition})
    }

    #[test]
    fn a_policy_that_loses_messages_is_named() {
        let harmless = json!({"ha-mode": "all"});
        let deadly = json!({"expires": 5000, "message-ttl": 600_000});
        let mine = |name: &str, _: &Value| name.starts_with("m.");
        let queues =
            [queue("other", "all", &deadly), queue("m.a", "some", &harmless), queue("m.b", "", &json!([]))];
        let finding = judge(&queues, mine);
        assert_eq!((finding.level, finding.found.contains("2 queues")), (Level::Good, true), "{finding:?}");
        let queues: Vec<_> = (0..5).map(|n| queue(&format!("m.{n}"), "all", &deadly)).collect();
        let finding = judge(&queues, mine);
        assert_eq!(finding.level, Level::Error);
        for part in ["policy all sets expires on m.0, m.1, m.2 and 2 more", "message-ttl"] {
            assert!(finding.found.contains(part), "{finding:?}");
        }
    }
}
