//! A definition whose one argument is a type of the user's own.

//~ ERROR: `Options` cannot travel as a task argument: wrap
use machinist_core::TaskDef;

pub struct Options(pub i64);

pub const RESIZE: TaskDef<Options, ()> = TaskDef::new("resize");

fn main() {}
