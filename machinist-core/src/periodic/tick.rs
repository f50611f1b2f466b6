//! Names of periodic tasks, and the ids of their ticks. Pure.

use crate::{clock::Timestamp, id::TaskId};

/// Maximum length of a name, in bytes.
const MAX_NAME_BYTES: usize = 100;
/// Beginning of the id of every tick.
const TICK: &str = "tick";

/// Checks the name of a periodic task.
///
/// # Errors
/// The rule that the name breaks.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match name {
        "" => Err("is empty"),
        long if long.len() > MAX_NAME_BYTES => Err("is longer than 100 bytes"),
        name if !name.chars().all(allowed) => Err("may have letters, digits, `.`, `_` and `-` only"),
        _ => Ok(()),
    }
}

/// Returns the id of the task of a tick, `tick.NAME.INSTANT`. It is the same for every worker.
pub(crate) fn tick_id(name: &str, tick: Timestamp) -> TaskId {
    let instant = match jiff::Timestamp::from_microsecond(tick.as_micros()) {
        Ok(instant) => instant.to_string(),
        Err(_) => format!("{}us", tick.as_micros()),
    };
    // INVARIANT: a name and an instant are short, and have no control characters.
    TaskId::parse(&format!("{TICK}.{name}.{instant}")).expect("a short name and an instant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_ticks_name_the_instant() {
        let at =
            |text: &str| Timestamp::from_micros(text.parse::<jiff::Timestamp>().unwrap().as_microsecond());
        let id = |text| tick_id("nightly", at(text)).to_string();
        assert_eq!(id("2026-11-29T03:00:00Z"), "tick.nightly.2026-11-29T03:00:00Z");
        assert_eq!(id("2026-11-29T03:00:00.5Z"), "tick.nightly.2026-11-29T03:00:00.5Z");
        // The two hours of a repeated time differ.
        assert_ne!(id("2026-10-25T02:30:00+02:00"), id("2026-10-25T02:30:00+01:00"));
        let longest = tick_id(&"x".repeat(MAX_NAME_BYTES), Timestamp::from_micros(i64::MIN));
        assert!(!longest.as_str().contains(['!', '+']));
    }

    #[test]
    fn names_are_words() {
        for name in ["nightly", "report.eu-1", "A_b"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "a b", "a!b", "a+b", "a/b", "ä", &"x".repeat(101)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
