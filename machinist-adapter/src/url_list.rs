//! Lists of URLs in one text: the nodes of one server.

/// Returns the URLs of a list that commas separate: `amqp://a,amqp://b`. A single URL is a list of one.
///
/// A comma that no scheme follows is part of its URL, as in a password or in the host list of a Sentinel.
///
/// # Examples
/// ```
/// use machinist_adapter::url_list::split;
/// assert_eq!(split("amqp://a/v, amqps://b/v"), ["amqp://a/v", "amqps://b/v"]);
/// assert_eq!(split("redis+sentinel://:p,w@a,b:1/m"), ["redis+sentinel://:p,w@a,b:1/m"]);
/// ```
pub fn split(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(',') {
        if begins_with_scheme(text[at + 1..].trim_start()) {
            urls.push(text[start..at].trim());
            start = at + 1;
        }
    }
    urls.push(text[start..].trim());
    urls
}

fn begins_with_scheme(text: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(is_of_scheme)
    };
    text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}

fn is_of_scheme(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')
}
