//! Looking for what should not be there.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};

/// Returns `true` if a text contains another, as it is or inside base64.
pub fn says(text: &str, what: &str) -> bool {
    let as_base64 = |before: usize| {
        let whole = BASE64.encode([&vec![0; before], what.as_bytes()].concat());
        // The first and the last group of four depend on the neighbours.
        whole[4..whole.len().saturating_sub(4).max(4)].to_owned()
    };
    text.contains(what) || (0..3).map(as_base64).any(|part| part.len() > 8 && text.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_wherever_it_begins() {
        let what = "twenty characters and more";
        for before in 0..4 {
            let text = format!("{}{what} and what follows", "x".repeat(before));
            assert!(says(&text, what) && says(&BASE64.encode(&text), what), "{before}");
        }
        assert!(!says("Twenty characters and more", what));
        assert!(!says(&BASE64.encode("Twenty-characters or more"), what));
    }
}
