//! Texts as PostgreSQL can store them: it has no character 0.

use std::borrow::Cow;

/// Returns a text without the character 0, from which [`unescape`] makes the same text again. Nearly every text stays as it is.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if text.contains(['\0', '\\']) {
        Cow::Owned(text.replace('\\', "\\\\").replace('\0', "\\0"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Reverses [`escape`]. Returns `None` for a text that it never returns.
pub(crate) fn unescape(text: String) -> Option<String> {
    if !text.contains('\\') {
        return Some(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        plain.push(match (c, if c == '\\' { rest.next() } else { None }) {
            ('\\', Some('\\')) => '\\',
            ('\\', Some('0')) => '\0',
            ('\\', _) => return None,
            (other, _) => other,
        });
    }
    Some(plain)
}

/// Returns a name between quotes, as SQL needs it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns a number that stands for a text in a notification. Every version of the program has to return the same (FNV-1a).
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_survives() {
        for text in ["", "plain", "a\0b", "\\0", "\\\\", "\\", "ü\0\\\0"] {
            assert!(!escape(text).contains('\0'));
            assert_eq!(unescape(escape(text).into_owned()).as_deref(), Some(text));
        }
        for strange in ["\\", "\\x", "a\\"] {
            assert_eq!(unescape(strange.to_owned()), None);
        }
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn a_hash_is_the_same_in_every_version() {
        assert_eq!(hash(&[""]), 0xaf63_bd4c_8601_b7df);
        assert_ne!(hash(&["a", "b"]), hash(&["ab", ""]));
    }
}
