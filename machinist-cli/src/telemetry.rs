//! Logs and traces of the program.
//!
//! Logs go to standard error, as text or JSON, or to a file where a command has the whole screen; `MACHINIST_LOG` (else `RUST_LOG`) sets the log level. Traces are exported
//! by OTLP over http/protobuf when `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set; all
//! standard `OTEL_*` variables hold. Metrics of a worker are exported in the same way ([`crate::metrics`]). The exporter uses plain http, so that the program needs no second TLS library.

use std::{
    env, fmt,
    fs::{File, OpenOptions},
    io::IsTerminal,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use tracing::{Level, Metadata, field::Field};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::{
        format::{Writer, debug_fn},
        writer::BoxMakeWriter,
    },
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::{
    args::LogFormat,
    exit::{CliError, Code},
    people::is_coloured,
};

/// Telemetry that has to be flushed before the program ends.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Telemetry {
    #[cfg(feature = "otel")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Place of the logs.
#[derive(Debug)]
pub(crate) enum LogPlace {
    StandardError,
    /// This file, at its end.
    File(PathBuf),
    /// No place: the screen shows something else.
    Nowhere,
}

impl LogPlace {
    /// Returns the writer of the logs, and whether it may get colours.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn writer(&self) -> Result<(BoxMakeWriter, bool), CliError> {
        Ok(match self {
            Self::StandardError => (
                BoxMakeWriter::new(std::io::stderr),
                is_coloured(std::io::stderr().is_terminal(), |name| env::var_os(name)),
            ),
            Self::File(path) => {
                let file: File =
                    OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                        CliError::from_error(Code::Configuration, &error)
                            .context(format_args!("--log-file: {} cannot be opened", path.display()))
                            .remedy("name a file in a folder where this user may write")
                    })?;
                (BoxMakeWriter::new(Arc::new(file)), false)
            }
            Self::Nowhere => (BoxMakeWriter::new(std::io::sink), false),
        })
    }
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Filter of the logs in use.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sets the log level of the running program: a level, or directives as in `MACHINIST_LOG`.
///
/// # Errors
/// The text is no log level, or the application has set up its own logging.
pub(crate) fn set_level(text: &str) -> Result<(), String> {
    let own = || "the application has set up its own logging".to_owned();
    let filter = EnvFilter::try_new(text).map_err(|error| format!("{text:?} is not a log level: {error}"))?;
    if text.split(',').any(|directive| !directive.contains('=') && directive.trim().parse::<Level>().is_err())
    {
        return Err(format!("{text:?} is not a log level; write one like debug, or machinist=debug,warn"));
    }
    FILTER.get().ok_or_else(own)?.reload(filter).map_err(|_| own())
}

impl Telemetry {
    /// Starts logging, and tracing if a variable asks for it. `level` is the log level if no variable sets it. Call it
    /// outside of any runtime, because the exporter has its own.
    ///
    /// # Errors
    /// A variable cannot be read, or the file of the log cannot be opened.
    pub(crate) fn start(format: LogFormat, level: &str, place: &LogPlace) -> Result<Self, CliError> {
        let logs = logs(format, filter(level)?, place.writer()?);
        #[cfg(feature = "otel")]
        let (provider, problem) = match otel::provider() {
            Ok(provider) => (provider, None),
            Err(problem) => (None, Some(problem)),
        };
        #[cfg(feature = "otel")]
        let traces = provider.as_ref().map(otel::layer);
        #[cfg(not(feature = "otel"))]
        let traces = None;
        // What handlers say at this level or above is kept for `machinist log`, whatever is printed.
        let task_logs = machinist::TaskLogLayer::new().with_filter(LevelFilter::INFO).boxed();
        let layers: Vec<BoxedLayer> = [logs, task_logs].into_iter().chain(traces).collect();
        if tracing_subscriber::registry().with(layers).try_init().is_err() {
            tracing::debug!("the application has set up its own logging, which is kept");
        }
        #[cfg(feature = "otel")]
        if let Some(problem) = problem {
            tracing::warn!("no traces are exported: {problem}");
        }
        Ok(Self {
            #[cfg(feature = "otel")]
            provider,
        })
    }

    /// Exports the remaining traces, in a few seconds at most.
    pub(crate) fn finish(self) {
        #[cfg(feature = "otel")]
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(std::time::Duration::from_secs(3))
        {
            tracing::warn!(%error, "the last traces were not exported");
        }
    }
}

fn filter(level: &str) -> Result<EnvFilter, CliError> {
    let set = |name| env::var(name).ok().filter(|text| !text.is_empty()).map(|text| (name, text));
    let (name, text) =
        set("MACHINIST_LOG").or_else(|| set("RUST_LOG")).unwrap_or_else(|| ("", level.to_owned()));
    EnvFilter::try_new(&text).map_err(|error| {
        CliError::new(Code::Configuration, format!("{name}: {text:?} is not a log level: {error}"))
            .remedy("write a level like info, or machinist=debug,warn")
    })
}

fn logs(format: LogFormat, filter: EnvFilter, (writer, coloured): (BoxMakeWriter, bool)) -> BoxedLayer {
    let (filter, handle) = reload::Layer::new(filter);
    // Set once: a program starts its logging once.
    let _again = FILTER.set(handle);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let filter = filter.and(filter_fn(holds_no_secret));
    match format {
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed(),
        LogFormat::Human => {
            layer.with_ansi(coloured).fmt_fields(debug_fn(format_field)).with_filter(filter).boxed()
        }
    }
}

/// Returns `false` for what lapin logs of each frame: the one that logs in holds the password.
fn holds_no_secret(metadata: &Metadata<'_>) -> bool {
    let from_lapin = metadata.target().split("::").next() == Some("lapin");
    !(from_lapin && *metadata.level() == Level::TRACE)
}

/// Formats fields as text, without those that only traces need and that repeat others.
fn format_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let name = field.name();
    match name {
        "message" => write!(writer, "{value:?} "),
        _ if name.starts_with("otel.") || name.starts_with("messaging.") => Ok(()),
        _ => write!(writer, "{name}={value:?} "),
    }
}

#[cfg(feature = "otel")]
pub(crate) mod otel {
    use super::*;
    use crate::exit::chain;
    use machinist::redact;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig};
    use opentelemetry_sdk::{Resource, metrics::PeriodicReader, trace::SdkTracerProvider};
    use tracing_subscriber::filter::Targets;

    /// Returns the variable that names an endpoint for this signal and its value, unless the variables turn the signal off.
    ///
    /// # Errors
    /// The endpoint cannot be used.
    fn endpoint(signal: &str) -> Result<Option<(String, String)>, String> {
        let set = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
        let names =
            [format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"), "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned()];
        let named = names.into_iter().find_map(|name| set(&name).map(|value| (name, value)));
        let is_off = set("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
            || set(&format!("OTEL_{signal}_EXPORTER")).is_some_and(|text| text == "none");
        let Some((name, endpoint)) = named.filter(|_| !is_off) else { return Ok(None) };
        if endpoint.starts_with("https:") {
            return Err(format!(
                "{name}: {} needs TLS, which this exporter does not support; export to a collector on a trusted \
                 network over http, and let the collector forward the {}",
                redact::url(&endpoint),
                signal.to_lowercase()
            ));
        }
        Ok(Some((name, endpoint)))
    }

    fn resource() -> Resource {
        let mut resource = Resource::builder();
        if env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty()) {
            return resource.build();
        }
        resource = resource.with_service_name("machinist");
        resource.build()
    }

    /// Returns the provider if a variable asks for one, or the reason that there can be none.
    pub(super) fn provider() -> Result<Option<SdkTracerProvider>, String> {
        let Some((name, _)) = endpoint("TRACES")? else { return Ok(None) };
        // The exporter itself reads the endpoint and everything else from the variables.
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build();
        let exporter = exporter.map_err(|error| format!("{name}: {}", redact::text(&chain(&error))))?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
        Ok(Some(provider.with_resource(resource()).build()))
    }

    /// Returns the reader that exports metrics if a variable asks for one, and what it exports about this process; or the
    /// reason that there can be none.
    pub(crate) fn metrics_reader() -> Result<Option<(PeriodicReader<MetricExporter>, Resource)>, String> {
        let Some((name, _)) = endpoint("METRICS")? else { return Ok(None) };
        let exporter = MetricExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build();
        let exporter = exporter.map_err(|error| format!("{name}: {}", redact::text(&chain(&error))))?;
        Ok(Some((PeriodicReader::builder(exporter).build(), resource())))
    }

    pub(super) fn layer(provider: &SdkTracerProvider) -> BoxedLayer {
        // The exporter must not export its own activity.
        let quiet =
            ["hyper", "hyper_util", "reqwest", "opentelemetry"].map(|target| (target, LevelFilter::OFF));
        let filter = Targets::new().with_default(LevelFilter::INFO).with_targets(quiet);
        tracing_opentelemetry::layer().with_tracer(provider.tracer("machinist")).with_filter(filter).boxed()
    }
}
