//! Samples of the real program, for tests.

use std::{fs, path::Path};

use serde_json::Value;

/// Reads a sample of the repository.
pub(crate) fn sample(folder: &str, name: &str) -> Value {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machinery/samples");
    let text = fs::read(samples.join(folder).join(format!("{name}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}
