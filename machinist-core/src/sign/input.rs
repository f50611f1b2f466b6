//! What is signed, byte by byte.
//!
//! Every field is its length (32 bits, big-endian) and its bytes; an absent one is the length `ffffffff` alone. The
//! fields have a fixed order and number, so two different lists of fields never make the same bytes.

/// The length that says: not there.
const ABSENT: u32 = u32::MAX;

/// Gathers fields. The first says what kind of thing is signed, so that a signature under one kind is worth
/// nothing under another.
pub(crate) struct Input(Vec<u8>);

impl Input {
    /// `room`: how many bytes the fields will have, about.
    pub(crate) fn new(domain: &str, room: usize) -> Self {
        Self(Vec::with_capacity(room)).text(domain)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        // INVARIANT: bodies and headers are bounded far below 4 GiB before they get here; what is not becomes a
        // field that nobody can have meant, never the same bytes as another.
        let length = u32::try_from(bytes.len()).unwrap_or(ABSENT - 1);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn number(self, number: i64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    pub(crate) fn absent(mut self) -> Self {
        self.0.extend_from_slice(&ABSENT.to_be_bytes());
        self
    }

    pub(crate) fn maybe_text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(text),
            None => self.absent(),
        }
    }

    pub(crate) fn maybe_number(self, number: Option<i64>) -> Self {
        match number {
            Some(number) => self.number(number),
            None => self.absent(),
        }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
        let start = Input::new("test", 0);
        let add = |input: Input, field: &Option<Vec<u8>>| match field {
            Some(bytes) => input.bytes(bytes),
            None => input.absent(),
        };
        fields.iter().fold(start, add).finish()
    }

    #[test]
    fn nothing_and_empty_differ() {
        assert_ne!(of(&[None]), of(&[Some(vec![])]));
        assert_ne!(of(&[Some(vec![1]), Some(vec![])]), of(&[Some(vec![]), Some(vec![1])]));
    }

    proptest! {
        #[test]
        fn different_fields_are_different_bytes(
            a: Vec<Option<Vec<u8>>>, b: Vec<Option<Vec<u8>>>,
        ) {
            prop_assert_eq!(of(&a) == of(&b), a == b);
        }

        /// As above, with fields that are made to be mistaken for one another.
        #[test]
        fn fields_do_not_run_into_each_other(
            a in proptest::collection::vec(proptest::option::of("[\u{0}\u{1}\u{4}]{0,6}"), 0..5),
            b in proptest::collection::vec(proptest::option::of("[\u{0}\u{1}\u{4}]{0,6}"), 0..5),
        ) {
            let raw = |fields: &[Option<String>]| -> Vec<_> {
                fields.iter().map(|f| f.as_ref().map(|f| f.clone().into_bytes())).collect()
            };
            prop_assert_eq!(of(&raw(&a)) == of(&raw(&b)), a == b);
        }
    }
}
