//! `[client] buffer`: the bounds of the tasks that an application keeps in memory until the broker has confirmed them.

use machinist_core::BufferLimits;
use toml::de::DeValue;

use super::{show_duration, text, value};

/// Reads the bounds. What is left out has its default.
pub(super) fn read(bounds: &DeValue<'_>) -> Result<BufferLimits, String> {
    let expected = "bounds like { tasks = 10000, bytes = \"64MiB\", for = \"30s\" }";
    let table = bounds.as_table().ok_or_else(|| value::wrong_type(bounds, expected))?;
    let mut limits = BufferLimits::default();
    for (key, bound) in table.iter() {
        let key: &str = key.get_ref();
        let bound = bound.get_ref();
        let read = match key {
            "tasks" => value::count(bound).map(|tasks| limits.tasks = tasks),
            "bytes" => value::size(bound).map(|bytes| limits.bytes = bytes),
            "for" => value::positive_duration(bound).map(|time| limits.keep_for = time),
            _ => return Err(format!("unknown key \"{key}\"; the keys here are tasks, bytes, for")),
        };
        read.map_err(|problem| format!("{key}: {problem}"))?;
    }
    Ok(limits)
}

/// Returns the bounds as they are written in the file.
pub(super) fn show(limits: &BufferLimits) -> String {
    let BufferLimits { tasks, bytes, keep_for } = limits;
    format!(
        "{{ tasks = {tasks}, bytes = \"{}\", for = \"{}\" }}",
        text::show_size(*bytes),
        show_duration(*keep_for)
    )
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::{connector::Connectors, settings::file};

    fn file(text: &str) -> Result<Option<BufferLimits>, String> {
        let read = file::read(Path::new("machinist.toml"), text, &Connectors::default());
        read.map(|file| file.buffer.map(|buffer| buffer.value)).map_err(|error| error.to_string())
    }

    #[test]
    fn bounds_are_read_and_shown_as_they_are_written() {
        let text = "{ tasks = 500, bytes = \"1MiB\", for = \"1m\" }";
        let limits = file(&format!("[client]\nbuffer = {text}")).unwrap().unwrap();
        let expected = BufferLimits { tasks: 500, bytes: 1024 * 1024, keep_for: Duration::from_secs(60) };
        assert_eq!((limits, show(&limits).as_str()), (expected, text));
        assert_eq!(file("[client.buffer]\ntasks = 7").unwrap().unwrap().tasks, 7);
        assert_eq!(file("[client]").unwrap(), None);
    }

    #[test]
    fn wrong_bounds_are_told_with_their_key() {
        let error = |bounds: &str| file(&format!("[client]\nbuffer = {bounds}")).unwrap_err();
        assert!(error("5").contains("client.buffer: ") && error("5").contains("{ tasks = 10000"));
        for (bounds, key) in
            [("{ tasks = 0 }", "tasks: "), ("{ bytes = \"x\" }", "bytes: "), ("{ for = \"0s\" }", "for: ")]
        {
            assert!(error(bounds).contains(&format!("client.buffer: {key}")), "{}", error(bounds));
        }
        assert!(error("{ size = 1 }").contains("the keys here are tasks, bytes, for"));
    }
}
