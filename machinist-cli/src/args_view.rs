//! Arguments of tasks, as the commands show them. Pure, except that records are read.

use machinist::{App, KnownArgs, TaskId, settings::Settings};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{exit::CliError, spelling::as_argument, visible};

/// Maximum length of the arguments in a row of a table, in characters.
const ROW_CHARS: usize = 60;

/// Arguments of a task: JSON fields that other views contain.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ArgsView {
    /// Arguments in order; `None` if they are not shown.
    args: Option<Vec<Value>>,
    /// Arguments by name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    named_args: Map<String, Value>,
    /// Reason that they are not shown.
    args_hidden: Option<String>,
}

impl ArgsView {
    pub(crate) fn hidden(why: impl Into<String>) -> Self {
        Self { args_hidden: Some(why.into()), ..Self::default() }
    }

    /// Returns the arguments as they would be written on a command line, or the reason that they are not shown. `None` if
    /// they were not read.
    pub(crate) fn text(&self) -> Option<String> {
        let Some(args) = &self.args else {
            return self.args_hidden.as_deref().map(|why| format!("not shown: {}", visible::one_line(why)));
        };
        let named = self.named_args.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let all: Vec<_> = args.iter().map(quoted).chain(named).collect();
        Some(if all.is_empty() { "none".to_owned() } else { visible::one_line(&all.join(" ")) })
    }

    /// Returns the arguments in few characters, for a row of a table.
    pub(crate) fn cell(&self) -> String {
        let text = self.args.as_ref().and_then(|_| self.text()).unwrap_or_else(|| "-".to_owned());
        match text.char_indices().nth(ROW_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Returns an argument as it would be written on a command line.
fn quoted(value: &Value) -> String {
    let text = as_argument(value);
    let is_plain = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || "\"'\\".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Returns the arguments of tasks, in their order, unless a setting hides those of a task of this name.
///
/// # Errors
/// The backend cannot be asked.
pub(crate) async fn arguments(
    app: &App,
    settings: &Settings,
    tasks: &[(TaskId, Option<&str>)],
) -> Result<Vec<ArgsView>, CliError> {
    let ids: Vec<_> = tasks.iter().map(|(id, _)| id.clone()).collect();
    let known = app.client().arguments(&ids).await?;
    let view = |(known, (_, name)): (KnownArgs, &(TaskId, Option<&str>))| {
        let set = name.and_then(|name| settings.tasks.get(name)?.hide_args.as_ref());
        match known {
            _ if set.is_some_and(|hidden| hidden.value) => ArgsView::hidden("hide_args is set for this task"),
            KnownArgs::Shown { args, named } => {
                ArgsView { args: Some(args), named_args: named, args_hidden: None }
            }
            KnownArgs::Hidden(why) => ArgsView::hidden(why),
            _ => ArgsView::hidden("this version does not know their form"),
        }
    };
    Ok(known.into_iter().zip(tasks).map(view).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_shown_as_they_are_typed() {
        let named_args = json!({"width": 640}).as_object().unwrap().clone();
        let args =
            Some(vec![json!("cat.png"), json!(2), json!("2"), json!("a b"), json!(null), json!("it's")]);
        let view = ArgsView { args, named_args, args_hidden: None };
        assert_eq!(view.text().unwrap(), r#"cat.png 2 '"2"' 'a b' null 'it'\''s' width=640"#);
        assert_eq!(ArgsView { args: Some(Vec::new()), ..ArgsView::default() }.text().unwrap(), "none");
        assert_eq!(ArgsView::hidden("they are encrypted").text().unwrap(), "not shown: they are encrypted");
        assert_eq!(ArgsView::default().text(), None);
        let long = ArgsView { args: Some(vec![json!("ä".repeat(200))]), ..ArgsView::default() };
        assert_eq!(long.cell().chars().count(), ROW_CHARS + 1);
        assert_eq!(ArgsView::hidden("x").cell(), "-");
    }
}
