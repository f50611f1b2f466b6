//! An option that a definition does not have.
//~ ERROR: unknown option `retrys`; the options are name, def, crate, queue, requires, retries,

#[machinist_macros::task(crate = machinist_core, retrys = 5)]
async fn mail() -> Result<(), machinist_core::TaskError> {
    Ok(())
}

fn main() {}
