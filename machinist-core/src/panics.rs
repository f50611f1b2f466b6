//! Panics of handlers: their text, their place, and their backtrace where one is asked for.
//!
//! Only the panic hook of the process knows the place of a panic. A hook is put before the present one when the first worker
//! is built. If a program replaces it later, panics have no place, and nothing else changes.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    cell::RefCell,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook},
    sync::Once,
};

/// Maximum size of a backtrace, in bytes: one message of an error.
const MAX_BACKTRACE_BYTES: usize = 3 * 1024;

/// A panic as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PanicText {
    pub(crate) message: String,
    /// Place and backtrace, if they are known.
    pub(crate) details: Vec<String>,
}

thread_local! {
    /// The last panic of this thread.
    static LAST: RefCell<Option<PanicText>> = const { RefCell::new(None) };
}

/// Notes the place of each panic from now on, before the hook that is there now is called.
pub(crate) fn note_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            note(info);
            before(info);
        }));
    });
}

fn note(info: &PanicHookInfo<'_>) {
    let mut details: Vec<String> = info.location().map(|place| format!("at {place}")).into_iter().collect();
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        details.push(format!("backtrace:\n{}", frames_of_handler(&backtrace.to_string())));
    }
    let text = PanicText { message: message(info.payload()), details };
    // A thread that ends has no place for it any more.
    drop(LAST.try_with(|last| last.try_borrow_mut().map(|mut last| *last = Some(text))));
}

/// Returns the frames from the panic to the handler, without those of the panic itself and of the worker.
fn frames_of_handler(backtrace: &str) -> String {
    let lines: Vec<&str> = backtrace.lines().collect();
    let is_place = |line: &str| line.trim_start().starts_with("at ");
    let of_panic = |line: &&str| {
        ["rust_begin_unwind", "core::panicking::", "std::panicking::", "core::result::unwrap_failed"]
            .iter()
            .any(|frame| line.contains(frame))
    };
    let mut start = lines.iter().rposition(of_panic).map_or(0, |at| at + 1);
    while lines.get(start).is_some_and(|line| is_place(line)) {
        start += 1;
    }
    let end = lines[start..].iter().position(|line| !is_place(line) && line.contains("machinist_core::"));
    let mut shown = String::new();
    for line in &lines[start..end.map_or(lines.len(), |count| start + count)] {
        if shown.len() + line.len() >= MAX_BACKTRACE_BYTES {
            shown.push_str("  …\n");
            break;
        }
        shown.push_str(line);
        shown.push('\n');
    }
    shown.truncate(shown.trim_end().len());
    shown
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

impl PanicText {
    /// Returns the text of a panic that was caught on this thread just now.
    pub(crate) fn of(panic: &(dyn Any + Send)) -> Self {
        if let Some(located) = panic.downcast_ref::<Self>() {
            return located.clone();
        }
        let message = message(panic);
        let last = LAST.try_with(|last| last.try_borrow_mut().ok().and_then(|mut last| last.take()));
        // A panic that a handler has resumed passes no hook: the last one noted is then another.
        last.ok()
            .flatten()
            .filter(|last| last.message == message)
            .unwrap_or(Self { message, details: Vec::new() })
    }
}

impl From<&str> for PanicText {
    fn from(message: &str) -> Self {
        Self { message: message.to_owned(), details: Vec::new() }
    }
}

/// Calls a function. A panic leaves it with its place, which another thread can read.
pub(crate) fn located<T>(function: impl FnOnce() -> T) -> T {
    // Unwind safe: the panic goes on, and nothing is looked at.
    match catch_unwind(AssertUnwindSafe(function)) {
        Ok(value) => value,
        Err(panic) => resume_unwind(Box::new(PanicText::of(panic.as_ref()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKTRACE: &str = "   0: machinist_core::panics::note\n             at ./src/panics.rs:1:2\n   \
        1: __rustc::rust_begin_unwind\n   2: core::panicking::panic_fmt\n             at /rustc/panicking.rs:1:2\n   \
        3: app::mail::send\n             at ./src/mail.rs:7:9\n   4: app::handler\n   \
        5: machinist_core::handler::call\n   6: tokio::run";

    #[test]
    fn a_backtrace_holds_the_frames_of_the_handler() {
        let frames = "   3: app::mail::send\n             at ./src/mail.rs:7:9\n   4: app::handler";
        assert_eq!(frames_of_handler(BACKTRACE), frames);
        let long = frames_of_handler(&BACKTRACE.replace("app::handler\n", &"app::deep\n".repeat(10_000)));
        assert!(long.len() <= MAX_BACKTRACE_BYTES + 8 && long.ends_with('…'), "{}", long.len());
    }

    #[test]
    fn a_panic_that_another_thread_resumes_keeps_its_place() {
        note_places();
        let ended = std::thread::spawn(|| located(|| -> () { panic!("ouch {}", 7) })).join();
        let text = PanicText::of(ended.unwrap_err().as_ref());
        assert_eq!(text.message, "ouch 7");
        assert!(text.details[0].starts_with("at ") && text.details[0].contains("panics.rs:"), "{text:?}");
    }
}
