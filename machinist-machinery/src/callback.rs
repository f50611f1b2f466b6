//! Callbacks of Go machinery: the tasks that follow the end of another.
//!
//! Everything here is decided from the message and the recorded outcome, so that a worker which does it again publishes
//! the same tasks under the same ids.

use std::fmt::Write as _;

use machinist_core::Arg;
use sha2::{Digest, Sha256};

use crate::{
    json::{raw, write_text},
    signature::GoSignature,
    state::args_of,
};

/// Returns the callbacks of a success, with the results appended to their arguments, unless the task itself is immutable.
///
/// # Errors
/// A sentence: the message is wrong.
pub(crate) fn after_success(
    parent: &GoSignature,
    results: &[Arg],
    routing_key: &str,
) -> Result<Vec<GoSignature>, String> {
    let appended = if parent.flag("Immutable")? { Vec::new() } else { args_of(results) };
    let id = parent.text("UUID")?;
    let callbacks = parent.callbacks("OnSuccess")?.into_iter().enumerate();
    callbacks.map(|(at, callback)| callback.called(&id, "success", at, &[], &appended, routing_key)).collect()
}

/// Returns the callbacks of a failure, with its text before their arguments.
///
/// # Errors
/// A sentence: the message is wrong.
pub(crate) fn after_failure(
    parent: &GoSignature,
    error: &str,
    routing_key: &str,
) -> Result<Vec<GoSignature>, String> {
    let mut text = String::from("{\"Name\":\"\",\"Type\":\"string\",\"Value\":");
    write_text(&mut text, error);
    text.push('}');
    let id = parent.text("UUID")?;
    let callbacks = parent.callbacks("OnError")?.into_iter().enumerate();
    let prepended = [text];
    callbacks.map(|(at, callback)| callback.called(&id, "error", at, &prepended, &[], routing_key)).collect()
}

/// Returns the callback of a chord, with the results of all members, unless it is immutable.
///
/// # Errors
/// A sentence: the message is wrong.
pub(crate) fn after_chord(
    callback: GoSignature,
    group: &str,
    results: &[String],
    routing_key: &str,
) -> Result<GoSignature, String> {
    let appended = if callback.flag("Immutable")? { &[] } else { results };
    callback.called(group, "chord", 0, &[], appended, routing_key)
}

impl GoSignature {
    /// Completes a callback as Go does when it sends one.
    fn called(
        mut self,
        parent: &str,
        kind: &str,
        at: usize,
        before: &[String],
        after: &[String],
        routing_key: &str,
    ) -> Result<Self, String> {
        if self.text("UUID")?.is_empty() {
            self.put_text("UUID", &derived_id(parent, kind, at));
        }
        if self.text("RoutingKey")?.is_empty() {
            self.put_text("RoutingKey", routing_key);
        }
        let headers = self.headers()?;
        self.put_headers(&headers);
        if !before.is_empty() || !after.is_empty() {
            self.surround_args(before, after)?;
        }
        Ok(self)
    }
}

/// Returns the id of a callback that has none: the same each time.
fn derived_id(parent: &str, kind: &str, at: usize) -> String {
    let digest = Sha256::digest(format!("{parent} {kind} {at}"));
    let mut id = String::from("task_");
    for (at, byte) in digest.iter().take(16).enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            id.push('-');
        }
        let _ = write!(id, "{byte:02x}");
    }
    id
}

impl GoSignature {
    /// Puts arguments before and behind those that are there.
    fn surround_args(&mut self, before: &[String], after: &[String]) -> Result<(), String> {
        let args = self.raw_args()?;
        let own = args.iter().map(|arg| arg.get());
        let all: Vec<&str> =
            before.iter().map(String::as_str).chain(own).chain(after.iter().map(String::as_str)).collect();
        self.put_raw("Args", raw(format!("[{}]", all.join(","))));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::sample;

    fn body(name: &str) -> String {
        sample("messages", name)["body_raw"].as_str().unwrap().to_owned()
    }

    fn parent(name: &str) -> GoSignature {
        GoSignature::parse(body(name).as_bytes()).unwrap()
    }

    /// The sample, with another id and another routing key.
    fn as_published(name: &str, id: &str, key: &str) -> String {
        let sample = sample("messages", name);
        let text = body(name).replace(sample["body"]["UUID"].as_str().unwrap(), id);
        text.replace(sample["body"]["RoutingKey"].as_str().unwrap(), key)
    }

    #[test]
    fn callbacks_are_those_that_a_worker_of_go_publishes() {
        let results = [Arg::from_value(json!(7))];
        let [callback] = &after_success(&parent("callbacks"), &results, "q").unwrap()[..] else { panic!() };
        let id = callback.text("UUID").unwrap();
        assert_eq!(callback.to_text(), as_published("on-success-as-published", &id, "q"));
        let again = after_success(&parent("callbacks"), &results, "q").unwrap();
        assert_eq!(again[0].to_text(), callback.to_text(), "the same each time");

        let [callback] = &after_failure(&parent("callbacks"), "boom", "q").unwrap()[..] else { panic!() };
        let other = callback.text("UUID").unwrap();
        assert_eq!(callback.to_text(), as_published("on-error-as-published", &other, "q"));
        assert_ne!(id, other);

        let member = parent("chord-member-0");
        let results = [
            "{\"Name\":\"\",\"Type\":\"int64\",\"Value\":2}",
            "{\"Name\":\"\",\"Type\":\"int64\",\"Value\":4}",
        ];
        let chord = member.chord_callback().unwrap().unwrap();
        let callback = after_chord(chord, "group", &results.map(str::to_owned), "q").unwrap();
        let id = callback.text("UUID").unwrap();
        assert!(id.starts_with("chord_"));
        assert_eq!(callback.to_text(), as_published("chord-callback-as-published", &id, "q"));
    }

    #[test]
    fn nothing_is_appended_for_an_immutable_task() {
        let results = [Arg::from_value(json!(7))];
        let mut immutable = parent("callbacks");
        immutable.put_raw("Immutable", raw("true".to_owned()));
        let callbacks = after_success(&immutable, &results, "q").unwrap();
        assert_eq!(callbacks[0].args().unwrap().len(), 1, "the task that is followed decides");
        let mut chord = parent("chord-member-0").chord_callback().unwrap().unwrap();
        chord.put_raw("Immutable", raw("true".to_owned()));
        let callback = after_chord(chord, "group", &["{}".to_owned()], "q").unwrap();
        assert!(callback.args().unwrap().is_empty(), "the callback decides");
        let chain = parent("chain-first-step");
        let [step] = &after_success(&chain, &results, "q").unwrap()[..] else { panic!() };
        assert_eq!(step.text("UUID").unwrap(), "task_db229e7a-69ea-4bc5-b84f-04e2d9b69e2b", "ids stay");
        assert_eq!(step.callbacks("OnSuccess").unwrap().len(), 1, "and what follows");
    }
}
