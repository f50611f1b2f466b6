//! Properties of any settings: the bodies of fuzz targets, and of tests that run them for a short time.

use std::path::Path;

use crate::{
    redact,
    settings::{Overrides, Settings},
};

/// Password that no text may show.
const PASSWORD: &str = "pa55w0rd-nobody-is-shown";

/// Returns `true` if the input itself holds the password, perhaps with characters in between that are removed below. A
/// fuzzer that sees the program's constants finds it.
fn holds_password(text: &str) -> bool {
    let bare: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    bare.contains(PASSWORD)
}

/// Checks that a password in a URL is never shown, with any text before, within and after it.
pub fn redaction(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if holds_password(&text) {
        return;
    }
    let mut parts = text.splitn(5, '\n');
    let mut part = || parts.next().unwrap_or_default();
    let scheme = part();
    let user = part();
    let before = part();
    let after = part();
    let rest = part();
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let scheme =
        ["amqp", "amqps", "redis", "rediss", "redis+unix", "redis+sentinel", "http"][scheme.len() % 7];
    let user: String = user.chars().filter(|c| !c.is_whitespace() && !":/@?#".contains(*c)).collect();
    let password = format!("{before}{PASSWORD}{after}");
    let in_front = format!("{scheme}://{user}:{password}@host:1/{rest}");
    assert!(!redact::url(&in_front).contains(PASSWORD), "{in_front:?}");
    // In a query a password ends where the next parameter begins.
    let password: String = password.chars().filter(|c| !"&;#".contains(*c)).collect();
    let in_query =
        format!("{scheme}://host/{}?{}pass{}={password}&b={rest}", plain(rest), plain(&user), plain(rest));
    assert!(!redact::url(&in_query).contains(PASSWORD), "{in_query:?}");
    // In a text a URL ends at white space and quotes.
    let word =
        |url: &str| url.chars().filter(|c| !c.is_whitespace() && !"\"'`<>".contains(*c)).collect::<String>();
    for url in [in_front, in_query] {
        let around = format!("{text} \"{}\" {text}", word(&url));
        assert!(!redact::text(&around).contains(PASSWORD), "{around:?}");
    }
    drop((redact::url(&text), redact::text(&text)));
}

/// Checks that a configuration is read or refused, and that neither shows a password.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if holds_password(&text) {
        return;
    }
    let with_password = format!("broker = \"amqp://app:{PASSWORD}@host/\"\n{text}");
    for text in [&*text, &with_password] {
        let shown = match Settings::resolve(
            Overrides::default(),
            &|_| None,
            Some((Path::new("machinist.toml"), text)),
        ) {
            Ok(settings) => format!("{settings:?}"),
            Err(error) => {
                let chain = std::iter::successors(std::error::Error::source(&error), |error| error.source());
                chain.fold(format!("{error} {error:?}"), |all, error| format!("{all} {error}"))
            }
        };
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
}

#[cfg(test)]
mod tests {
    use machinist_conformance::any_bytes;

    #[test]
    fn redactions() {
        any_bytes("redaction", super::redaction);
    }

    #[test]
    fn configs() {
        any_bytes("config", super::config);
    }
}
