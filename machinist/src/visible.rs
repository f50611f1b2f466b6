//! Texts from elsewhere, made visible, for programs that show them: no character of a name or an error may hide another one, change the order of what is
//! shown, or act on a terminal.

use std::fmt::Write as _;

/// Makes hidden characters of a text visible, apart from line breaks and tabs.
pub fn lines(text: &str) -> String {
    escaped(text, |c| c == '\n' || c == '\t')
}

/// Makes hidden characters of a text visible that has one line in a list, so that it cannot look like a further entry.
pub fn one_line(text: &str) -> String {
    escaped(text, |_| false)
}

/// Escapes hidden characters of a JSON text, which stay the same for its readers.
pub fn json(text: &str) -> String {
    let mut units = [0; 2];
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        // The serializer has escaped what is below a blank in a string.
        if is_hidden(c) && !c.is_ascii_control() || c == '\u{7f}' {
            for unit in c.encode_utf16(&mut units) {
                // INVARIANT: writing to a String does not fail.
                let _ = write!(visible, "\\u{unit:04x}");
            }
        } else {
            visible.push(c);
        }
    }
    visible
}

fn escaped(text: &str, is_allowed: impl Fn(char) -> bool) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !is_allowed(c) {
            visible.extend(c.escape_default());
        } else {
            visible.push(c);
        }
    }
    visible
}

/// Returns `true` for characters without a shape: those that control a terminal, the direction of the text or the joining
/// of letters, and those of no width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{17b4}'
                | '\u{17b5}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_visible_and_others_are_as_they_were() {
        for (text, shown) in [
            ("plain, größer, 日本, e\u{301}, 🦀", "plain, größer, 日本, e\u{301}, 🦀"),
            ("\u{1b}[31m", "\\u{1b}[31m"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{202e}b\u{2066}c", "a\\u{202e}b\\u{2066}c"),
            ("ad\u{200b}min\u{feff}", "ad\\u{200b}min\\u{feff}"),
            ("a\rb\u{2028}c", "a\\rb\\u{2028}c"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(one_line(text), shown);
            assert_eq!(lines(text), shown);
        }
        assert_eq!(one_line("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(lines("a\nb\tc"), "a\nb\tc");
    }

    #[test]
    fn json_says_the_same_without_hidden_characters() {
        let value =
            serde_json::json!({ "a\u{200b}": ["\u{9b}\u{7f}\u{202e}", "\u{e0041}\n\u{1b}", "größer"] });
        let text = json(&serde_json::to_string(&value).expect("plain data"));
        assert!(!text.chars().any(is_hidden), "{text}");
        assert!(text.contains("größer"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }
}
