//! Removal of passwords from shown text.
//!
//! Every text that may hold a URL goes through one of these two functions before it is shown: error messages,
//! `machinist config`, the `Debug` of settings. They rather hide too much than too little, because a URL in an error
//! message is often one with a typing error.

use std::borrow::Cow;

use machinist_core::url_list;

/// Replacement of a password.
const HIDDEN: &str = "***";

/// Query parameters that hold no secret. All others are hidden, because a name says little: `auth`, `key`, `sig`.
const PLAIN_PARAMETERS: [&str; 14] = [
    "application_name",
    "auth_mechanism",
    "channel_max",
    "connection_timeout",
    "db",
    "frame_max",
    "heartbeat",
    "protocol",
    "schema",
    "sentinel_user",
    "sslmode",
    "target_session_attrs",
    "timeout",
    "vhost",
];
/// Schemes whose URL is a path, without user and password.
const PATHS: [&str; 3] = ["file", "memory", "sqlite"];
/// Schemes whose URL is a path if it begins with a slash.
const SOCKETS: [&str; 2] = ["redis+unix", "unix"];

/// Removes the secrets of a URL: the password before the `@`, the fragment, and the value of every query parameter that
/// is not known to hold none.
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
    if parts.len() > 1 && is_list(&parts) {
        return match parts.iter().map(|part| one_url(part)).collect::<Vec<_>>() {
            all if all.iter().all(|part| matches!(part, Cow::Borrowed(_))) => Cow::Borrowed(text),
            all => Cow::Owned(all.join(",")),
        };
    }
    one_url(text)
}

/// Returns `false` if a comma before a scheme may belong to a secret, so that the text is redacted as one URL.
fn is_list(parts: &[&str]) -> bool {
    let scheme = |part: &str| part.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let is_front = |(at, part): (usize, &&str)| {
        let is_last = at + 1 == parts.len();
        let has_login_later = parts[at + 1..].iter().any(|later| later.contains('@'));
        begins_login(part, has_login_later) || (!is_last && ends_in_secret(part))
    };
    parts.iter().all(|part| scheme(part) == scheme(parts[0])) && !parts.iter().enumerate().any(is_front)
}

/// Returns `true` if a part without `@` may end within a password: after its colon stands no port, or a port although
/// an `@` follows in a later part.
fn begins_login(part: &str, has_login_later: bool) -> bool {
    let rest = part.split_once("://").map_or(part, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_port = |port: &str| port.chars().all(|c| c.is_ascii_digit());
    !part.contains('@')
        && authority.rsplit_once(':').is_some_and(|(_, port)| has_login_later || !is_port(port))
}

/// Returns `true` if a part ends in a fragment, or in the value of a query parameter that may be a secret.
fn ends_in_secret(part: &str) -> bool {
    let Some(mark) = part.find(['?', '#']) else { return false };
    let last = part[mark + 1..].rsplit(['&', ';']).next().unwrap_or_default();
    let name = last.split_once('=').map_or(last, |(name, _)| name);
    part.contains('#') || !PLAIN_PARAMETERS.contains(&name)
}

fn one_url(text: &str) -> Cow<'_, str> {
    // `amqp:/user:password@host` and `user:password@host` are typing errors, and still hold a password.
    let start = match text.find("://") {
        Some(at) => at + 3,
        None => text.find(":/").map_or(0, |at| at + 2),
    };
    let (scheme, rest) = text.split_at(start);
    let name = scheme.trim_end_matches([':', '/']).to_ascii_lowercase();
    let is_path =
        PATHS.contains(&name.as_str()) || (SOCKETS.contains(&name.as_str()) && rest.starts_with('/'));
    let shown = if is_path { hide_query(rest) } else { hide_query(&hide_userinfo(rest)) };
    if shown == rest { Cow::Borrowed(text) } else { Cow::Owned(format!("{scheme}{shown}")) }
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
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let start = rest[..at]
            .rfind(|c: char| !is_of_scheme(c))
            .map_or(0, |before| before + rest[before..].chars().next().map_or(1, char::len_utf8));
        shown.push_str(&rest[..start]);
        let (this, after) = rest[start..].split_at(url_end(&rest[start..]));
        shown.push_str(&url(this));
        rest = after;
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

fn is_of_scheme(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+-.".contains(c)
}

/// Returns the end of a URL at the beginning of a text. It ends at white space and quotes, but not within a password: up
/// to the last `@` of the line, or the next URL, everything belongs to it.
fn url_end(text: &str) -> usize {
    let begin = text.find("://").map_or(0, |at| at + 3);
    let limit = text[begin..].find("://").map_or(text.len(), |next| begin + next);
    let limit = text[begin..limit].find('\n').map_or(limit, |newline| begin + newline);
    let at = text[begin..limit].rfind('@').map_or(begin, |at| begin + at);
    let boundary = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    text[at..].find(boundary).map_or(text.len(), |end| at + end)
}

/// Hides the password before the last `@`: a password may hold `/`, `?` and `@` without escapes. Without an `@`, what
/// stands in the place of a port and is none is hidden: the host may be missing.
fn hide_userinfo(rest: &str) -> Cow<'_, str> {
    if let Some(at) = rest.rfind('@') {
        return match rest[..at].find(':') {
            Some(colon) if colon + 1 < at => {
                Cow::Owned(format!("{}:{HIDDEN}{}", &rest[..colon], &rest[at..]))
            }
            _ => Cow::Borrowed(rest),
        };
    }
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let colon = authority.match_indices(':').find(|(at, _)| {
        let after = &authority[at + 1..];
        let port = &after[..after.find(',').unwrap_or(after.len())];
        // The address between brackets has colons of its own.
        let in_brackets = authority[..*at].rfind('[') > authority[..*at].rfind(']');
        // An error can go on after the port: `amqp://h:5672: refused`.
        let port = port.trim_end_matches([':', '.', ';', ')']);
        !in_brackets && !port.is_empty() && !port.bytes().all(|byte| byte.is_ascii_digit())
    });
    match colon {
        Some((at, _)) => Cow::Owned(format!("{}:{HIDDEN}", &rest[..at])),
        None => Cow::Borrowed(rest),
    }
}

fn hide_query(rest: &str) -> String {
    let Some(mark) = rest.find(['?', '#']) else { return rest.to_owned() };
    let (before, after) = rest.split_at(mark);
    let (query, fragment) = after.find('#').map_or((after, ""), |at| after.split_at(at));
    let parameters = query.strip_prefix('?').unwrap_or_default();
    let shown: String = parameters.split_inclusive(['&', ';']).map(hide_pair).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    let fragment = if fragment.len() > 1 { format!("#{HIDDEN}") } else { fragment.to_owned() };
    format!("{before}{mark}{shown}{fragment}")
}

fn hide_pair(pair: &str) -> Cow<'_, str> {
    let end = if pair.ends_with(['&', ';']) { &pair[pair.len() - 1..] } else { "" };
    let bare = &pair[..pair.len() - end.len()];
    match bare.split_once('=') {
        // A secret without its name.
        None if !bare.is_empty() => Cow::Owned(format!("{HIDDEN}{end}")),
        Some((name, value)) if !value.is_empty() && !PLAIN_PARAMETERS.contains(&name) => {
            Cow::Owned(format!("{name}={HIDDEN}{end}"))
        }
        _ => Cow::Borrowed(pair),
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
            ("redis://h/0?db=1&sentinel_password=geheim;db=2", "redis://h/0?db=1&sentinel_password=***;db=2"),
            ("amqps://h/?auth_token=geheim#x", "amqps://h/?auth_token=***#***"),
            ("amqp://h/?auth=geheim", "amqp://h/?auth=***"),
            ("amqp://h/?geheim", "amqp://h/?***"),
            ("amqp://h/#geheim", "amqp://h/#***"),
            ("redis:///:geheim@h/0", "redis:///:***@h/0"),
            ("redis://:geheim@", "redis://:***@"),
            ("amqp://user:geheim", "amqp://user:***"),
            ("amqp://user:geheim/vhost", "amqp://user:***"),
            ("amqp://user:a geheim@host", "amqp://user:***@host"),
            ("amqp://user:a\"geheim@host", "amqp://user:***@host"),
            ("sqlite://m.db?key=geheim", "sqlite://m.db?key=***"),
            ("http://h/?key=a,http://b:c@geheim", "http://h/?key=***"),
            ("http://h/?key=,http://b:c@geheim", "http://h/?key=***"),
            ("amqp://h/#,amqp://b:c@geheim", "amqp://h/#***"),
            ("amqp://user:1,amqp://geheim@h", "amqp://user:***@h"),
            ("amqp://user:1,p://geheim@h", "amqp://user:***@h"),
            ("amqp://a:geheim@h:1,amqp://a:geheim@i", "amqp://a:***@h:1,amqp://a:***@i"),
            ("amqp://h/?db=1,amqp://a:geheim@i/?db=2", "amqp://h/?db=1,amqp://a:***@i/?db=2"),
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
            "amqp://host:5672",
            "amqp://a:5672/%2f,amqp://b:5672/%2f",
            "amqp://a/?heartbeat=10,amqp://b/?heartbeat=10",
            "amqp://[::1]:5672/%2f",
            "redis+sentinel://a:1,b:2/m/0",
            "amqp://h/?auth_mechanism=external",
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
        assert_eq!(text("at amqp://u:ge heim@h: refused"), "at amqp://u:***@h: refused");
        assert_eq!(text("at 'amqp://u:ge'heim@h' and ü://x:y"), "at 'amqp://u:***@h' and ü://x:***");
        assert_eq!(
            text("broker amqp://h:5672: refused, not :// known"),
            "broker amqp://h:5672: refused, not :// known"
        );
        assert_eq!(text("http://h:80/x, http://h:80."), "http://h:80/x, http://h:80.");
    }
}
