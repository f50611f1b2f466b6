//! A definition cannot own a list of waits.
//~ ERROR: a definition cannot own a list of waits: use backoff_list(&[…])

use machinist_core::{Backoff, TaskDef};

const MAIL: TaskDef<String, ()> = TaskDef::new("mail").backoff(Backoff::List { waits_ms: Vec::new() });

fn main() {
    let _ = MAIL.call("Ada");
}
