//! Error types that a worker asks what follows from them.

use std::error::Error;

use super::options::ErrorClassifier;
use crate::{
    consequence::{ErrorClass, TaskFailure},
    task_error::TaskError,
};

/// Returns the class of an error if the type that it was made for is in its chain.
pub(super) type ClassOfType = fn(&(dyn Error + 'static)) -> Option<ErrorClass>;

/// Returns the class of the outermost `E` in the chain of an error.
pub(super) fn class_of<E: TaskFailure + Error + 'static>(
    error: &(dyn Error + 'static),
) -> Option<ErrorClass> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found.class());
        }
        next = error.source();
    }
    None
}

/// Classifier of tasks that have none: it asks the error types that the worker knows.
pub(super) struct FailureTypes(pub(super) Vec<ClassOfType>);

impl ErrorClassifier for FailureTypes {
    fn classify(&self, error: &TaskError) -> ErrorClass {
        let error: &(dyn Error + 'static) = error.error.as_ref();
        self.0.iter().find_map(|class_of| class_of(error)).unwrap_or(ErrorClass::Retry)
    }
}
