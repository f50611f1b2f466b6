//! Wire profile of a program that publishes lines such as `resize,photo.jpg,200`: the name of a task and its
//! arguments, separated by commas. The id of the task is the id of the message.

use std::fmt::Display;

use machinist_core::{Arg, Profile, ProfileError, TaskId, TaskMessage, TaskName, broker::Message};
use serde_json::Value;

/// Format of lines with commas. An argument is an integer if it is written as Rust writes one, otherwise text.
///
/// Quotes have no meaning in it, so a text with a comma, or one that looks like an integer, cannot be sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct CsvProfile;

impl Profile for CsvProfile {
    fn name(&self) -> &str {
        "csv"
    }

    fn read(&self, message: &Message) -> Result<TaskMessage, ProfileError> {
        let line = std::str::from_utf8(&message.body).map_err(|error| malformed(&error))?;
        let (name, values) = parse(line);
        // `read` is pure: an id that is made up here would be another one at each delivery.
        let id = message.id.as_deref().ok_or_else(|| malformed(&"the message has no id"))?;
        let id = TaskId::parse(id).map_err(|error| malformed(&error))?;
        let mut task = TaskMessage::new(id, TaskName::parse(name).map_err(|error| malformed(&error))?);
        task.args = values.into_iter().map(Arg::from_value).collect();
        task.priority = message.priority;
        Ok(task)
    }

    fn write(&self, task: &TaskMessage, source: Option<&Message>) -> Result<Message, ProfileError> {
        let line = line(task)?;
        let mut message = source.cloned().unwrap_or_default();
        message.id = Some(task.id.as_str().to_owned());
        message.content_type.get_or_insert_with(|| "text/csv".to_owned());
        message.priority = task.priority;
        message.body = line.into();
        Ok(message)
    }
}

/// Reads the name of a task and the values of its arguments.
fn parse(line: &str) -> (&str, Vec<Value>) {
    let mut cells = line.trim_end_matches(['\r', '\n']).split(',');
    let name = cells.next().unwrap_or_default();
    (name, cells.map(value).collect())
}

fn value(cell: &str) -> Value {
    match cell.parse::<i64>() {
        // `007` is a text: as a number it would lose its zeros.
        Ok(number) if number.to_string() == cell => number.into(),
        _ => cell.into(),
    }
}

/// Writes a task as a line, if `parse` reads the same task from that line.
fn line(task: &TaskMessage) -> Result<String, ProfileError> {
    let inexpressible = |what: &str| ProfileError::Inexpressible(what.to_owned());
    if task.args.iter().any(|arg| !arg.name.is_empty()) {
        return Err(inexpressible("a line has no named arguments"));
    }
    let values = task.args.iter().map(|arg| arg.value.clone()).collect::<Vec<_>>();
    let cells = values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let line = std::iter::once(task.name.as_str().to_owned()).chain(cells).collect::<Vec<_>>().join(",");
    if parse(&line) != (task.name.as_str(), values) {
        return Err(inexpressible("an argument is neither an integer nor a plain text without commas"));
    }
    Ok(line)
}

fn malformed(error: &dyn Display) -> ProfileError {
    ProfileError::Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(id: Option<&str>, body: &'static str) -> Message {
        Message { id: id.map(str::to_owned), body: body.into(), ..Message::default() }
    }

    fn task(args: &[Value]) -> TaskMessage {
        let mut task = TaskMessage::new(TaskId::parse("7").unwrap(), TaskName::parse("resize").unwrap());
        task.args = args.iter().cloned().map(Arg::from_value).collect();
        task
    }

    #[test]
    fn a_written_task_is_read_as_the_same_task() {
        for args in
            [vec![], vec![json!("")], vec![json!("photo.jpg"), json!(200)], vec![json!("007"), json!(-7)]]
        {
            let message = CsvProfile.write(&task(&args), None).unwrap();
            assert_eq!(CsvProfile.read(&message).unwrap(), task(&args));
        }
    }

    #[test]
    fn what_a_line_cannot_hold_is_inexpressible() {
        for arg in [json!("a,b"), json!("200"), json!(1.5), json!(null), json!([1]), json!("end\n")] {
            let written = CsvProfile.write(&task(std::slice::from_ref(&arg)), None);
            assert!(matches!(written, Err(ProfileError::Inexpressible(_))), "{arg}");
        }
    }

    #[test]
    fn messages_without_an_id_or_a_name_are_malformed() {
        for wrong in [message(None, "resize"), message(Some("7"), ""), message(Some(""), "resize")] {
            assert!(matches!(CsvProfile.read(&wrong), Err(ProfileError::Malformed(_))), "{wrong:?}");
        }
    }
}
