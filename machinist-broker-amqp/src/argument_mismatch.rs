//! Explains RabbitMQ's error for an exchange or queue that already exists with other arguments.

/// Turns `PRECONDITION_FAILED - inequivalent arg …` into a sentence with the object, the argument, both values and the
/// remedy.
pub(crate) fn explain(object: &str, text: &str) -> String {
    const REMEDY: &str = "drain it and delete it, so that it is declared again, or set topology to \"verify\" to use it as \
                          it is";
    match parse(text) {
        Some(ArgumentMismatch { argument, ours, theirs }) => {
            let hint = match (argument, theirs) {
                ("x-queue-type" | "type", "classic") => ", or set queue_type to classic",
                ("x-queue-type" | "type", "quorum") => ", or set queue_type to quorum",
                // The broker may complain about any of the arguments first.
                (_, "none") => ", or set queue_type to classic if it is a classic queue",
                _ => "",
            };
            format!(
                "{object} exists on the broker with {argument} = {theirs}, and is declared here with {ours}; {REMEDY}{hint}"
            )
        }
        None => {
            format!("{object} exists on the broker and differs from what is declared here ({text}); {REMEDY}")
        }
    }
}

/// An argument whose value on the broker differs from ours.
#[derive(Debug, PartialEq)]
struct ArgumentMismatch<'a> {
    argument: &'a str,
    ours: &'a str,
    theirs: &'a str,
}

/// Parses the sentence, which is the same from RabbitMQ 3.8 to 4.3:
/// `… inequivalent arg 'A' for queue 'Q' in vhost 'V': received X but current is Y`, where X and Y are `none`,
/// `'value'` or `the value 'value' of type 'type'`.
fn parse(text: &str) -> Option<ArgumentMismatch<'_>> {
    let argument = quoted(text.split_once("inequivalent arg ")?.1)?;
    let (ours, theirs) = text.split_once("received ")?.1.split_once(" but current is ")?;
    Some(ArgumentMismatch { argument, ours: value(ours), theirs: value(theirs) })
}

fn value(text: &str) -> &str {
    quoted(text.strip_prefix("the value ").unwrap_or(text)).unwrap_or(text)
}

fn quoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('\'')?;
    Some(&inner[..inner.find('\'')?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_sentences() {
        let limit = "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'mail' in vhost '/': \
                     received the value '1000' of type 'long' but current is the value '20' of type 'signedint'";
        let expected = ArgumentMismatch { argument: "x-delivery-limit", ours: "1000", theirs: "20" };
        assert_eq!(parse(limit), Some(expected));
        let none = "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'mail' in vhost '/': \
                    received the value 'machinist.dead' of type 'longstr' but current is none";
        assert_eq!(
            parse(none),
            Some(ArgumentMismatch {
                argument: "x-dead-letter-exchange",
                ours: "machinist.dead",
                theirs: "none"
            })
        );
        let exchange = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'machinist' in vhost '/': \
                        received 'direct' but current is 'topic'";
        assert_eq!(
            parse(exchange),
            Some(ArgumentMismatch { argument: "type", ours: "direct", theirs: "topic" })
        );
        assert_eq!(parse("PRECONDITION_FAILED - something new"), None);
    }

    #[test]
    fn the_explanation_names_queue_argument_values_and_remedy() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'mail' in vhost '/': \
                    received the value 'quorum' of type 'longstr' but current is the value 'classic' of type 'longstr'";
        let said = explain("queue mail", text);
        for part in ["queue mail", "x-queue-type", "classic", "quorum", "delete", "queue_type to classic"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
