//! A definition with an argument after `Rest`.

//~ ERROR: `Rest<T>` may only be the last
use machinist_core::{Rest, TaskDef};

pub const JOIN: TaskDef<(Rest<String>, String), String> = TaskDef::new("join");

fn main() {}
