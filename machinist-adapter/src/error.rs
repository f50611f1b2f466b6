//! Errors as sources, and their text.
//!
//! Both seams carry the error of a client library as a source, so that the library's own words reach the reader.

/// An error that serves as a source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the text of an error and of everything that caused it, outermost first.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect()
}

/// Joins the text of an error and of everything that caused it, `a: b: c`, without repeating the text of a cause.
pub fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
