//! A definition whose result is a type of the user's own.

//~ ERROR: `Options` cannot travel as the result of a task
use machinist_core::TaskDef;

pub struct Options(pub i64);

pub const RESIZE: TaskDef<String, Options> = TaskDef::new("resize");

fn main() {}
