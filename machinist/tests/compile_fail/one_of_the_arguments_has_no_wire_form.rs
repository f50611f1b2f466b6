//! A definition with a user's type among its arguments.

//~ ERROR: cannot be a task argument: wrap
use machinist_core::TaskDef;

pub struct Options(pub i64);

pub const RESIZE: TaskDef<(String, Options), ()> = TaskDef::new("resize");

fn main() {}
