//! The cause for which RabbitMQ dead-lettered a message by itself, read from its death headers.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use machinist_adapter::broker::DeadLetterCause;

/// Header with one table for each queue and reason, the latest first.
const DEATHS: &str = "x-death";

/// Returns the cause for which a message left `queue`, if it did. A delayed message also left the queues of its delays,
/// which is no cause.
pub(crate) fn cause(properties: &BasicProperties, queue: &str) -> Option<DeadLetterCause> {
    let Some(AMQPValue::FieldArray(deaths)) = properties.headers().as_ref()?.inner().get(DEATHS) else {
        return None;
    };
    let reason = deaths.as_slice().iter().find_map(|death| match death {
        AMQPValue::FieldTable(death) if text(death, "queue").as_deref() == Some(queue) => {
            text(death, "reason")
        }
        _ => None,
    })?;
    Some(match reason.as_str() {
        "delivery_limit" => DeadLetterCause::DeliveryLimit,
        "maxlen" => DeadLetterCause::QueueFull,
        "expired" => DeadLetterCause::Expired,
        "rejected" => DeadLetterCause::Rejected,
        _ => DeadLetterCause::Other(reason),
    })
}

fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    fn died(deaths: &[(&str, &str)]) -> BasicProperties {
        let table = |(queue, reason): &(&str, &str)| {
            let mut table = FieldTable::default();
            table.insert("queue".into(), AMQPValue::LongString((*queue).into()));
            table.insert("reason".into(), AMQPValue::LongString((*reason).into()));
            AMQPValue::FieldTable(table)
        };
        let deaths: Vec<AMQPValue> = deaths.iter().map(table).collect();
        let mut headers = FieldTable::default();
        headers.insert(DEATHS.into(), AMQPValue::FieldArray(FieldArray::from(deaths)));
        BasicProperties::default().with_headers(headers)
    }

    #[test]
    fn the_cause_is_that_of_the_task_queue() {
        let delays = ("machinist.delay.1.3", "expired");
        assert_eq!(cause(&died(&[("q", "maxlen"), delays]), "q"), Some(DeadLetterCause::QueueFull));
        assert_eq!(
            cause(&died(&[("q", "delivery_limit"), delays]), "q"),
            Some(DeadLetterCause::DeliveryLimit)
        );
        assert_eq!(cause(&died(&[("q", "late")]), "q"), Some(DeadLetterCause::Other("late".to_owned())));
        assert_eq!(cause(&died(&[delays]), "q"), None);
        assert_eq!(cause(&BasicProperties::default(), "q"), None);
    }
}
