//! Rule for names that are sent. Readers accept more, because other programs choose their own names. Pure.

/// Signs that a name may have beside letters and digits.
const SIGNS: &str = ".-_:/@+#";

/// Checks a name of a task or a queue before something is sent under it. A blank or a quote in a name is a mistake of a
/// shell or a file nearly always, and no worker would ever be found for it.
///
/// # Errors
/// The sign that is not allowed, and the rule.
pub(crate) fn check_sent_name(kind: &str, name: &str) -> Result<(), String> {
    match name.chars().find(|c| !(c.is_alphanumeric() || SIGNS.contains(*c))) {
        None => Ok(()),
        Some(c) => Err(format!(
            "the {kind} name {name:?} contains {c:?}; a name that is sent has letters, digits and {} only",
            SIGNS.chars().map(String::from).collect::<Vec<_>>().join(" ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::check_sent_name;

    #[test]
    fn blanks_and_odd_signs_are_refused_with_the_rule() {
        for fine in ["add", "mail.send", "app:Mail/deliver-now_2", "größe", "a@b+c#1"] {
            assert_eq!(check_sent_name("task", fine), Ok(()), "{fine}");
        }
        for (wrong, sign) in
            [("send mail", "' '"), ("a\tb", "'\\t'"), ("\"add\"", "'\"'"), ("a,b", "','"), ("a*", "'*'")]
        {
            let why = check_sent_name("task", wrong).unwrap_err();
            assert!(why.contains(sign) && why.contains("letters, digits and . - _"), "{why}");
        }
    }
}
