//! A text that is no duration, and a number without a unit.
//~ ERROR: "5 bananas" is not a duration; write one like 20s, 500ms or 1h 30m
//~ ERROR: expected a duration: text like "30s", or a constant `Duration`

#[machinist_macros::task(crate = machinist_core, timeout = "5 bananas")]
async fn mail() -> Result<(), machinist_core::TaskError> {
    Ok(())
}

#[machinist_macros::task(crate = machinist_core, timeout = 5)]
async fn post() -> Result<(), machinist_core::TaskError> {
    Ok(())
}

fn main() {}
