//! Policies that threaten our queues.

use std::collections::BTreeMap;

use machinist_adapter::diagnose::Finding;
use serde_json::Value;

use crate::{
    endpoint::Endpoint,
    management::{self, name},
};

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
pub(crate) async fn of_queues(
    endpoint: &Endpoint,
    port: u16,
    is_ours: impl Fn(&str, &Value) -> bool,
) -> Finding {
    let by_hand = "look at them yourself: `rabbitmqctl list_policies` and `list_operator_policies`; none of expires, \
                   message-ttl and max-length may match a queue of machinist";
    match queues_with_policies(endpoint, port, &is_ours).await {
        Ok(queues) => judge(&queues, is_ours),
        Err(error) => {
            Finding::warning(SUBJECT, format!("not seen: the management API on port {port} {error}"), by_hand)
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
        let columns = format!("name,policy,operator_policy,{DEFINITION},arguments");
        let queues = management::queues(endpoint, port, &columns, statistics).await?;
        if is_complete(&queues) {
            return Ok(queues);
        }
    }
    Err("does not show what the policies set; its statistics may be disabled".to_owned())
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
