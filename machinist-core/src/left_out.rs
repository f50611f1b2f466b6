//! Answers to questions about what is only shown: a record or an index that another program has spoilt is left out, and
//! said. What decides something is not read this way.

use crate::backend::BackendError;

/// Returns the answer; nothing, with a warning, if what was asked for cannot be used.
pub(crate) fn left_out<T: Default>(what: &str, answer: Result<T, BackendError>) -> Result<T, BackendError> {
    match answer {
        Err(error) if error.is_of_one_record() => {
            tracing::warn!(error = &error as &dyn std::error::Error, "{what}: cannot be read, and left out");
            Ok(T::default())
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_of_one_record_is_left_out() {
        let record = BackendError::Record { reason: "a string".to_owned() };
        assert_eq!(left_out::<u8>("it", Err(record)).unwrap(), 0);
        assert_eq!(left_out("it", Ok(7)).unwrap(), 7);
        let refused = BackendError::Refused { reason: "no right".to_owned() };
        assert!(left_out::<u8>("it", Err(refused)).is_err());
        assert!(left_out::<u8>("it", Err(BackendError::Unavailable("away".into()))).is_err());
    }
}
