//! Question before a change that concerns many tasks.

use std::io::{BufRead, IsTerminal};

use crate::{
    exit::{CliError, Code},
    output,
};

/// Asks the person at the terminal. Returns `true` if the answer is yes.
///
/// # Errors
/// Nobody can be asked: standard input is no terminal, or the output is for a program.
pub(super) fn confirmed(question: &str, json: bool) -> Result<bool, CliError> {
    let input = std::io::stdin();
    if json || !input.is_terminal() {
        return Err(CliError::new(Code::Usage, format!("{question} nobody can be asked here"))
            .remedy("add --yes to do it"));
    }
    output::note(&format!("{question} [y/N]"));
    let mut answer = String::new();
    input.lock().read_line(&mut answer).map_err(|error| {
        CliError::from_error(Code::Usage, &error).context("standard input cannot be read")
    })?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::is_yes;

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(is_yes("y\n") && is_yes(" YES \n"));
        assert!(!is_yes("\n") && !is_yes("n\n") && !is_yes("yo\n"));
    }
}
