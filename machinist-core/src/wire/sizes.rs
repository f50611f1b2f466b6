//! How large things may be, checked before anything is parsed: whoever can publish must not be able to fill a
//! worker's memory.

/// Maximum nesting of a body that is decoded. A deeper body is an attack or a mistake.
pub(crate) const MAX_DEPTH: usize = 100;

/// The largest sizes that are sent and taken.
///
/// What is larger is an error to its sender; where it arrives all the same, it is a dead letter (`too-large`) that
/// nobody has parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaxSizes {
    /// A message's body, in bytes; 1 MiB unless set.
    pub body: usize,
    /// A message's headers together, in bytes; 16 KiB unless set.
    pub headers: usize,
    /// The arguments of a task; 1024 unless set.
    pub args: usize,
    /// How deep a body is nested: lists and tables in each other, the body itself being the first; 100 unless set,
    /// and never more.
    pub depth: usize,
    /// What a task returns, in bytes of JSON; 1 MiB unless set. A task that returns more ends in FAILURE/error.
    pub results: usize,
    /// What is kept of a task's error and its causes, in bytes; 64 KiB unless set. The rest is cut off.
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

    /// Returns the part of a message that is too large, if one is.
    pub(crate) fn exceeded(&self, message: &crate::broker::Message) -> Option<Oversize> {
        let body = message.body.len();
        let headers = message.size() - body;
        if body > self.body {
            Some(Oversize { part: "body", size: body, max: self.body })
        } else if headers > self.headers {
            Some(Oversize { part: "headers", size: headers, max: self.headers })
        } else {
            None
        }
    }
}

/// How many bytes of JSON a value is, without writing them anywhere.
pub(crate) fn json_size(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What cannot be written is refused where it is written.
    drop(serde_json::to_writer(&mut count, value));
    count.0
}
