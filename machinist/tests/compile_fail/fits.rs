//! The control program: it compiles, so the other programs fail for the reason that they name.

use machinist_core::{Json, Rest, State, TaskContext, TaskDef, TaskError, handler::Binding};

#[derive(serde::Serialize, serde::Deserialize)]
struct Options;
#[derive(Clone)]
struct Db;

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const GREET: TaskDef<String, ()> = TaskDef::new("greet");
const MANY: TaskDef<(String, Json<Options>, Rest<u8>), (i64, String)> = TaskDef::new("many");

async fn add(_: State<Db>, a: i64, _: TaskContext, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

async fn greet(_: String) -> std::io::Result<()> {
    Ok(())
}

fn many(_: String, _: Json<Options>, Rest(r): Rest<u8>) -> Result<(i64, String), TaskError> {
    Ok((r.len() as i64, String::new()))
}

fn main() {
    Binding::new(ADD, add);
    Binding::new(ADD, |a: i64, b: i64| async move { Ok::<_, TaskError>(a + b) });
    Binding::new(GREET, greet);
    Binding::blocking(MANY, many);
    let _ = ADD.call((2, 3));
    let _ = (GREET.call("Ada"), GREET.call(String::new()), GREET.call(&String::new()));
    let _ = MANY.call(("x", Json(Options), vec![1, 2]));
}
