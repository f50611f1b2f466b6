//! Signed bytes of a message or result.
//!
//! Every field is its length (32 bits, big-endian) and its bytes; an absent field is the length `ffffffff` alone. The
//! fields have a fixed order and number, so two different lists of fields never produce the same bytes.

/// Length that marks an absent field.
const ABSENT_FIELD: u32 = u32::MAX;

/// Collects fields. The first field names the kind of signed content, so that a signature of one kind is worthless for
/// another.
pub(crate) struct SigningInput(Vec<u8>);

impl SigningInput {
    /// Creates an input for one kind of content. `capacity` is the approximate total size of the fields, in bytes.
    pub(crate) fn new(domain: &str, capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity)).text(domain)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        // INVARIANT: bodies and headers are bounded far below 4 GiB before they get here. A larger one becomes a field
        // that no sender can have intended, but never the same bytes as another.
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

    fn input(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
        let start = SigningInput::new("test", 0);
        let add = |input: SigningInput, field: &Option<Vec<u8>>| match field {
            Some(bytes) => input.bytes(bytes),
            None => input.absent(),
        };
        fields.iter().fold(start, add).finish()
    }

    #[test]
    fn absent_and_empty_fields_differ() {
        assert_ne!(input(&[None]), input(&[Some(vec![])]));
        assert_ne!(input(&[Some(vec![1]), Some(vec![])]), input(&[Some(vec![]), Some(vec![1])]));
    }
}
