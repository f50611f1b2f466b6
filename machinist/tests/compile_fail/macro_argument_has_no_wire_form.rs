//! A parameter that is neither an argument nor an extractor.
//~ ERROR: `Options` is no argument of a task: derive `WireArg` for it, wrap it in `Json<Options>`, or mark the parameter with `#[extract]`

struct Options;

#[machinist_macros::task(crate = machinist_core)]
async fn mail(_: Options) -> Result<(), machinist_core::TaskError> {
    Ok(())
}

fn main() {}
