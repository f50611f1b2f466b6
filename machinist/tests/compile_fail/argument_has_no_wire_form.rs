//! A definition whose only argument is a user's type.

//~ ERROR: `Options` cannot be a task argument: wrap
use machinist_core::TaskDef;

pub struct Options(pub i64);

pub const RESIZE: TaskDef<Options, ()> = TaskDef::new("resize");

fn main() {}
