//! Maximum sizes, checked before anything is parsed: a publisher must not be able to fill a
//! worker's memory.

/// Maximum nesting of a body that is decoded. A deeper body is an attack or a mistake.
pub(crate) const MAX_DEPTH: usize = 100;

/// Maximum sizes of what is sent and accepted.
///
/// A larger message is an error to its sender. One that arrives anyway becomes a dead letter (`too-large`) that
/// was never parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaxSizes {
    /// Maximum size of a body, in bytes. Default: 1 MiB.
    pub body: usize,
    /// Maximum size of all headers together, in bytes. Default: 16 KiB.
    pub headers: usize,
    /// Maximum number of arguments. Default: 1024.
    pub args: usize,
    /// Maximum nesting of a body: lists and tables in each other, the body itself being the first. Default and upper bound:
    /// 100.
    pub depth: usize,
    /// Maximum size of results, in bytes of JSON. Default: 1 MiB. A task that returns more ends in FAILURE/error.
    pub results: usize,
    /// Maximum size of the results that a step of a workflow gets from those before it, in bytes of JSON. Default: 16 MiB. A
    /// step that would get more ends in FAILURE/malformed.
    pub gathered: usize,
    /// Maximum size of the kept error and its causes, in bytes. Default: 64 KiB. The rest is cut off.
    pub errors: usize,
}

/// A part of a message or body that is larger than its maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oversize {
    /// Name of the part, for people.
    pub(crate) part: &'static str,
    /// Its size: bytes, or a number of arguments or levels.
    pub(crate) size: usize,
    /// The maximum, in the same unit.
    pub(crate) max: usize,
}

impl Default for MaxSizes {
    fn default() -> Self {
        Self {
            body: 1024 * 1024,
            headers: 16 * 1024,
            args: 1024,
            depth: MAX_DEPTH,
            results: 1024 * 1024,
            gathered: 16 * 1024 * 1024,
            errors: 64 * 1024,
        }
    }
}

impl MaxSizes {
    /// Sets the maximum size of bodies, in bytes.
    #[must_use]
    pub const fn body(mut self, bytes: usize) -> Self {
        self.body = bytes;
        self
    }

    /// Sets the maximum size of headers, in bytes.
    #[must_use]
    pub const fn headers(mut self, bytes: usize) -> Self {
        self.headers = bytes;
        self
    }

    /// Sets the maximum number of arguments.
    #[must_use]
    pub const fn args(mut self, count: usize) -> Self {
        self.args = count;
        self
    }

    /// Sets the maximum depth of nesting; more than 100 means 100.
    #[must_use]
    pub const fn depth(mut self, levels: usize) -> Self {
        self.depth = if levels < MAX_DEPTH { levels } else { MAX_DEPTH };
        self
    }

    /// Sets the maximum size of errors, in bytes.
    #[must_use]
    pub const fn errors(mut self, bytes: usize) -> Self {
        self.errors = bytes;
        self
    }

    /// Sets the maximum size of results, in bytes.
    #[must_use]
    pub const fn results(mut self, bytes: usize) -> Self {
        self.results = bytes;
        self
    }

    /// Sets the maximum size of what a step gets from those before it, in bytes.
    #[must_use]
    pub const fn gathered(mut self, bytes: usize) -> Self {
        self.gathered = bytes;
        self
    }

    /// Returns the size of a message in bytes, or its part that is too large.
    pub(crate) fn check(&self, message: &crate::broker::Message) -> Result<usize, Oversize> {
        let size = message.size();
        let body = message.body.len();
        let headers = size - body;
        if body > self.body {
            Err(Oversize { part: "body", size: body, max: self.body })
        } else if headers > self.headers {
            Err(Oversize { part: "headers", size: headers, max: self.headers })
        } else {
            Ok(size)
        }
    }
}
