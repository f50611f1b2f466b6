//! Link to the trace of a task, in whatever program shows traces.

use std::fmt;

use machinist_core::view::TaskView;

/// Fields that a template may have.
const FIELDS: [&str; 4] = ["trace_id", "id", "task", "queue"];

/// Template of a link to the trace of a task, such as `https://traces.example/trace/{trace_id}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceLink(String);

/// Task whose trace is linked.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracedTask<'a> {
    /// Id of the trace.
    pub trace_id: &'a str,
    /// Id of the task.
    pub id: &'a str,
    /// Name of the task.
    pub task: &'a str,
    /// Queue of the task.
    pub queue: &'a str,
}

impl TraceLink {
    /// Reads a template: an address of http or https, with `{trace_id}`, and perhaps `{id}`, `{task}` and `{queue}`.
    ///
    /// # Errors
    /// A sentence that says what is wrong, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "write one like https://traces.example/trace/{trace_id}";
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let Some(rest) = rest else {
            return Err(format!("{text:?} is no address of http or https; {example}"));
        };
        if rest.is_empty() || rest.starts_with(['/', '?', '#', '{']) {
            return Err(format!("{text:?} names no host; {example}"));
        }
        if let Some(odd) =
            text.chars().find(|c| c.is_control() || c.is_whitespace() || "\"<>\\^`|".contains(*c))
        {
            return Err(format!("{text:?} has {odd:?}, which no address has; {example}"));
        }
        let mut parts = text.split('{');
        let begins_badly = parts.next().is_some_and(|part| part.contains('}'));
        let mut has_trace = false;
        for part in parts {
            let field =
                part.split_once('}').filter(|(_, after)| !after.contains('}')).map(|(field, _)| field);
            let Some(field) = field.filter(|field| FIELDS.contains(field)) else {
                return Err(format!(
                    "{text:?} has a field that is none of {{{}}}; {example}",
                    FIELDS.join("}, {")
                ));
            };
            has_trace |= field == "trace_id";
        }
        if begins_badly || !has_trace {
            return Err(format!("{text:?} has no {{trace_id}}; {example}"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the link to the trace of a task. Whatever is in a field stays one part of the address.
    pub fn of(&self, traced: TracedTask<'_>) -> String {
        let TracedTask { trace_id, id, task, queue } = traced;
        let mut link = String::with_capacity(self.0.len() + 64);
        let mut parts = self.0.split('{');
        link.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let (field, after) = part.split_once('}').unwrap_or((part, ""));
            let value = match field {
                "trace_id" => trace_id,
                "id" => id,
                "task" => task,
                _ => queue,
            };
            link.push_str(&encoded(value));
            link.push_str(after);
        }
        link
    }

    /// Adds the link to the view of a task that has a trace.
    pub fn add_to(&self, view: &mut TaskView) {
        view.trace_link = view.trace_id.as_deref().map(|trace_id| {
            self.of(TracedTask {
                trace_id,
                id: &view.id,
                task: view.name.as_deref().unwrap_or_default(),
                queue: view.queue.as_deref().unwrap_or_default(),
            })
        });
    }
}

/// Writes each byte that is not certainly harmless in an address as `%` and two digits.
fn encoded(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
        // A dot too: a path could go up by two of them.
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(byte).collect()
}

impl fmt::Display for TraceLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_the_fields_of_the_task_and_none_of_them_breaks_out() {
        let link = TraceLink::parse("https://t.example/{trace_id}?task={task}&q={queue}#{id}").unwrap();
        let traced = TracedTask { trace_id: "4bf92f", id: "a/../b", task: "x\"y&z", queue: "größe" };
        let made = link.of(traced);
        assert_eq!(made, "https://t.example/4bf92f?task=x%22y%26z&q=gr%C3%B6%C3%9Fe#a%2F%2E%2E%2Fb");
    }

    #[test]
    fn bad_templates_say_what_to_write() {
        for (text, part) in [
            ("javascript:alert({trace_id})", "no address of http or https"),
            ("ftp://t/{trace_id}", "no address of http or https"),
            ("https:///{trace_id}", "no host"),
            ("https://{trace_id}", "no host"),
            ("https://t.example/", "no {trace_id}"),
            ("https://t.example/{trace}", "none of {trace_id}, {id}"),
            ("https://t.example/{trace_id", "none of {trace_id}"),
            ("https://t.example/{trace_id}}", "none of {trace_id}"),
            ("https://t.example/}{trace_id}", "no {trace_id}"),
            ("https://t.example/a b{trace_id}", "' '"),
        ] {
            let said = TraceLink::parse(text).unwrap_err();
            assert!(said.contains(part) && said.contains("write one like"), "{text}: {said}");
        }
    }
}
