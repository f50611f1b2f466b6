//! Removal of passwords from shown text.
//!
//! Every text that may hold a URL goes through one of these two functions before it is shown: error messages,
//! `machinist config`, the `Debug` of settings. They rather hide too much than too little, because a URL in an error
//! message is often one with a typing error.

use std::borrow::Cow;

use machinist_core::url_list;

/// Replacement of a password.
const HIDDEN: &str = "***";

/// Removes the secrets of a URL: the password before the `@`, and the value of every query parameter whose name
/// suggests one (`password`, `sentinel_pass`, `secret`, `token`).
///
/// The text need not be a valid URL; everything that could be a password is hidden.
///
/// # Examples
/// ```
/// use machinist::redact::url;
/// assert_eq!(url("amqp://app:s3cret@mq/%2f"), "amqp://app:***@mq/%2f");
/// assert_eq!(url("redis+unix:///run/redis.sock?pass=s3cret&db=2"), "redis+unix:///run/redis.sock?pass=***&db=2");
/// ```
pub fn url(text: &str) -> Cow<'_, str> {
    let parts = url_list::split(text);
    // A part with a colon that begins no port, and without `@`, may be the front of a password with a comma in it.
    if parts.len() > 1 && parts.iter().all(|part| part.contains('@') || !may_be_secret(part)) {
        return match parts.iter().map(|part| one_url(part)).collect::<Vec<_>>() {
            all if all.iter().all(|part| matches!(part, Cow::Borrowed(_))) => Cow::Borrowed(text),
            all => Cow::Owned(all.join(",")),
        };
    }
    one_url(text)
}

/// Returns `true` if what follows a colon is no port.
fn may_be_secret(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once(':').is_some_and(|(_, port)| !port.chars().all(|c| c.is_ascii_digit()))
}

fn one_url(text: &str) -> Cow<'_, str> {
    // `amqp:/user:password@host` and `user:password@host` are typing errors, and still hold a password.
    let start = match text.find("://") {
        Some(at) => at + 3,
        None => text.find(":/").map_or(0, |at| at + 2),
    };
    let (scheme, rest) = text.split_at(start);
    let rest = hide_query(&hide_userinfo(rest));
    if rest == text[start..] { Cow::Borrowed(text) } else { Cow::Owned(format!("{scheme}{rest}")) }
}

/// Removes the secrets of every URL in a text, for messages from elsewhere.
///
/// # Examples
/// ```
/// use machinist::redact::text;
/// assert_eq!(text("unexpected 'redis://:pw@cache/0' found"), "unexpected 'redis://:***@cache/0' found");
/// ```
pub fn text(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let boundary = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    Cow::Owned(
        text.split_inclusive(boundary)
            .map(|word| if word.contains("://") { url(word) } else { Cow::Borrowed(word) })
            .collect(),
    )
}

/// Hides the password before the last `@`: a password may hold `/`, `?` and `@` without escapes.
fn hide_userinfo(rest: &str) -> Cow<'_, str> {
    // A path has no authority, so no user.
    if rest.starts_with('/') {
        return Cow::Borrowed(rest);
    }
    let Some(at) = rest.rfind('@') else { return Cow::Borrowed(rest) };
    match rest[..at].find(':') {
        Some(colon) if colon + 1 < at => Cow::Owned(format!("{}:{HIDDEN}{}", &rest[..colon], &rest[at..])),
        _ => Cow::Borrowed(rest),
    }
}

fn hide_query(rest: &str) -> String {
    let Some(mark) = rest.find('?') else { return rest.to_owned() };
    let (before, query) = rest.split_at(mark + 1);
    let shown: String = query.split_inclusive(['&', ';', '#']).map(hide_pair).collect();
    format!("{before}{shown}")
}

fn hide_pair(pair: &str) -> Cow<'_, str> {
    let Some((name, value)) = pair.split_once('=') else { return Cow::Borrowed(pair) };
    let end = if value.ends_with(['&', ';', '#']) { &value[value.len() - 1..] } else { "" };
    let is_secret = {
        let name = name.to_ascii_lowercase();
        ["pass", "pw", "secret", "token", "credential"].iter().any(|word| name.contains(word))
    };
    if is_secret && value.len() > end.len() {
        Cow::Owned(format!("{name}={HIDDEN}{end}"))
    } else {
        Cow::Borrowed(pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (given, shown) in [
            ("amqp://guest:geheim@127.0.0.1:5672/%2f", "amqp://guest:***@127.0.0.1:5672/%2f"),
            ("redis://:geheim@h/0", "redis://:***@h/0"),
            ("redis+sentinel://:geheim@a:1,b:2/m/0", "redis+sentinel://:***@a:1,b:2/m/0"),
            ("amqp://user:ge/he?i@m@host/v", "amqp://user:***@host/v"),
            ("amqp://user:12/geheim@host", "amqp://user:***@host"),
            ("amqp:/user:geheim@host", "amqp:/user:***@host"),
            ("user:geheim@host", "user:***@host"),
            ("http://user:geheim@host", "http://user:***@host"),
            ("redis://h/0?Password=geheim", "redis://h/0?Password=***"),
            ("redis://h/0?a=1&sentinel_password=geheim;b=2", "redis://h/0?a=1&sentinel_password=***;b=2"),
            ("amqps://h/?auth_token=geheim#x", "amqps://h/?auth_token=***#x"),
        ] {
            assert_eq!(url(given), shown);
            assert!(!url(given).contains("geheim"));
        }
    }

    #[test]
    fn what_holds_no_password_stays() {
        for text in [
            "sqlite://machinist.db",
            "sqlite:///home/a@b/c:d.db",
            "memory://",
            "amqp://host:5672/%2f?heartbeat=10",
            "amqp://guest@host",
            "amqp://guest:@host",
            "",
        ] {
            assert_eq!(url(text), text);
        }
    }

    #[test]
    fn texts_are_searched_for_urls() {
        assert_eq!(
            text("tried amqp://a:geheim@h, then \"redis://:geheim@h\""),
            "tried amqp://a:***@h, then \"redis://:***@h\""
        );
        assert_eq!(text("no url: here@all"), "no url: here@all");
    }
}
