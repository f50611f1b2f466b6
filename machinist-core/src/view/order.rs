//! Answers of workers to an order.

use serde::Serialize;

use crate::OrderResult;

/// Order to workers with its answers, as `workers pause` prints it.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct OrderView<'a> {
    /// Id of the order.
    pub id: &'a str,
    results: Vec<AnswerView<'a>>,
}

/// Answer of one worker.
#[derive(Debug, Serialize)]
struct AnswerView<'a> {
    #[serde(flatten)]
    result: &'a OrderResult,
    /// Time to the answer.
    took_ms: u128,
}

impl<'a> OrderView<'a> {
    /// Creates the view of an order.
    pub fn new(id: &'a str, results: &'a [OrderResult]) -> Self {
        let answer = |result: &'a OrderResult| AnswerView { result, took_ms: result.took.as_millis() };
        Self { id, results: results.iter().map(answer).collect() }
    }
}
