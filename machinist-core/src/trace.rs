//! Trace context: how a task's run becomes part of the trace of its sender.
//!
//! The context travels as W3C `traceparent` and `tracestate` in the message's headers. With the feature `otel`
//! it is the context of the current `tracing` span; without it, or outside of any trace, a fresh trace begins,
//! so that every task has a trace id by which its log lines can be found.

use std::fmt::Write;

tokio::task_local! {
    /// The context of the task that runs here, for what it sends itself.
    static CURRENT: TraceContext;
}

/// W3C trace context as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub(crate) parent: String,
    pub(crate) state: Option<String>,
}

impl TraceContext {
    /// The context of whatever happens here and now.
    pub(crate) fn current() -> Self {
        #[cfg(feature = "otel")]
        if let Some(context) = Self::of(&tracing::Span::current()) {
            return context;
        }
        CURRENT.try_with(Self::child).unwrap_or_else(|_| Self::fresh())
    }

    /// Runs a future so that what it sends belongs to this trace.
    pub(crate) fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Makes a span part of this trace.
    pub(crate) fn adopt(&self, span: &tracing::Span) {
        #[cfg(feature = "otel")]
        otel::adopt(self, span);
        #[cfg(not(feature = "otel"))]
        let _ = span;
    }

    /// The context of a span; `None` where nobody records spans.
    #[cfg(feature = "otel")]
    pub(crate) fn of(span: &tracing::Span) -> Option<Self> {
        otel::of(span)
    }

    #[cfg(not(feature = "otel"))]
    pub(crate) fn of(_span: &tracing::Span) -> Option<Self> {
        None
    }

    /// Links a span to those with these contexts.
    pub(crate) fn link(span: &tracing::Span, parents: &[String]) {
        for parent in parents {
            #[cfg(feature = "otel")]
            otel::link(&Self { parent: parent.clone(), state: None }, span);
            #[cfg(not(feature = "otel"))]
            let _ = (parent, span);
        }
    }

    fn fresh() -> Self {
        Self { parent: format!("00-{}-{}-00", hex::<16>(), hex::<8>()), state: None }
    }

    /// Another span of the same trace.
    fn child(&self) -> Self {
        let mut fields = self.parent.split('-');
        match (fields.next(), fields.next(), fields.next(), fields.next()) {
            (Some(version), Some(trace), Some(_), Some(flags)) => Self {
                parent: format!("{version}-{trace}-{}-{flags}", hex::<8>()),
                state: self.state.clone(),
            },
            _ => Self::fresh(),
        }
    }
}

/// Returns the trace id in a `traceparent`, if it has the form of one.
pub(crate) fn trace_id_of(parent: &str) -> Option<&str> {
    parent.split('-').nth(1).filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn hex<const N: usize>() -> String {
    // All zeros would mean "no trace"; the lowest bit keeps that away.
    let mut bytes: [u8; N] = rand::random();
    bytes[N - 1] |= 1;
    bytes.iter().fold(String::with_capacity(2 * N), |mut text, byte| {
        // INVARIANT: writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(feature = "otel")]
mod otel {
    //! The bridge to OpenTelemetry, by hand: two headers, whose format is fixed by
    //! <https://www.w3.org/TR/trace-context/>.

    use opentelemetry::{
        Context,
        trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
    };
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use super::TraceContext;

    pub(super) fn of(span: &tracing::Span) -> Option<TraceContext> {
        let context = span.context();
        let context = context.span().span_context().clone();
        context.is_valid().then(|| TraceContext {
            parent: format!(
                "00-{}-{}-{:02x}",
                context.trace_id(),
                context.span_id(),
                context.trace_flags().to_u8() & 1
            ),
            state: Some(context.trace_state().header()).filter(|state| !state.is_empty()),
        })
    }

    pub(super) fn adopt(context: &TraceContext, span: &tracing::Span) {
        if let Some(remote) = parse(context) {
            // Fails only where no OpenTelemetry layer listens: then there is no trace to join. The link says the
            // same to those who read it as messaging, where a message may have several causes.
            span.add_link(remote.clone());
            let _ = span.set_parent(Context::new().with_remote_span_context(remote));
        }
    }

    pub(super) fn link(to: &TraceContext, span: &tracing::Span) {
        if let Some(remote) = parse(to) {
            span.add_link(remote);
        }
    }

    fn parse(context: &TraceContext) -> Option<SpanContext> {
        let mut fields = context.parent.split('-');
        let _version = fields.next()?;
        let trace = TraceId::from_hex(fields.next()?).ok()?;
        let span = SpanId::from_hex(fields.next()?).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(fields.next()?, 16).ok()?);
        let state = context.state.as_deref().unwrap_or_default().parse::<TraceState>().unwrap_or_default();
        Some(SpanContext::new(trace, span, flags, true, state)).filter(SpanContext::is_valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_task_sends_belongs_to_its_trace() {
        let outer = TraceContext::fresh();
        assert_eq!(outer.parent.len(), 55);
        let inner = outer.clone().scope(async { TraceContext::current() }).await;
        assert_eq!(inner.parent[..36], outer.parent[..36]);
        assert_ne!(inner.parent, outer.parent);
        assert_ne!(TraceContext::current().parent[3..35], outer.parent[3..35]);
    }
}
