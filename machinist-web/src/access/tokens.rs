//! The token file: `NAME:ROLE:TOKEN` in each line, for programs.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::{
    AccessError,
    watched_file::{WatchedFile, fields},
};
use crate::{User, UserRole};

/// Minimum length of a token, in bytes.
const MIN_TOKEN: usize = 16;
/// Syntax of a line.
const SYNTAX: &str = "NAME:ROLE:TOKEN, with a token like that of `openssl rand -hex 32`";

/// Entry of the file. The tokens themselves are not kept.
#[derive(Debug)]
struct TokenEntry {
    name: String,
    role: UserRole,
    digest: [u8; 32],
}

/// Programs with tokens.
#[derive(Debug)]
pub(super) struct TokenFile(WatchedFile<Vec<TokenEntry>>);

impl TokenFile {
    pub(super) fn open(path: &Path) -> Result<Self, AccessError> {
        Ok(Self(WatchedFile::open(path, parse)?))
    }

    /// Returns the user of a token. Digests are compared, so the time tells nothing about a token.
    pub(super) fn user(&self, token: &[u8]) -> Result<Option<User>, AccessError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let entries = self.0.content()?;
        let entry = entries.iter().find(|entry| entry.digest == digest);
        Ok(entry.map(|entry| User::new(&entry.name, entry.role)))
    }
}

fn parse(text: &str) -> Result<Vec<TokenEntry>, String> {
    let mut entries = Vec::new();
    for (number, [name, role, token]) in fields::<3>(text, SYNTAX)? {
        let role = role.parse().map_err(|problem| format!("line {number}: {problem}"))?;
        if token.len() < MIN_TOKEN || token.contains(|c: char| !c.is_ascii_graphic()) {
            let rule = format!("{MIN_TOKEN} visible characters at least, and no spaces");
            return Err(format!("line {number}: a token has {rule}; write {SYNTAX}"));
        }
        entries.push(TokenEntry { name, role, digest: Sha256::digest(token.as_bytes()).into() });
    }
    if entries.is_empty() {
        return Err(format!("holds no token; write lines of the form {SYNTAX}"));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_which_line_is_wrong_and_repeats_no_secret() {
        let entries = parse("ci:operator:0123456789abcdef\n").unwrap();
        assert_eq!((entries[0].name.as_str(), entries[0].role), ("ci", UserRole::Operator));
        for (text, problem) in [
            ("", "holds no token"),
            ("ci:0123456789abcdef", "line 1 is not of the form"),
            ("ci:operator:s3cret", "line 1: a token has 16 visible characters"),
            ("ci:operator:s3cret s3cret s3cret", "line 1: a token has 16 visible characters"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(problem) && !error.contains("s3cret"), "{error}");
        }
    }
}
