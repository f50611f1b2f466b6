//! Redaction of arguments by an application, before anybody sees them.

use std::{fmt, sync::Arc};

use machinist::{record::Record, view::ArgsView};

/// Decision of an application about what is shown of the arguments of a task.
pub trait ArgsRedaction: Send + Sync {
    /// Returns what is shown in the place of these arguments. The record tells the name and the queue of the task, if they are
    /// known.
    fn redacted(&self, record: &Record, args: ArgsView) -> ArgsView;
}

impl<F: Fn(&Record, ArgsView) -> ArgsView + Send + Sync> ArgsRedaction for F {
    fn redacted(&self, record: &Record, args: ArgsView) -> ArgsView {
        self(record, args)
    }
}

/// Redaction of a dashboard, if it has one.
#[derive(Clone, Default)]
pub(crate) struct Redaction(Option<Arc<dyn ArgsRedaction>>);

impl Redaction {
    pub(crate) fn new(redaction: impl ArgsRedaction + 'static) -> Self {
        Self(Some(Arc::new(redaction)))
    }

    /// Returns what is shown of arguments. Those that are not shown anyway stay so.
    pub(crate) fn apply(&self, record: &Record, args: ArgsView) -> ArgsView {
        match &self.0 {
            Some(redaction) if args.args.is_some() => redaction.redacted(record, args),
            _ => args,
        }
    }
}

impl fmt::Debug for Redaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redaction").field(&self.0.is_some()).finish()
    }
}
