//! The rule that a browser changes something only from our own pages. Pure.
//!
//! A page of another site can let a browser send a form here, with our cookies. The browser says so in `Sec-Fetch-Site`,
//! which no script can set; over plain HTTP some browsers leave it out, and then `Origin` has to be the host that was asked.

use axum::http::{
    HeaderMap, HeaderValue,
    header::{HOST, ORIGIN},
};

/// Refuses a request that did not come from our own pages.
///
/// # Errors
/// The reason.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), &'static str> {
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        Some(b"same-origin") => return Ok(()),
        Some(_) => return Err("the browser says that it comes from another site (Sec-Fetch-Site)"),
        None => {}
    }
    let text = |value: Option<&HeaderValue>| value.and_then(|value| Some(value.to_str().ok()?.to_owned()));
    let Some(origin) = text(headers.get(ORIGIN)) else {
        return Err("it has neither Sec-Fetch-Site nor Origin, so it may come from anywhere");
    };
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    match (authority, text(headers.get(HOST))) {
        (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(&host) => Ok(()),
        _ => Err("its Origin is not the host that was asked"),
    }
}

/// Returns `true` if a host, with or without a port, is this computer. A page of another site can let its name lead
/// here, but it cannot call itself so.
pub(crate) fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(headers: &[(&'static str, &'static str)]) -> bool {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        check(&headers.collect()).is_ok()
    }

    #[test]
    fn only_our_own_pages_change_something() {
        assert!(checked(&[("sec-fetch-site", "same-origin")]));
        assert!(checked(&[("origin", "https://jobs.example"), ("host", "Jobs.example")]));
        assert!(checked(&[("origin", "http://localhost:8080"), ("host", "localhost:8080")]));
        for refused in [
            &[][..],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "cross-site"), ("origin", "https://a"), ("host", "a")],
            &[("origin", "null"), ("host", "null")],
            &[("origin", "https://a"), ("host", "b")],
            &[("origin", "https://a:1"), ("host", "a")],
            &[("origin", "https://a")],
        ] {
            assert!(!checked(refused), "{refused:?}");
        }
    }

    #[test]
    fn names_of_this_computer_are_known() {
        for local in [
            "localhost",
            "LOCALHOST:80",
            "app.localhost:1",
            "127.0.0.1:9",
            "127.9.9.9",
            "[::1]:9",
            "localhost.",
        ] {
            assert!(is_local(local), "{local}");
        }
        for other in
            ["", "example.org", "localhost.example.org", "10.0.0.1:80", "[2001:db8::1]", "127.0.0.1.nip.io"]
        {
            assert!(!is_local(other), "{other}");
        }
    }
}
