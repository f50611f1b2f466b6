//! A definition one of whose arguments is a type of the user's own.

//~ ERROR: cannot travel as a task argument: wrap
use machinist_core::TaskDef;

pub struct Options(pub i64);

pub const RESIZE: TaskDef<(String, Options), ()> = TaskDef::new("resize");

fn main() {}
