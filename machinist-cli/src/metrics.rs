//! Metrics of a worker: `/metrics` beside the health checks, and export by OTLP when a variable asks for it.
//!
//! The exporter uses plain http and a separate runtime, like that of the traces.

use std::path::Path;

use machinist::sign::read_secret_file;
use machinist_metrics::Metrics;

use crate::exit::{CliError, Code};

/// Maximum size of a token, in bytes.
const MAX_TOKEN: usize = 4096;
/// Maximum size of the file with the token, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Metrics that are served over HTTP.
#[derive(Debug)]
pub(crate) struct MetricsPage {
    metrics: Metrics,
    /// Token that readers have to show.
    token: Option<String>,
}

/// Answer to a request for the metrics.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MetricsAnswer {
    /// The metrics, in the text format of Prometheus.
    Text(String),
    /// The request shows no token, or another one.
    Unauthorized,
}

impl MetricsPage {
    /// Reads the token, if a file is named.
    ///
    /// # Errors
    /// The file cannot be read, other users can read it, or it holds no token.
    pub(crate) fn open(metrics: Metrics, token_file: Option<&Path>) -> Result<Self, CliError> {
        let token = token_file.map(read_token).transpose()?;
        Ok(Self { metrics, token })
    }

    /// Answers a request with this `Authorization`.
    pub(crate) fn answer(&self, authorization: Option<&[u8]>) -> MetricsAnswer {
        let shown = authorization.and_then(|value| value.strip_prefix(b"Bearer "));
        match (&self.token, shown) {
            (None, _) => {}
            (Some(token), Some(shown)) if is_same(token.as_bytes(), shown) => {}
            (Some(_), _) => return MetricsAnswer::Unauthorized,
        }
        MetricsAnswer::Text(self.metrics.prometheus())
    }
}

fn read_token(file: &Path) -> Result<String, CliError> {
    let shown = file.display();
    let text = read_secret_file(file, MAX_FILE_BYTES).map_err(|error| {
        CliError::from_error(Code::Configuration, &error)
            .context(format!("worker.metrics_token_file: {shown} cannot be read"))
    })?;
    let token = text.trim();
    if token.is_empty() || token.len() > MAX_TOKEN || token.contains(|c: char| !c.is_ascii_graphic()) {
        let text = format!("worker.metrics_token_file: {shown} holds no token");
        return Err(CliError::new(Code::Configuration, text).remedy(
            "write one line of visible characters without spaces, such as that of `openssl rand -hex 32`",
        ));
    }
    Ok(token.to_owned())
}

/// Compares in a time that does not tell how many bytes are right.
fn is_same(token: &[u8], shown: &[u8]) -> bool {
    let differs = token.iter().zip(shown).fold(0, |differs, (a, b)| differs | (a ^ b));
    token.len() == shown.len() && differs == 0
}

/// Starts the metrics of a worker that are served or exported; `None` if nobody reads them. Call it outside of any runtime.
pub(crate) fn start(served: bool) -> Option<Metrics> {
    let builder = Metrics::builder();
    #[cfg(feature = "otel")]
    match crate::telemetry::otel::metrics_reader() {
        Ok(Some((reader, resource))) => return Some(builder.resource(resource).reader(reader).build()),
        Ok(None) => {}
        Err(problem) => tracing::warn!("no metrics are exported: {problem}"),
    }
    served.then(|| builder.build())
}

/// Exports the last metrics.
pub(crate) fn finish(metrics: &Metrics) {
    if let Err(error) = metrics.shutdown() {
        tracing::debug!(%error, "the last metrics were not exported");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn page(token: &str) -> Result<MetricsPage, CliError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(token.as_bytes()).expect("room");
        MetricsPage::open(Metrics::builder().build(), Some(file.path()))
    }

    #[test]
    fn the_token_decides_who_reads() {
        let open = MetricsPage::open(Metrics::builder().build(), None).expect("a page");
        assert!(
            matches!(open.answer(None), MetricsAnswer::Text(text) if text.contains("machinist_build_info"))
        );
        let closed = page("s3cret\n").expect("a page");
        for shown in
            [None, Some(&b"Bearer s3cre"[..]), Some(b"Bearer s3cret2"), Some(b"s3cret"), Some(b"Bearer ")]
        {
            assert_eq!(closed.answer(shown), MetricsAnswer::Unauthorized, "{shown:?}");
        }
        assert!(matches!(closed.answer(Some(b"Bearer s3cret")), MetricsAnswer::Text(_)));
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        for text in ["", " \n", "two words"] {
            let error = page(text).expect_err(text);
            assert!(error.text.contains("worker.metrics_token_file") && error.remedy.is_some(), "{error:?}");
        }
        let error = read_token(Path::new("/nonexistent/token")).expect_err("no file");
        assert!(error.text.contains("/nonexistent/token cannot be read"), "{error:?}");
    }
}
