//! Error texts without what differs from task to task, so that failures of one cause are alike. Pure.

use std::iter::Peekable;

/// Maximum number of characters of an error that count.
const MAX_CHARS: usize = 200;

/// Returns the first line of an error without numbers, ids, quoted parts and addresses.
pub(super) fn masked(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    let mut masked = String::with_capacity(line.len());
    let mut chars = line.char_indices().peekable();
    let mut before = ' ';
    while let Some((at, c)) = chars.next() {
        let rest = &line[at + c.len_utf8()..];
        if is_quote(c)
            && !before.is_alphanumeric()
            && let Some(length) = quoted(rest, c)
        {
            masked.push_str("\"…\"");
            skip(&mut chars, at + c.len_utf8() + length + c.len_utf8());
        } else if is_of_word(c) {
            let end = rest.find(|c| !is_of_word(c)).map_or(line.len(), |length| at + c.len_utf8() + length);
            mask_word(&line[at..end], &mut masked);
            skip(&mut chars, end);
        } else {
            masked.push(c);
        }
        before = c;
    }
    masked.truncate(masked.char_indices().nth(MAX_CHARS).map_or(masked.len(), |(at, _)| at));
    masked
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`')
}

/// Returns the length of a quoted part; `None` if the quote is not closed, or is an apostrophe.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    rest.char_indices().find_map(|(at, c)| {
        let after = rest[at + c.len_utf8()..].chars().next();
        (c == quote && !after.is_some_and(char::is_alphanumeric)).then_some(at)
    })
}

fn skip(chars: &mut Peekable<std::str::CharIndices<'_>>, until: usize) {
    while chars.next_if(|(at, _)| *at < until).is_some() {}
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/' | '@')
}

/// Adds a word: an address as such, an id as a number, each number as `#`.
fn mask_word(word: &str, masked: &mut String) {
    let end = word.trim_end_matches(['.', ':', '/']).len();
    let (word, rest) = word.split_at(end);
    let hex = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let is_id = word.chars().any(|c| c.is_ascii_digit())
        && (word.starts_with("0x") || (word.len() >= 8 && hex(word)));
    if word.contains("://") || word.contains('@') {
        masked.push_str("<address>");
    } else if is_id {
        masked.push('#');
    } else {
        let mut in_number = false;
        for c in word.chars() {
            // A version or an address is one number.
            let goes_on = in_number && matches!(c, '.' | ':');
            if c.is_ascii_digit() || goes_on {
                if !in_number {
                    masked.push('#');
                }
                in_number = true;
            } else {
                in_number = false;
                masked.push(c);
            }
        }
    }
    masked.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_task_to_task_is_left_out() {
        for (error, shown) in [
            ("sh failed with exit code 3", "sh failed with exit code #"),
            ("no user 01a1fe04-80aa-75a5-afdf-e10168fdf7b8, sorry", "no user #, sorry"),
            ("cannot open \"cat 7.png\": not found", "cannot open \"…\": not found"),
            ("it can't be, and 'that' too", "it can't be, and \"…\" too"),
            ("10.0.0.1:5432 refused after 3.5 s", "# refused after # s"),
            ("GET https://a.example/x?y=1: 503", "GET <address>?y=#: #"),
            ("mail to anna@example.org bounced.", "mail to <address> bounced."),
            ("at 0x7ffd on host7", "at # on host#"),
            ("an open \" quote", "an open \" quote"),
            ("größer als 5\nsecond line", "größer als #"),
            ("", ""),
        ] {
            assert_eq!(masked(error), shown, "{error}");
        }
        assert_eq!(masked(&"é ".repeat(1000)).chars().count(), MAX_CHARS);
    }
}
