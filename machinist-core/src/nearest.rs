//! The word that was probably meant: one rule for every message that corrects a name. Pure.

/// Returns the known word that a misspelled one was probably meant to be, if one is near enough: one change, and one more
/// for every four characters. Two letters in the wrong order are one change. Of equally near ones, it returns the first
/// in the order of the alphabet.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let changes = 1 + word.chars().count() / 4;
    let distance = |name: &str| strsim::damerau_levenshtein(word, name);
    let others = known.into_iter().filter(|name| *name != word);
    let best = others.map(|name| (distance(name), name)).min();
    best.filter(|(distance, _)| *distance <= changes).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_misspelled_word_has_the_nearest_known_one() {
        let known = ["mail", "main", "resize", "send_mail"];
        for (word, meant) in [
            ("mial", Some("mail")),
            ("mal", Some("mail")),
            ("amil", Some("mail")),
            ("maix", Some("mail")),
            ("reszie", Some("resize")),
            ("sendmial", Some("send_mail")),
            ("invoice", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest("mail", ["mail"]), None, "a word is no correction of itself");
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn characters_count_and_not_their_bytes() {
        assert_eq!(nearest("ä", ["größe"]), None);
        assert_eq!(nearest("größ", ["größe"]), Some("größe"));
    }
}
