//! The decision about tests without a server or a program that they need: skip, or fail.

use std::io::Write;

/// The URL of a server for tests, from an environment variable such as `MACHINIST_TEST_AMQP_URL`.
///
/// Where the variable is missing or empty, a test without a server says `SKIPPED` on stderr and passes, so that the
/// suites run on every laptop; under `MACHINIST_REQUIRE_SERVICES=1` it fails, so that CI cannot pass without having
/// tested anything.
///
/// # Panics
/// If the variable is missing and `MACHINIST_REQUIRE_SERVICES` is `1`.
pub fn service_url(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        skip(&format!("{variable} is not set"));
    }
    url
}

/// Says that the test of this thread is skipped, and why: what it needs is missing.
///
/// # Panics
/// If `MACHINIST_REQUIRE_SERVICES` is `1`.
pub fn skip(why: &str) {
    assert!(
        std::env::var("MACHINIST_REQUIRE_SERVICES").as_deref() != Ok("1"),
        "{why}, and MACHINIST_REQUIRE_SERVICES=1 forbids to go on without it"
    );
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    say(&format!("SKIPPED: {test}: {why}"));
}

/// Writes a line past the capture of the test harness: what was not tested must be seen.
pub(crate) fn say(line: &str) {
    // A stderr that cannot be written to leaves nobody to tell.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
