//! Addresses of pages, relative to the first page, so that the dashboard works at any path. Pure.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters that a segment of a path does not keep.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// First segments of pages.
const PAGES: [&str; 9] =
    ["queues", "tasks", "failures", "workflows", "dead", "workers", "periodic", "send", "login"];
/// Maximum length of an address to which an action returns, in bytes.
const MAX_BACK: usize = 2048;

/// Encodes a text as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Returns the address of a queue.
pub(crate) fn queue(name: &str) -> String {
    format!("queues/{}", segment(name))
}

/// Returns the address of a task.
pub(crate) fn task(id: &str) -> String {
    format!("tasks/{}", segment(id))
}

/// Returns the address of a workflow.
pub(crate) fn workflow(root: &str) -> String {
    format!("workflows/{}", segment(root))
}

/// Returns the address of a list with a filter. Empty values are left out.
pub(crate) fn list(page: &str, filter: &[(&str, &str)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(filter.iter().filter(|(_, value)| !value.is_empty()));
    let query = query.finish();
    if query.is_empty() { page.to_owned() } else { format!("{page}?{query}") }
}

/// Returns the way from a page to the first page: `../` for each step. `path` is the path below the mount, `original` the
/// one that was asked. The first page itself may be asked without the slash at its end.
pub(crate) fn root(path: &str, original: &str) -> String {
    let last = original.rsplit('/').next().unwrap_or_default();
    match path.matches('/').count() {
        0 | 1 if path.len() <= 1 && !last.is_empty() => format!("./{last}/"),
        0 | 1 => "./".to_owned(),
        slashes => "../".repeat(slashes - 1),
    }
}

/// Returns an address to which an action may return: one of our pages. Anything else leads to the first page.
pub(crate) fn back(wanted: &str) -> &str {
    let (path, _) = wanted.split_once('?').unwrap_or((wanted, ""));
    let first = path.split('/').next().unwrap_or_default();
    let is_ours = wanted.len() <= MAX_BACK
        && wanted.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && PAGES.contains(&first)
        && !path.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if is_ours { wanted } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_segment() {
        assert_eq!(queue("a/b?c=d&e#f \"<é"), "queues/a%2Fb%3Fc%3Dd%26e%23f%20%22%3C%C3%A9");
        assert_eq!(task("01-a.b~c_d"), "tasks/01-a.b~c_d");
        assert_eq!(
            list("tasks", &[("state", "FAILURE"), ("name", ""), ("error", "a&b=c")]),
            "tasks?state=FAILURE&error=a%26b%3Dc"
        );
        assert_eq!(list("tasks", &[("name", "")]), "tasks");
    }

    #[test]
    fn every_page_finds_the_first_one() {
        for (path, original, expected) in [
            ("/", "/", "./"),
            ("/", "/jobs", "./jobs/"),
            ("/", "/a/jobs", "./jobs/"),
            ("/", "/jobs/", "./"),
            ("/tasks", "/jobs/tasks", "./"),
            ("/tasks/1", "/jobs/tasks/1", "../"),
            ("/api/tasks/1/retry", "/api/tasks/1/retry", "../../../"),
        ] {
            assert_eq!(root(path, original), expected, "{path} {original}");
        }
    }

    #[test]
    fn an_action_returns_to_our_pages_only() {
        for ours in ["tasks", "tasks?state=FAILURE&after=1%2F2", "queues/a%2Fb", "dead?queue=x"] {
            assert_eq!(back(ours), ours);
        }
        for other in [
            "https://evil.example",
            "//evil.example",
            "/tasks",
            "tasks//x",
            "../admin",
            "tasks/../../x",
            "javascript:alert(1)",
            "tasks\\x",
            "tasks\nx",
            "api/tasks",
            "tasks?\u{e9}",
        ] {
            assert_eq!(back(other), "", "{other:?}");
        }
        assert_eq!(back(&format!("tasks?error={}", "x".repeat(MAX_BACK))), "");
    }
}
