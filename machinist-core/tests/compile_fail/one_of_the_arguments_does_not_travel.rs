//~ ERROR: cannot travel as a task argument: wrap
use machinist_core::TaskDef;

pub struct Options(pub i64);

pub const RESIZE: TaskDef<(String, Options), ()> = TaskDef::new("resize");

fn main() {}
