//! Queues of the delays that hold messages whose time is over.
//!
//! The broker moves such a message to the next level and waits until that level has confirmed it. RabbitMQ 3.10 waits for as
//! long as a node of its cluster stays away if that node led the next level, and nothing passes the queue meanwhile. The
//! counts of AMQP leave these messages out; only the management API has them.

use std::{collections::HashMap, time::Duration};

use machinist_adapter::diagnose::Finding;
use serde_json::Value;

use crate::{
    endpoint::Endpoint,
    management::{self, name},
};

/// Interval between two looks. The statistics of the broker are up to 5 s old.
const LOOK_INTERVAL: Duration = Duration::from_secs(6);

/// Time that the broker may need to move a message, in milliseconds: a hundred times of what it needs.
const MOVE_MILLIS: u64 = 5000;

/// Number of queues that a finding names.
const NAMED_QUEUES: usize = 3;

/// Reports the queues that let nothing through, of those whose hold in milliseconds is given by name; `None` if there is
/// none, or if the management API does not tell.
///
/// # Cancel safety
/// Safe: it only looks.
pub(crate) async fn look(endpoint: &Endpoint, port: u16, holds: &HashMap<String, i64>) -> Option<Finding> {
    let first = overfull(&read(endpoint, port).await?, holds);
    if first.is_empty() {
        return None;
    }
    tokio::time::sleep(LOOK_INTERVAL).await;
    let second = overfull(&read(endpoint, port).await?, holds);
    judge(&first, &second)
}

async fn read(endpoint: &Endpoint, port: u16) -> Option<Vec<Value>> {
    match management::queues(endpoint, port, "name,messages_ready,messages_dlx", true).await {
        Ok(queues) => Some(queues),
        Err(error) => {
            tracing::debug!(port, error, "the management API does not tell what the delays hold");
            None
        }
    }
}

/// Returns the queues that hold more messages whose time is over than their flow explains, with that number.
///
/// By Little's law a queue with n waiting messages, which wait for a time t each, is left by n / t of them in a unit of
/// time, and n / t × m are on their way where each needs a time m.
fn overfull(queues: &[Value], holds: &HashMap<String, i64>) -> HashMap<String, u64> {
    let is_overfull = |queue: &Value| {
        let hold = u64::try_from(*holds.get(name(queue))?).ok()?;
        let due = queue["messages_dlx"].as_u64()?;
        let waiting = queue["messages_ready"].as_u64()?;
        (due.saturating_mul(hold) > waiting.saturating_mul(MOVE_MILLIS))
            .then(|| (name(queue).to_owned(), due))
    };
    queues.iter().filter_map(is_overfull).collect()
}

/// Decides what two looks mean: a queue with fewer messages than before is only slow.
fn judge(first: &HashMap<String, u64>, second: &HashMap<String, u64>) -> Option<Finding> {
    let mut stuck: Vec<(&String, u64)> = second
        .iter()
        .filter(|(queue, due)| first.get(*queue).is_some_and(|before| *due >= before))
        .map(|(queue, due)| (queue, *due))
        .collect();
    if stuck.is_empty() {
        return None;
    }
    stuck.sort_unstable();
    let named: Vec<String> =
        stuck.iter().take(NAMED_QUEUES).map(|(queue, due)| format!("{queue} holds {due} messages")).collect();
    let more = match stuck.len().saturating_sub(NAMED_QUEUES) {
        0 => String::new(),
        more => format!(", and {more} more queues hold such messages"),
    };
    Some(Finding::error(
        "delays",
        format!("{} whose time is over{more}: the broker does not move them on", named.join(", ")),
        "start the nodes of the cluster that are away; RabbitMQ before 3.12.5 waits for them. Workers publish overdue tasks \
         again from their records",
    ))
}

#[cfg(test)]
mod tests {
    use machinist_adapter::diagnose::Level;
    use serde_json::json;

    use super::*;

    fn queue(name: &str, ready: u64, due: u64) -> Value {
        json!({"name": name, "messages_ready": ready, "messages_dlx": due})
    }

    #[test]
    fn a_queue_holds_no_more_than_its_flow_explains() {
        let holds = HashMap::from([("short".to_owned(), 16), ("long".to_owned(), 1_048_576)]);
        let found = |ready, due| {
            let queues = [queue("short", ready, due), queue("long", ready, due), queue("other", 0, 9)];
            let mut names: Vec<String> = overfull(&queues, &holds).into_keys().collect();
            names.sort_unstable();
            names
        };
        assert!(found(0, 0).is_empty());
        assert_eq!(found(0, 1), ["long", "short"]);
        assert_eq!(found(1, 1), ["long"], "a queue that holds for 16 ms may move 300 for each that waits");
        assert!(found(10_000, 40).is_empty(), "10,000 that wait for 17 minutes leave at ten a second");
        assert_eq!(found(10_000, 60), ["long"]);
    }

    #[test]
    fn a_queue_that_lets_messages_through_is_only_slow() {
        let look = |due: &[(&str, u64)]| due.iter().map(|(name, due)| ((*name).to_owned(), *due)).collect();
        let first = look(&[("a", 5), ("b", 5), ("gone", 5)]);
        let finding = judge(&first, &look(&[("a", 4), ("b", 5), ("new", 7)])).unwrap();
        assert_eq!(finding.level, Level::Error);
        assert!(finding.found.starts_with("b holds 5 messages whose time is over:"), "{finding:?}");
        assert_eq!(judge(&first, &look(&[("a", 4), ("b", 0)])), None);
    }
}
