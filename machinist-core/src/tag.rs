//! Tags of a worker: people tell workers apart by them, and tasks can require them.

use std::{fmt, str::FromStr, sync::Arc};

/// Maximum number of tags of a worker.
pub const MAX_TAGS: usize = 16;

/// Word about a worker, such as `gpu` or `zone:eu`. It is shown with the worker, and a task can require it
/// ([`Signature::requires`](crate::Signature::requires)).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Arc<str>);

/// Error of a text that cannot be a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tag {0:?} is not a word like gpu or zone:eu; take 1 to 40 lower-case letters, digits, - or _, with : between words"
)]
pub struct InvalidTag(String);

impl Tag {
    /// Checks a text and makes it a tag: words of lower-case letters, digits, `-` and `_`, with a colon between two.
    ///
    /// # Errors
    /// [`InvalidTag`] names the expected syntax.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::worker::Tag;
    /// assert!(Tag::parse("gpu").is_ok() && Tag::parse("zone:eu").is_ok());
    /// assert!(Tag::parse("GPU").is_err() && Tag::parse("zone:").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, InvalidTag> {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(is_allowed);
        if text.len() <= 40 && text.split(':').all(is_word) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidTag(text.chars().take(60).collect()))
        }
    }

    /// Returns the tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;
    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        Self::parse(text)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_plain_word_or_several_with_colons() {
        let longest = "x".repeat(40);
        for good in ["gpu", "zone:eu", "a:b:c", "x86_64", "big-memory", "4", &longest] {
            assert_eq!(Tag::parse(good).unwrap().as_str(), good);
        }
        let too_long = "x".repeat(41);
        for bad in ["", "GPU", "zone:", ":eu", "a::b", "two words", "ü", "a,b", "a=b", &too_long] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
    }
}
