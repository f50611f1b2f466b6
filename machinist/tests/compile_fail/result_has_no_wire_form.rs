//! A definition whose result is a user's type.

//~ ERROR: `Options` cannot be the result of a task
use machinist_core::TaskDef;

pub struct Options(pub i64);

pub const RESIZE: TaskDef<String, Options> = TaskDef::new("resize");

fn main() {}
