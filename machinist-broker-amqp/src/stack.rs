//! Whether the AMQP library's threads have the stack that the deepest message needs.
//!
//! Only the program itself can see to that, before its first thread starts; here it can but be told.

use std::sync::Once;

/// 64 MiB hold the deepest nesting that fits into a frame.
const ENOUGH: u64 = 64 << 20;

/// Warns, once in a process, where a small message could end it.
pub(crate) fn warn_if_small() {
    static ONCE: Once = Once::new();
    let size = std::env::var("RUST_MIN_STACK").ok();
    if !is_enough(size.as_deref()) {
        ONCE.call_once(|| {
            tracing::warn!(
                RUST_MIN_STACK = size.as_deref().unwrap_or("not set"),
                "a small message with deeply nested headers would end this process: start it with \
                 RUST_MIN_STACK={ENOUGH} in its environment"
            );
        });
    }
}

fn is_enough(size: Option<&str>) -> bool {
    size.and_then(|size| size.parse::<u64>().ok()).is_some_and(|size| size >= ENOUGH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_sets_is_enough() {
        assert!(is_enough(Some("67108864")));
        for small in [None, Some(""), Some("8388608"), Some("64M")] {
            assert!(!is_enough(small), "{small:?}");
        }
    }
}
