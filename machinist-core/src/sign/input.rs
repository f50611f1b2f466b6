//! What is signed, byte by byte.
//!
//! Every field is its length (32 bits, big-endian) and its bytes; an absent one is the length `ffffffff` alone. The
//! fields have a fixed order and number, so two different lists of fields never make the same bytes.

/// The length that says: not there.
const ABSENT_FIELD: u32 = u32::MAX;

/// Gathers fields. The first says what kind of thing is signed, so that a signature under one kind is worth
/// nothing under another.
pub(crate) struct SigningInput(Vec<u8>);

impl SigningInput {
    /// `room`: how many bytes the fields will have, about.
    pub(crate) fn new(domain: &str, room: usize) -> Self {
        Self(Vec::with_capacity(room)).text(domain)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        // INVARIANT: bodies and headers are bounded far below 4 GiB before they get here; what is not becomes a
        // field that nobody can have meant, never the same bytes as another.
        let length = u32::try_from(bytes.len()).unwrap_or(ABSENT_FIELD - 1);
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
        self.0.extend_from_slice(&ABSENT_FIELD.to_be_bytes());
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
    use super::*;

    fn of(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
        let start = SigningInput::new("test", 0);
        let add = |input: SigningInput, field: &Option<Vec<u8>>| match field {
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
}
