//! The stack of threads, raised before the first of them starts.
//!
//! One small message with deeply nested headers overflows the stack of the AMQP library's thread, and kills a
//! worker and then the next one that the message is given to. A larger stack survives the deepest nesting that
//! fits into a frame. The size of threads that a library starts can only be set by a variable that the standard
//! library reads at the first thread, and a program may not change its own environment safely: so it starts
//! itself anew, once.

use std::{env, os::unix::process::CommandExt, process::Command};

/// The variable that the standard library reads.
pub(crate) const VARIABLE: &str = "RUST_MIN_STACK";
/// 64 MiB of address space for each thread; memory is only taken where it is used.
pub(crate) const SIZE: &str = "67108864";

/// Starts this program anew with a larger stack for its threads, unless that was done already. Where it cannot
/// be started anew (its file was replaced, say) it goes on as it is.
pub(crate) fn raise() {
    let present = env::var(VARIABLE).ok().and_then(|size| size.parse::<u64>().ok());
    // INVARIANT: the constant is a number.
    let wanted: u64 = SIZE.parse().expect("a number");
    if present.is_some_and(|size| size >= wanted) {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only when it failed.
    let error = command.args(arguments).env(VARIABLE, SIZE).exec();
    tracing::debug!(%error, "the program could not be started anew with a larger stack");
}
