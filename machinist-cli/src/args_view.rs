//! Arguments of tasks, as the commands show them. Pure, except that records are read.

use machinist::{App, KnownArgs, TaskId, settings::Settings, view::ArgsView};
use serde_json::Value;

use crate::{exit::CliError, spelling::as_argument, visible};

/// Maximum length of the arguments in a row of a table, in characters.
const ROW_CHARS: usize = 60;

/// Arguments of a task, as text.
pub(crate) trait ArgsText {
    /// Returns the arguments as they would be written on a command line, or the reason that they are not shown. `None` if
    /// they were not read.
    fn text(&self) -> Option<String>;
    /// Returns the arguments in few characters, for a row of a table.
    fn cell(&self) -> String;
}

impl ArgsText for ArgsView {
    fn text(&self) -> Option<String> {
        let Some(args) = &self.args else {
            return self.args_hidden.as_deref().map(|why| format!("not shown: {}", visible::one_line(why)));
        };
        let named = self.named_args.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let all: Vec<_> = args.iter().map(quoted).chain(named).collect();
        Some(if all.is_empty() { "none".to_owned() } else { visible::one_line(&all.join(" ")) })
    }

    fn cell(&self) -> String {
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
        ArgsView::of(known, set.is_some_and(|hidden| hidden.value))
    };
    Ok(known.into_iter().zip(tasks).map(view).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    #[test]
    fn arguments_are_shown_as_they_are_typed() {
        let named_args = json!({"width": 640}).as_object().unwrap().clone();
        let args = vec![json!("cat.png"), json!(2), json!("2"), json!("a b"), json!(null), json!("it's")];
        let view = ArgsView::shown(args, named_args);
        assert_eq!(view.text().unwrap(), r#"cat.png 2 '"2"' 'a b' null 'it'\''s' width=640"#);
        assert_eq!(ArgsView::shown(Vec::new(), Map::new()).text().unwrap(), "none");
        assert_eq!(ArgsView::hidden("they are encrypted").text().unwrap(), "not shown: they are encrypted");
        assert_eq!(ArgsView::default().text(), None);
        let long = ArgsView::shown(vec![json!("ä".repeat(200))], Map::new());
        assert_eq!(long.cell().chars().count(), ROW_CHARS + 1);
        assert_eq!(ArgsView::hidden("x").cell(), "-");
    }
}
